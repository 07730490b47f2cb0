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
Draw and score candidates.

```bash
craft generate --config recipes/tiny/candidates.yaml
craft generate --config recipes/tiny/candidates.yaml --smoke
craft generate --config recipes/tiny/candidates.yaml --num_processes 8
accelerate launch --num_processes 8 -m craft_trl.scripts.generate --config recipes/tiny/candidates.yaml
craft generate --config recipes/tiny/candidates.yaml --executor local --tasks 8 --workers 2
```

Processes share nothing but the pool's folder. So the same command may also be run a second time while the first one is at
work. On many machines the work is done in tasks.
"""

import dataclasses
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..candidates.config import CandidatesConfig, GenerateArguments
from ..candidates.executors import check_reached
from ..candidates.groups import Group, load_groups
from ..candidates.originals import adopt_originals, check_originals, record_of, with_originals
from ..candidates.pool import CandidatePool, alone, in_use, remove_leftovers
from ..candidates.rejection import check_target, describe_target, needed, up_to_target
from ..candidates.shares import Share
from ..candidates.sizes import image_bytes, image_size
from ..errors import UsageError
from ..families.checks import check_model
from ..filtering.filter import filter_candidates
from ..parser import CraftParser
from ..rewards import parse_rewards
from ..sources import model_hash
from ..stages import RECORD, Stage, check_writable, fingerprint, stopwatch
from .launch import describe_end, is_main_process, run_in_processes, run_script


if TYPE_CHECKING:
    from ..candidates.generation import ImageGenerator
    from ..candidates.shared import SharedFolder
    from ..candidates.turns import Turns
    from ..rewards import Reward

    Models = tuple[ImageGenerator, dict[str, Reward], Turns | None]


GROUPS = "groups.jsonl"


def make_stage(config: CandidatesConfig) -> Stage:
    """
    The stage, with the settings that decide what a row of the pool looks like. Which rows there are is not among them:
    other prompts, variants or filters make more rows, never other ones.
    """
    settings = {
        "model": model_hash(config.model_name_or_path, config.model_revision),
        "sampling": config.sampling(),
        "rewards": {spec.name: config.fingerprint_of(spec) for spec in parse_rewards(config.rewards)},
    }
    if config.originals_from is not None:
        settings["originals"] = record_of(config.originals_from)["fingerprint"]
    return Stage("generate", Path(config.output_dir) / "pool", settings)


def check(config: CandidatesConfig) -> None:
    """Find what is wrong before any work is done."""
    if config.draft_adapter is None:
        check_model(config.model_name_or_path, config.model_revision, config)
    else:
        from ..evaluation.models import Model  # here: it imports PyTorch, and an adapter is not looked at without

        Model.of_candidates(config).check(config)
    specs = parse_rewards(config.rewards)
    config.check_scoring(specs)
    if config.originals_from is not None:
        check_originals(
            config.originals_from, {spec.name: config.fingerprint_of(spec) for spec in specs}, config.sampling()
        )


def main(
    config: CandidatesConfig,
    args: GenerateArguments | None = None,
    set_aside: bool = False,
    tasks: Iterable[int] | None = None,
) -> int:
    """
    Fill `pool/`.

    Args:
        config ([`CandidatesConfig`]):
            Settings.
        args ([`GenerateArguments`], *optional*):
            How much to draw, and where. Defaults to everything, here.
        set_aside (`bool`, *optional*, defaults to `False`):
            Set a pool of other settings aside instead of refusing. A pool is most of what a run costs.
        tasks (`Iterable[int]`, *optional*):
            The tasks that a worker does here, one after another. Defaults to the one that `args` names, if it names one.

    Returns:
        `int`: groups that are not complete, since another process is at work on them.
    """
    args = args or GenerateArguments()
    check(config)
    if args.task is not None:
        return draw_tasks(config, args, [args.task] if tasks is None else tasks)
    if args.executor is not None:
        args.check_installed()
        from .engines import make_options

        make_options(args)
    if config.num_processes > 1 and args.in_tasks:
        raise UsageError(f"num_processes is {config.num_processes}, but the work is done in tasks: leave it out.")
    started = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if args.in_tasks and started:
        raise UsageError("The work is done in tasks, but accelerate has started several processes: start one.")
    if config.num_processes > 1 and started:
        raise UsageError(
            f"num_processes is {config.num_processes}, but accelerate has started the processes: leave it out."
        )
    groups = load_groups(Path(config.output_dir) / "prompts" / GROUPS)
    if args.smoke:
        groups, config = groups[:4], dataclasses.replace(config, target_groups=None)
    check_target(config.target_groups, groups)
    stage = make_stage(config)
    begin(stage, set_aside, in_tasks=args.in_tasks)
    if args.shared_dir is not None and (fetched := fetch(args, stage)):
        _say(f"{fetched} shards fetched from {args.shared_dir}")
    pool = CandidatePool(stage.folder, config.reward_names)
    for shard in pool.damaged:
        _say(f"{shard} is damaged and set aside; its images are made again.")
    if config.originals_from is not None:
        # Before anything is drawn: what is in the pool, no process and no task draws.
        if copied := adopt_originals(config.originals_from, groups, pool):
            _say(f"{copied} originals of {config.originals_from}, as they are")
        groups = with_originals(groups, pool)
    before, failed = len(pool), {}
    if begun := unfinished(pool, groups, config):
        most = sum(len(group.keys) for group in groups) if config.reject_on is None else 3 * len(groups)
        size = image_size(config, config.model_name_or_path, config.model_revision)
        check_writable(stage.folder, (most - before) * image_bytes(*size))
        with stopwatch(stage, write=is_main_process()) as watch:
            if args.executor is not None:
                if not draw_in_tasks(config, args, stage, groups, pool):
                    return unfinished(pool, groups, config)
                remove_leftovers(stage.folder)  # no task is at work any more
            else:
                failed = draw_all(config, groups, pool)
        pool.refresh()
        made = f"{len(pool) - before} images made and scored"
        _say(f"{made}, {len(pool)} in {stage.folder} ({watch.seconds:.0f} s)")
    else:
        _say(f"done before: {len(pool)} images in {stage.folder}")
    for number, code in failed.items():
        _say(f"process {number} ended {describe_end(code)}")
    left = unfinished(pool, groups, config)
    if not left and args.smoke:
        _say(outcome(config, groups, pool))
    elif not left:
        stage.finish(images=len(pool))
        if config.target_groups is not None:
            _say(describe_target(pool, groups, config.reject_on, config.target_groups))
        if begun and not is_main_process():
            # The main process may have ended before, and said that groups were left.
            print(f"[generate] process {os.environ['RANK']} has finished the last group", flush=True)
    elif failed:
        _say(f"{left} groups are left. Run the same command again to go on from here.")
        raise SystemExit(2 if 2 in failed.values() else 1)
    else:
        _say(f"{left} groups are in the hands of another process. If it has ended since, run the same command again.")
    return left


def begin(stage: Stage, set_aside: bool, in_tasks: bool = False) -> None:
    """Make the pool's folder this stage's, or raise a [`UsageError`] if it holds work of other settings."""
    # Processes that start together would move the folder under each other's feet.
    check_writable(stage.folder)
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    # Tasks have no locks: one command starts them all, and a task asks whether the pool is its own before it writes.
    with nullcontext() if in_tasks else alone(stage.folder.parent / ".pool.lock"):
        difference = stage.difference()
        if difference is not None and not set_aside:
            raise UsageError(
                f"{stage.folder} was made under other settings ({difference}). Move it away, or choose another "
                "output_dir; `craft run` sets it aside by itself."
            )
        # Tasks that Slurm runs may be writing there.
        idle = not in_tasks and not (stage.folder / "tasks").exists() and not in_use(stage.folder)
        if difference is not None and in_use(stage.folder):
            raise UsageError(f"{stage.folder}: another process is filling it under other settings ({difference}).")
        message = stage.begin()
        if idle:
            remove_leftovers(stage.folder)
    if message:
        _say(message)


def outcome(config: CandidatesConfig, groups: Sequence[Group], pool: CandidatePool) -> str:
    """What the filter says of the variants of groups, in a line."""
    rows = filter_candidates(groups, pool, config.without_votes())
    reasons = Counter(row["drop_reason"] or "kept" for row in rows if row["variant"])
    counts = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    return f"smoke: of {reasons.total()} variants of {len(groups)} prompts: {counts}"


def unfinished(pool: CandidatePool, groups: Sequence[Group], config: CandidatesConfig) -> int:
    """Groups that still need an image."""
    counted = up_to_target(pool, groups, config.reject_on, config.target_groups)
    return sum(bool(needed(pool, group, config.reject_on)) for group in counted)


def fetch(args: GenerateArguments, stage: Stage) -> int:
    """Fetch what tasks have made in a shared folder, if it is of this stage; the number of shards."""
    from ..candidates.shared import SharedFolder, check_record, fetch

    if not check_record(SharedFolder(args.shared_dir), stage) and args.executor is None:
        raise UsageError(
            f"No task has been at work in shared_dir {args.shared_dir}: give --executor, or leave it out."
        )
    return fetch(args.shared_dir, stage.folder)


def draw_in_tasks(
    config: CandidatesConfig,
    args: GenerateArguments,
    stage: Stage,
    groups: Sequence[Group],
    pool: CandidatePool,
) -> bool:
    """Have the work done by tasks, and fetch it; whether all is done."""
    from ..candidates.shared import SharedFolder, check_record, publish

    rewards = {f"the source of reward {spec.name},": spec.source for spec in parse_rewards(config.rewards)}
    check_reached(
        args.executor,
        model_name_or_path=config.model_name_or_path,
        vae_name_or_path=config.vae_name_or_path,
        draft_adapter=config.draft_adapter,
        **rewards,
    )
    folder = SharedFolder(args.shared_dir or str(stage.folder))
    if args.shared_dir is not None:
        if not check_record(folder, stage):
            folder.check_writable()
            folder.write(RECORD, stage.content().encode())
        folder.write(GROUPS, (Path(config.output_dir) / "prompts" / GROUPS).read_bytes())
        publish(stage.folder, args.shared_dir)

    def left() -> set[int]:
        if args.shared_dir is not None:
            fetch(args, stage)
        pool.refresh()
        counted = up_to_target(pool, groups, config.reject_on, config.target_groups)
        return {i % args.tasks for i, group in enumerate(counted) if needed(pool, group, config.reject_on)}

    made = fingerprint([stage.fingerprint, [group.keys for group in groups], config.reject_on, config.target_groups])
    # Each task has this machine's devices to itself, or shares them with so many others.
    mine = dataclasses.replace(config, num_processes=args.workers if args.executor == "local" else 1)
    from .engines import launch_tasks

    return launch_tasks(args, "generate", (mine, args), folder, made, left)


def draw_tasks(config: CandidatesConfig, args: GenerateArguments, tasks: Iterable[int]) -> int:
    """Do tasks, one after another, in the pool that all of them fill. What they need is loaded once, when one needs it."""
    from ..candidates.shared import SharedFolder, check_record, open_shared, owner

    stage = make_stage(config)
    folder = SharedFolder(args.shared_dir or str(stage.folder))
    if not check_record(folder, stage):
        folder.write(RECORD, stage.content().encode())
    groups = shared_groups(config, folder)
    groups = groups[:4] if args.smoke else groups
    listed = fingerprint([group.keys for group in groups])[:8]
    models = cache(lambda: load_models(config, is_main_process()))
    for task in tasks:
        # Whether enough groups have passed, all groups together say.
        share = Share(task, args.tasks, listed) if config.target_groups is None else None
        pool = open_shared(folder.url, config.reward_names, share)
        pool.check_owner = owner(folder, stage.fingerprint)
        # Those of another pool are in shards of no task, which every share reads.
        drawn = groups if config.originals_from is None else with_originals(groups, pool)
        before = len(pool)
        if any(needed(pool, group, config.reject_on) for group in drawn[task :: args.tasks]):
            draw(config, drawn, pool, models(), is_main_process(), (task, args.tasks))
        print(f"[generate] task {task} of {args.tasks}: {len(pool) - before} images made and scored", flush=True)
    return 0


def shared_groups(config: CandidatesConfig, folder: "SharedFolder") -> list[Group]:
    """The groups that all tasks work on: those in the shared folder, which must be the run's, if there are any here."""
    here = Path(config.output_dir) / "prompts" / GROUPS
    there = folder.read(GROUPS)
    if there is None:
        groups = load_groups(here)
        if folder.path != (Path(config.output_dir) / "pool").absolute():
            folder.write(GROUPS, here.read_bytes())
        return groups
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / GROUPS
        copy.write_bytes(there)
        groups = load_groups(copy)
    if here.is_file() and load_groups(here) != groups:
        raise UsageError(
            f"{folder / GROUPS} holds other groups than {here}: were prompts changed? Remove one of the two."
        )
    return groups


