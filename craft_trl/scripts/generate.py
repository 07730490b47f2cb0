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
```

Processes share nothing but the pool's folder. So the same command may also be run on several machines, or a second time
while the first one is at work.
"""

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..candidates.config import CandidatesConfig, GenerateArguments
from ..candidates.groups import Group, load_groups
from ..candidates.pool import CandidatePool, alone, in_use, remove_leftovers
from ..candidates.rejection import check_target, describe_target, needed, up_to_target
from ..candidates.sizes import image_bytes, image_size
from ..errors import UsageError, exit_code
from ..families.checks import check_model
from ..filtering.filter import filter_candidates
from ..parser import CraftParser
from ..rewards import parse_rewards
from ..sources import model_hash
from ..stages import Stage, check_writable, stopwatch
from .launch import is_main_process, run_script


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
    return Stage("generate", Path(config.output_dir) / "pool", settings)


def check(config: CandidatesConfig) -> None:
    """Find what is wrong before any work is done."""
    check_model(config.model_name_or_path, config.model_revision, config)
    config.check_scoring(parse_rewards(config.rewards))


def main(config: CandidatesConfig, args: GenerateArguments | None = None, set_aside: bool = False) -> int:
    """
    Fill `pool/`.

    Args:
        config ([`CandidatesConfig`]):
            Settings.
        args ([`GenerateArguments`], *optional*):
            How much to draw. Defaults to everything.
        set_aside (`bool`, *optional*, defaults to `False`):
            Set a pool of other settings aside instead of refusing. A pool is most of what a run costs.

    Returns:
        `int`: groups that are not complete, since another process is at work on them.
    """
    check(config)
    if config.num_processes > 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(
            f"num_processes is {config.num_processes}, but accelerate has started the processes: leave it out."
        )
    groups = load_groups(Path(config.output_dir) / "prompts" / "groups.jsonl")
    smoke = args is not None and args.smoke
    if smoke:
        groups, config = groups[:4], dataclasses.replace(config, target_groups=None)
    check_target(config.target_groups, groups)
    stage = make_stage(config)
    begin(stage, set_aside)
    pool = CandidatePool(stage.folder, config.reward_names)
    for shard in pool.damaged:
        _say(f"{shard} is damaged and set aside; its images are made again.")
    before, failed = len(pool), {}
    if begun := unfinished(pool, groups, config):
        most = sum(len(group.keys) for group in groups) if config.reject_on is None else 3 * len(groups)
        size = image_size(config, config.model_name_or_path, config.model_revision)
        check_writable(stage.folder, (most - before) * image_bytes(*size))
        with stopwatch(stage, write=is_main_process()) as watch:
            if config.num_processes == 1:
                draw(config, groups, pool, show_progress=is_main_process())
            else:
                failed = draw_in_processes(config, groups)
        pool.refresh()
        made = f"{len(pool) - before} images made and scored"
        _say(f"{made}, {len(pool)} in {stage.folder} ({watch.seconds:.0f} s)")
    else:
        _say(f"done before: {len(pool)} images in {stage.folder}")
    for number, code in failed.items():
        _say(f"process {number} ended " + (f"by signal {-code}" if code < 0 else f"with exit code {code}"))
    left = unfinished(pool, groups, config)
    if not left and smoke:
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


def begin(stage: Stage, set_aside: bool) -> None:
    """Make the pool's folder this stage's, or raise a [`UsageError`] if it holds work of other settings."""
    # Processes that start together would move the folder under each other's feet.
    check_writable(stage.folder)
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(stage.folder.parent / ".pool.lock"):
        difference = stage.difference()
        if difference is not None and not set_aside:
            raise UsageError(
                f"{stage.folder} was made under other settings ({difference}). Move it away, or choose another "
                "output_dir; `craft run` sets it aside by itself."
            )
        idle = not in_use(stage.folder)
        if difference is not None and not idle:
            raise UsageError(f"{stage.folder}: another process is filling it under other settings ({difference}).")
        message = stage.begin()
        if idle:
            remove_leftovers(stage.folder)
    if message:
        _say(message)


def outcome(config: CandidatesConfig, groups: Sequence[Group], pool: CandidatePool) -> str:
    """What the filter says of the variants of groups, in a line."""
    rows = filter_candidates(groups, pool, dataclasses.replace(config, veto=None))
    reasons = Counter(row["drop_reason"] or "kept" for row in rows if row["variant"])
    counts = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    return f"smoke: of {reasons.total()} variants of {len(groups)} prompts: {counts}"


def unfinished(pool: CandidatePool, groups: Sequence[Group], config: CandidatesConfig) -> int:
    """Groups that still need an image."""
    counted = up_to_target(pool, groups, config.reject_on, config.target_groups)
    return sum(bool(needed(pool, group, config.reject_on)) for group in counted)


def draw(config: CandidatesConfig, groups: Sequence[Group], pool: CandidatePool, show_progress: bool) -> None:
    """Do this process's share of the work."""
    from ..candidates.drawing import generate_candidates
    from ..candidates.turns import load_stage
    from ..planning.placement import offloads

    specs = parse_rewards(config.rewards)
    offload = offloads(config, config.model_name_or_path, config.model_revision, specs, config.num_processes)
    if offload and show_progress:
        print("[generate] the GPU does not hold pipeline and rewards together: they take turns", flush=True)
    generator, rewards, turns = load_stage(config, specs, offload)
    generate_candidates(
        pool,
        groups,
        generator,
        rewards,
        config.batch_size,
        config.reject_on,
        config.target_groups,
        draw_ahead=True,
        turns=turns,
        show_progress=show_progress,
    )
    pool.remember()


def draw_in_processes(config: CandidatesConfig, groups: Sequence[Group]) -> dict[int, int]:
    """
    Do the work in `num_processes` processes and return the exit codes of those that failed.

    Not through `accelerate launch`: when one process is killed, say for its memory, it ends all others. Here they go on,
    and do its work too.
    """
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_draw_in_process, args=(config, groups, number), daemon=True)
        for number in range(config.num_processes)
    ]
    # Ctrl-C reaches every process of a terminal. The others are started with it blocked, and this one ends them.
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        for process in processes:
            process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid is not None:
                process.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return {number: process.exitcode for number, process in enumerate(processes) if process.exitcode}


def _draw_in_process(config: CandidatesConfig, groups: Sequence[Group], number: int) -> None:
    os.environ["LOCAL_RANK"] = str(number)
    # Ends in order: what has been drawn is still written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The parent has read the shards whole.
    pool = CandidatePool(Path(config.output_dir) / "pool", config.reward_names, verify=False)
    sys.exit(exit_code(lambda: draw(config, groups, pool, show_progress=number == 0)))


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _say(message: str) -> None:
    """As [`say`], which would wait for all processes to meet: here, each works as if it were alone."""
    if is_main_process():
        print(f"[generate] {message}", flush=True)


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([CandidatesConfig, GenerateArguments], prog=prog)


if __name__ == "__main__":
    raise SystemExit(run_script(main, make_parser))
