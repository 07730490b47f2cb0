# Copyright 2026 The craft_trl authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.


"""
`craft generate` in tasks on many GPUs, by a discrete-event simulation: wall time, GPU hours and money, and where it stops scaling.

    PYTHONPATH=. python benchmarks/scale.py
    PYTHONPATH=. python benchmarks/scale.py --gpus 64 --tasks 64 128 256 512 1024 2048 4096
    PYTHONPATH=. python benchmarks/scale.py --gpus 64 --read all --start_again 45
    PYTHONPATH=. python benchmarks/scale.py --gpus 64 --target_groups 100

Every task is drawn by the library's own loop, `generate_candidates`, with its early rejection, its batches and what it draws
ahead at a task's end; only time is simulated, and scores are Gaussian ones correlated by 0.4. A worker starts and loads the
models once, and takes the next task when it is done with one. What a task costs besides its images: the worker's notes that it has
taken it, the listing of all shards, the reading of its own, and the store's latency after a batch, which passes while the next one
is drawn. Some GPUs are slow. Any of them fails now and then: what it has not stored is lost, and after a while the
engine starts the worker again, which loads the models and goes on with that task. Chance is keyed by `--seed`.

The rate is that of `craft plan`: counted operations of an image, at the share of the GPU's peak that it assumes.
"""

import argparse
import heapq
import json
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from craft_trl.candidates.drawing import generate_candidates
from craft_trl.candidates.groups import Group, make_groups
from craft_trl.candidates.pool import CandidatePool, Key
from craft_trl.planning.gpus import find_gpu
from craft_trl.planning.odds import CORRELATION
from craft_trl.planning.rates import SHARES


REWARDS = ["hpsv2", "pickscore", "aesthetic"]


@dataclass(frozen=True)
class Costs:
    """
    What takes time, in seconds unless it says something else.

    Args:
        image (`float`):
            An image, drawn on a GPU of the usual speed.
        score (`float`):
            Its scores, which are computed while the next batch is drawn.
        start (`float`):
            A process until it draws: imports, weights read from a disk and moved to the GPU.
        start_again (`float`):
            A task that follows another one on a worker, until it opens the pool: some requests to the store.
        listing (`float`):
            The names of a thousand shards, when a task opens the pool.
        shard (`float`):
            A shard that is read then.
        read (`"own"` or `"all"`):
            Whether a task reads its own shards then, or those of all tasks.
        latency (`float`):
            The store's, for a shard; lognormal, this being the median, with a deviation of the logarithm of 1.
        slow (`float`):
            Share of the GPUs that take half as long again.
        failure_hours (`float`):
            GPU hours between two failures.
        repair (`float`):
            Until a worker is back after a failure.
        batch_size (`int`):
            Images of a batch.
    """

    image: float
    score: float
    start: float = 45.0
    start_again: float = 1.0
    listing: float = 0.1
    shard: float = 0.003
    read: str = "own"
    latency: float = 0.5
    slow: float = 0.05
    failure_hours: float = 10.0
    repair: float = 180.0
    batch_size: int = 8


class Died(Exception):
    """The GPU failed."""


class Material:
    """Groups, and the scores of all their images. The text of image `j` of group `i` is `i.j`."""

    def __init__(self, num_groups: int, variants: int, seed: int):
        rng = np.random.default_rng(seed)
        shape = num_groups, 1 + variants
        common = rng.standard_normal((*shape, 1), dtype=np.float32)
        own = rng.standard_normal((*shape, len(REWARDS)), dtype=np.float32)
        self.scores = np.sqrt(np.float32(CORRELATION)) * common + np.sqrt(np.float32(1 - CORRELATION)) * own
        texts = [[f"{i}.{j}" for j in range(1 + variants)] for i in range(num_groups)]
        self.groups = make_groups([text[0] for text in texts], [text[1:] for text in texts])
        self.rewards = {name: self._reward(number) for number, name in enumerate(REWARDS)}

    def _reward(self, number: int):
        return lambda images, prompts: np.array([self.scores[image.info["row"]][number] for image in images])

    def share(self, task: int, tasks: int) -> list[Group]:
        """The groups of a task, as `craft generate` shares them out."""
        return self.groups[task::tasks]