def load_models(config: CandidatesConfig, show_progress: bool) -> "Models":
    """What draws and what scores, and how they take turns if they do."""
    from ..candidates.turns import load_stage
    from ..evaluation.models import load_drawing
    from ..planning.placement import offloads

    specs = parse_rewards(config.rewards)
    offload = offloads(config, config.model_name_or_path, config.model_revision, specs, config.num_processes)
    if offload and show_progress:
        print("[generate] the GPU does not hold pipeline and rewards together: they take turns", flush=True)
    return load_stage(config, specs, offload, load_drawing(config))


def draw_all(
    config: CandidatesConfig, groups: Sequence[Group], pool: CandidatePool, description: str = "Candidates"
) -> dict[int, int]:
    """Draw and score what a pool has not, here or in `num_processes`; the exit codes of those that failed."""
    if config.num_processes == 1:
        draw(config, groups, pool, load_models(config, is_main_process()), is_main_process(), None, description)
        return {}
    # When one is killed the others do its work too.
    shares = [(config, groups, number == 0, description) for number in range(config.num_processes)]
    return run_in_processes(_draw_here, shares)


def draw(
    config: CandidatesConfig,
    groups: Sequence[Group],
    pool: CandidatePool,
    models: "Models",
    show_progress: bool,
    task: tuple[int, int] | None = None,
    description: str = "Candidates",
) -> None:
    """Do this process's share of the work."""
    from ..candidates.drawing import generate_candidates

    generator, rewards, turns = models
    generate_candidates(
        pool, groups, generator, rewards, config.batch_size, config.reject_on, config.target_groups, draw_ahead=True, turns=turns,
        show_progress=show_progress, task=task, description=description,
    )  # fmt: skip
    pool.remember()


def _draw_here(config: CandidatesConfig, groups: Sequence[Group], show_progress: bool, description: str) -> None:
    """As one of `num_processes`. The process that started it has read the shards whole."""
    pool = CandidatePool(Path(config.output_dir) / "pool", config.reward_names, verify=False)
    draw(config, groups, pool, load_models(config, show_progress), show_progress, None, description)


def _say(message: str) -> None:
    """As [`say`], which would wait for all processes to meet: here, each works as if it were alone."""
    if is_main_process():
        print(f"[generate] {message}", flush=True)


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([CandidatesConfig, GenerateArguments], prog=prog)


if __name__ == "__main__":
    raise SystemExit(run_script(main, make_parser))
