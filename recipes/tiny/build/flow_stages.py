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

"""The stages of the build of the flow model and the order they run in."""

import dataclasses
import json
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel

from .assembly import load_part
from .checkpoints import Checkpoint, read_average
from .data import SCENE_COLUMNS, render_scenes
from .flow_networks import assemble_flow_pipeline
from .settings import FlowSettings
from .staging import Stage, StagedBuild
from .train_flow import encode_latents, train_flow


COLUMNS = {name: SCENE_COLUMNS[name] for name in ("images", "tokens")}
FIRST_SEED, SEEDS = 1_000_000_000, 1_000_000  # of the batches, and how many a build has


class FlowBuild(StagedBuild):
    """
    A build of the flow model.

    Args:
        output_dir (`Path`):
            Where to build. What only the build needs goes into `output_dir / "work"`.
        settings ([`FlowSettings`]):
            Sizes and counts.
        teacher (`Path`):
            Folder of the tiny SDXL.
        init (`Path`, *optional*):
            Folder of a pipeline whose transformer to start from.
        device (`torch.device`):
            Where to train.
        num_workers (`int`):
            Processes that render.
    """

    def __init__(
        self,
        output_dir: Path,
        settings: FlowSettings,
        teacher: Path,
        init: Path | None,
        device: torch.device,
        num_workers: int,
    ):
        super().__init__(output_dir, settings.seed, device)
        self.settings, self.teacher, self.init, self.num_workers = settings, teacher, init, num_workers
        work = self.work
        self.scenes, self.latents, self.transformer = work / "scenes", work / "latents", work / "transformer"
        self.checkpoint = work / "checkpoint.safetensors"

    def stages(self) -> list[Stage]:
        """All stages in order."""
        teacher, scenes, settings = self.teacher, self.scenes, self.settings
        return [
            Stage("work/scenes", lambda out: render_scenes(out, teacher, settings.scenes, self.num_workers, COLUMNS)),
            Stage("work/latents", lambda out: encode_latents(out, scenes, teacher, settings, self.device)),
            Stage("work/transformer", self._train),
            Stage("pipeline", self._assemble),
            Stage("metrics.json", self._write_report),
        ]

    def assemble_checkpoint(self, folder: Path) -> None:
        """Write the pipeline of the newest checkpoint to `folder`."""
        transformer = SD3Transformer2DModel(**self.settings.transformer_config(self.teacher))
        steps = read_average(self.checkpoint, list(transformer.parameters()))
        assemble_flow_pipeline(folder, transformer, self.teacher)
        print(f"Wrote {folder} after {steps} of {self.settings.run.steps} steps.", flush=True)

    def _train(self, output: Path) -> dict:
        settings = self.settings
        checkpoint = Checkpoint(
            self.checkpoint, FIRST_SEED + SEEDS * settings.seed, settings.seconds_between_checkpoints
        )
        return train_flow(
            output, checkpoint, self.teacher, self.init, self.scenes, self.latents, settings, self.device
        )

    def _assemble(self, output: Path) -> None:
        assemble_flow_pipeline(output, load_part(SD3Transformer2DModel, self.transformer), self.teacher)

    def _write_report(self, output: Path) -> None:
        training = json.loads((self.logs / "transformer.json").read_text())
        report = {"settings": dataclasses.asdict(self.settings), "training": {"transformer": training}}
        output.write_text(json.dumps(report, indent=1) + "\n")