class SimulatedPool(CandidatePool):
    """A task's rows in memory, with the clock of the worker that draws them."""

    def __init__(self, costs: Costs, rng: np.random.Generator):
        super().__init__("nowhere", REWARDS)
        self.costs, self.rng = costs, rng
        self.now = self.busy_until = self.speed = 0.0
        self.dies_at = float("inf")
        self.stored: list[float] = []  # when each shard was
        self.drawn = 0

    def draw(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """A batch. One that is not full takes as long as one that is: it is filled up with copies."""
        self._pass(self.costs.batch_size * self.costs.image / self.speed)
        self.drawn += len(texts)
        images = [Image.new("L", (1, 1)) for _ in texts]
        for image, text in zip(images, texts, strict=True):
            image.info["row"] = tuple(map(int, text.split(".")))
        return images

    def write(self, number: int, keys: Sequence[Key], images: Sequence, scores: dict) -> Path:
        """Scored and stored while the next batch is drawn, one batch after another."""
        latency = self.costs.latency * float(self.rng.lognormal())
        self.busy_until = max(self.busy_until, self.now) + len(keys) * self.costs.score / self.speed + latency
        return Path(f"shard-{number}")

    def add(self, keys: Sequence[Key], scores: dict, shard: Path) -> None:
        """Waited for, when the loop takes it in."""
        self._pass(max(0.0, self.busy_until - self.now))
        self.stored.append(self.now)
        super().add(keys, scores, shard)

    def claim(self, key: Key) -> bool:
        return True

    def refresh(self) -> list[Key]:
        return []

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        if self.now > self.dies_at:
            raise Died


def simulate(material: Material, gpus: int, tasks: int, costs: Costs, seed: int) -> dict:
    """
    Wall time and GPU hours of drawing everything in so many tasks on so many GPUs.

    Returns:
        `dict`: `wall_hours`; `gpu_hours` in which a worker was at work, and those of all workers until the end; `images`;
        `failures`; `lost_images`, drawn and not stored; and what share of the GPU hours went into `starting`, into `opening`
        the pool, into `drawing` images that were stored, and into `waiting` for work at the end.
    """
    rng = np.random.default_rng([seed, gpus, tasks])
    speeds = [1 / 1.5 if worker < round(costs.slow * gpus) else 1.0 for worker in range(gpus)]
    running = set()  # workers whose process has done a task before
    pools: dict[int, SimulatedPool] = {}
    queue, order = deque(range(tasks)), count()
    # Events: a worker is free, or back with the task at which it failed.
    events: list[tuple[float, int, int, int | None]] = [(0.0, next(order), worker, None) for worker in range(gpus)]
    stored: list[float] = []  # of all tasks, sorted
    spent = {"starting": 0.0, "opening": 0.0, "drawing": 0.0}
    busy, failures, lost, end = 0.0, 0, 0, 0.0
    while events:
        now, _, worker, task = heapq.heappop(events)
        if task is None:
            if not queue:
                continue
            task = queue.popleft()
        pool = pools.setdefault(task, SimulatedPool(costs, rng))
        there = bisect_right(stored, now)
        read = there if costs.read == "all" else len(pool.stored)
        start = costs.start_again if worker in running else costs.start
        opening = there / 1000 * costs.listing + read * costs.shard
        begun, images, before = now + start + opening, len(pool), len(pool.stored)
        pool.speed, pool.now, pool.busy_until = speeds[worker], begun, begun
        pool.dies_at = now + float(rng.exponential(3600 * costs.failure_hours))
        try:
            if begun > pool.dies_at:
                raise Died
            generate_candidates(
                pool, material.share(task, tasks), pool.draw, material.rewards, costs.batch_size, REWARDS,
                draw_ahead=True, show_progress=False,
            )  # fmt: skip
            heapq.heappush(events, (pool.now, next(order), worker, None))
            end = max(end, pool.now)
            running.add(worker)
        except Died:
            running.discard(worker)
            failures += 1
            pool.now = pool.dies_at
            lost += pool.drawn - len(pool)
            pool.drawn = len(pool)
            heapq.heappush(events, (pool.now + costs.repair, next(order), worker, task))
        busy += pool.now - now
        spent["starting"] += min(start, pool.now - now)
        spent["opening"] += min(opening, max(0.0, pool.now - now - start))
        spent["drawing"] += (len(pool) - images) * costs.image / pool.speed
        for moment in pool.stored[before:]:
            insort(stored, moment)
    images = sum(map(len, pools.values()))
    return {
        "gpus": gpus,
        "tasks": tasks,
        "wall_hours": end / 3600,
        "gpu_hours": busy / 3600,
        "gpu_hours_until_the_end": gpus * end / 3600,
        "images": images,
        "shards": len(stored),
        "failures": failures,
        "lost_images": lost,
        **{name: seconds / 3600 for name, seconds in spent.items()},
        "waiting": gpus * end / 3600 - busy / 3600,
    }


def drawn_for_target(
    num_groups: int, tasks: int, workers: int, target: int, kept: float, repeats: int, seed: int
) -> float:
    """
    How many groups are drawn until a target is known to be reached, as a multiple of those up to there. The workers go
    down their tasks' groups side by side, and take the next tasks together; `kept` is the share of the groups that pass.
    """
    rng, drawn, needed = np.random.default_rng(seed), 0, 0
    for _ in range(repeats):
        passes = rng.random(num_groups) < kept
        needed += np.flatnonzero(passes)[target - 1] + 1
        found: list[int] = []  # the groups that were seen to pass, sorted
        for first in range(0, tasks, workers):
            shares = [np.arange(num_groups)[task::tasks] for task in range(first, min(first + workers, tasks))]
            for group in np.sort(np.concatenate(shares)).tolist():
                if len(found) >= target and group > found[target - 1]:
                    break
                drawn += 1
                if passes[group]:
                    insort(found, group)
    return float(drawn / needed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--variants", type=int, default=8)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--tasks", type=int, nargs="+", help="Numbers of tasks. Defaults to `--tasks_per_gpu`.")
    parser.add_argument("--tasks_per_gpu", type=int, default=16)
    parser.add_argument("--gpu", default="h100:80")
    parser.add_argument("--image_tflop", type=float, default=677.0, help="SDXL: 1024 px, 50 steps with guidance.")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--score_seconds", type=float, default=0.07, help="Three rewards in float32, by the plan.")
    parser.add_argument("--price", type=float, default=2.5, help="Of a GPU hour.")
    for name in ("start", "start_again", "listing", "shard", "latency", "slow", "failure_hours", "repair"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Costs, name))
    parser.add_argument("--read", choices=("own", "all"), default=Costs.read)
    parser.add_argument("--batch_size", type=int, default=Costs.batch_size)
    parser.add_argument("--target_groups", type=int, help="Count the groups that are drawn for it, and nothing else.")
    parser.add_argument("--kept", type=float, default=0.0108, help="Share of the groups that pass, for that.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="File to write the results to.")
    args = parser.parse_args()
    if args.target_groups is not None:
        for gpus in args.gpus:
            for tasks in args.tasks or [gpus, 2 * gpus, 4 * gpus, 8 * gpus]:
                more = drawn_for_target(args.prompts, tasks, gpus, args.target_groups, args.kept, 20, args.seed)
                print(f"{gpus} workers, {tasks} tasks: {more:.2f} times the groups that count")
        return
    image = args.image_tflop * 1e12 / (SHARES["sampling"] * find_gpu(args.gpu).peak(args.dtype))
    costs = Costs(image, args.score_seconds, **{k: getattr(args, k) for k in list(asdict(Costs(0, 0)))[2:]})
    material = Material(args.prompts, args.variants, args.seed)
    # Linear: so many GPUs of the usual speed at the pace of one, which starts and fails as they do.
    alone = simulate(material, 1, min(8, args.prompts), costs, args.seed)["wall_hours"]
    runs = []
    print("| GPUs | tasks | wall hours | of linear | GPU hours | money | starting | opening the pool | waiting at the end | failures | images lost |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for gpus in args.gpus:
        for tasks in args.tasks or [gpus * args.tasks_per_gpu]:
            run = simulate(material, gpus, min(tasks, args.prompts), costs, args.seed)
            run["of_linear"] = alone / gpus / run["wall_hours"]
            run["money"] = args.price * run["gpu_hours"]
            runs.append(run)
            print(
                f"| {gpus} | {run['tasks']} | {run['wall_hours']:.2f} | {run['of_linear']:.0%} | {run['gpu_hours']:.1f} | "
                f"{run['money']:,.0f} | {run['starting']:.1f} h | {run['opening']:.1f} h | {run['waiting']:.1f} h | "
                f"{run['failures']} | {run['lost_images']} |",
                flush=True,
            )
    if args.json:
        Path(args.json).write_text(json.dumps({"costs": asdict(costs), "seed": args.seed, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
