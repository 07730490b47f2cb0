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


"""What a bake-off does in several processes of this machine at a time: its trainings, and its evaluation."""

import importlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..bakeoff.arms import method_of
from . import evaluate
from .launch import describe_end, run_in_processes, say


if TYPE_CHECKING:
    from ..evaluation.config import EvaluationConfig
    from ..evaluation.evaluate import Evaluation
    from .bakeoff import Bakeoff


def train_together(bakeoff: "Bakeoff") -> None:
    """Do the trainings that are not done, `num_processes` of them at a time, each with a log beside its model."""
    jobs = [(arm, seed) for arm in bakeoff.trained for seed in bakeoff.config.seeds]
    left = [job for job in jobs if not bakeoff.is_trained(*job)]
    if len(left) < len(jobs):
        say(f"[bakeoff] {len(jobs) - len(left)} of {len(jobs)} trainings were done before")
    logs = [bakeoff.folder_of(*job).with_name("train.log") for job in left]
    begun: dict[int, float] = {}

    def tell(number: int, code: int | None) -> None:
        which = f"[bakeoff] {left[number][0]}, seed {left[number][1]}:"
        if code is None:
            begun[number] = time.monotonic()
            say(f"{which} training, with its output in {logs[number]}")
        elif code:
            say(f"{which} the training ended {describe_end(code)}, see {logs[number]}")
        else:
            say(f"{which} trained ({time.monotonic() - begun[number]:.0f} s)")

    shares = [(job[0], bakeoff.training_argv(*job), log, bakeoff.devices) for job, log in zip(left, logs, strict=True)]
    if failed := run_in_processes(_train_here, shares, bakeoff.config.num_processes, tell):
        say(f"[bakeoff] {len(failed)} of {len(jobs)} trainings failed. Run the same command again to go on from here.")
        raise SystemExit(2 if 2 in failed.values() else 1)


def _train_here(arm: str, argv: Sequence[str], log: Path, devices: Sequence[Mapping[str, str]]) -> None:
    """As one of `num_processes`. The Trainer takes the first device that it sees."""
    if devices:
        os.environ.update(devices[int(os.environ.pop("CRAFT_TRL_PLACE"))])
    _say_into(log)
    script = importlib.import_module(f".{method_of(arm).script}", __package__)
    script.main(*script.make_parser().parse_args_and_config(argv))


def judge_together(evaluation: "Evaluation", processes: int) -> None:
    """Draw and judge what an evaluation has not. What a process that fails leaves is made later, with the comparison."""
    start = time.monotonic()
    shares = [(evaluation.config, number, processes) for number in sorted(evaluation.tasks_left(processes))]
    failed = run_in_processes(_judge_here, shares)
    for number, code in failed.items():
        say(f"[bakeoff] process {shares[number][1]} of the evaluation ended {describe_end(code)}")
    if shares:
        say(f"[bakeoff] images of {len(evaluation.models)} models drawn and judged ({time.monotonic() - start:.0f} s)")


def _judge_here(config: "EvaluationConfig", number: int, processes: int) -> None:
    """As one of `num_processes`, of which the first one shows how far it is."""
    if number:
        _say_into(Path(config.output_dir) / f"process-{number}.log")
    from ..devices import default_device
    from ..evaluation.evaluate import Evaluation

    evaluation = Evaluation(config, (number, processes))
    evaluation.run(default_device(), evaluate.judges_one_by_one(evaluation, processes))


def _say_into(log: Path) -> None:
    """Write what this process says to the end of a file, as the bars of several would overwrite each other."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
