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
How a build runs its stages.

Every stage has one output, a file or folder. It is written under a temporary name and renamed when it is complete, so
an output that exists is whole and its stage is skipped, and a build that was killed can be started again.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers


# Added to 1000 times the build's seed, so that no two networks start from the same random numbers.
STAGE_SEEDS = {
    "text": 1,
    "vae": 2,
    "unet": 3,
    "transformer": 4,
    "reconstructions": 21,
    "oracle": 101,
    "inspector": 202,
    "hps": 11,
    "pick": 22,
    "aesthetic": 33,
    "imagereward": 44,
}


@dataclass(frozen=True)
class Stage:
    """One step of a build: `make` writes `output` at the path it is given and may return a log for the report."""

    output: str
    make: Callable[[Path], dict | None]

    @property
    def name(self) -> str:
        """The last part of the output."""
        return Path(self.output).stem


class StagedBuild:
    """
    A build in stages.

    Args:
        output_dir (`Path`):
            Where to build. What only the build needs goes into `output_dir / "work"`.
        seed (`int`):
            Shifts the seeds of all stages.
        device (`torch.device`):
            Where to compute.
    """

    def __init__(self, output_dir: Path, seed: int, device: torch.device):
        self.output_dir, self.seed, self.device = output_dir, seed, device
        self.work = output_dir / "work"
        self.logs = self.work / "logs"

    def stages(self) -> list[Stage]:
        """All stages in order."""
        raise NotImplementedError

    def run(self) -> None:
        """Run all stages whose output is missing."""
        # Loading and writing networks of a few megabytes needs no progress bars.
        transformers.utils.logging.disable_progress_bar()
        diffusers.utils.logging.disable_progress_bar()
        started = time.monotonic()
        stages = self.stages()
        for number, stage in enumerate(stages, start=1):
            self._run_stage(stage, f"[{number}/{len(stages)}] {stage.name}")
        print(f"Built {self.output_dir} in {time.monotonic() - started:.0f} s.", flush=True)

    def _run_stage(self, stage: Stage, title: str) -> None:
        target = self.output_dir / stage.output
        if target.exists():
            print(f"{title}: {stage.output} exists, skipped", flush=True)
            return
        print(title, flush=True)
        started = time.monotonic()
        unfinished = target.with_name(target.name + ".unfinished")
        if unfinished.is_dir():
            shutil.rmtree(unfinished)  # left by a build that was killed
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(1000 * self.seed + STAGE_SEEDS.get(stage.name, 0))
        log = stage.make(unfinished)
        if log is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
            (self.logs / f"{stage.name}.json").write_text(json.dumps(log))
        os.replace(unfinished, target)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # the next stage loads its own gigabytes of rows
        print(f"{title}: wrote {stage.output} in {time.monotonic() - started:.1f} s", flush=True)
