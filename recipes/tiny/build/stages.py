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

"""The stages of the build of the tiny model, its rewards and evaluators, and the order they run in."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .assembly import load_part, save_pipeline
from .data import render_pairs, render_scenes
from .networks import noise_scheduler
from .preferences import PreferenceData
from .prompts import write_prompt_sets
from .report import gate_table, write_report
from .samples import write_candidates, write_reconstructions
from .settings import Settings
from .staging import Stage, StagedBuild
from .train_classifiers import train_inspector, train_oracle
from .train_imagereward import train_imagereward
from .train_rewards import train_aesthetic, train_hps, train_pick
from .train_text import train_text_encoders
from .train_tokenizers import write_tokenizers
from .train_unet import train_unet
from .train_vae import train_vae


class Build(StagedBuild):
    """
    A build of the tiny model, its rewards and evaluators.

    Args:
        output_dir (`Path`):
            Where to build. What only the build needs goes into `output_dir / "work"`.
        settings ([`Settings`]):
            Sizes and counts.
        device (`torch.device`):
            Where to train.
        num_workers (`int`):
            Processes that render.
        compiled (`bool`):
            Whether to compile the losses of the autoencoder and the UNet.
    """

    def __init__(self, output_dir: Path, settings: Settings, device: torch.device, num_workers: int, compiled: bool):
        super().__init__(output_dir, settings.seed, device)
        self.settings, self.num_workers, self.compiled = settings, num_workers, compiled
        work = self.work
        self.tokenizers, self.scenes, self.pairs = work / "tokenizers", work / "scenes", work / "pairs"
        self.text, self.vae, self.unet = work / "text", work / "vae", work / "unet"
        self.reconstructions, self.candidates = work / "reconstructions", work / "candidates"
        self.oracle = work / "oracle"
        self.pipeline = output_dir / "pipeline"

    def stages(self) -> list[Stage]:
        """All stages in order."""
        settings, device, scenes, pairs = self.settings, self.device, self.scenes, self.pairs
        reconstructions, candidates = self.reconstructions, self.candidates
        preferences = PreferenceData(pairs, candidates, self.oracle)
        tokenizer, tokenizer_2 = self.tokenizers / "tokenizer", self.tokenizers / "tokenizer_2"
        wordpiece = self.tokenizers / "wordpiece"
        return [
            Stage("prompts", write_prompt_sets),
            Stage("work/tokenizers", write_tokenizers),
            Stage("work/scenes", lambda out: render_scenes(out, self.tokenizers, settings.scenes, self.num_workers)),
            Stage("work/pairs", lambda out: render_pairs(out, self.tokenizers, settings.pairs, self.num_workers)),
            Stage("work/text", lambda out: train_text_encoders(out, scenes, settings, device)),
            Stage("work/vae", lambda out: train_vae(out, scenes, settings, device, self.compiled)),
            Stage(
                "work/unet",
                lambda out: train_unet(out, scenes, self.text, self.vae, settings, device, self.compiled),
            ),
            Stage("pipeline", self._assemble_pipeline),
            Stage(
                "work/reconstructions",
                lambda out: write_reconstructions(out, scenes, self.pipeline, settings, device),
            ),
            Stage("work/candidates", lambda out: write_candidates(out, pairs, self.pipeline, settings, device)),
            Stage(
                "work/oracle",
                lambda out: train_oracle(out, scenes, pairs, reconstructions, candidates, settings, device),
            ),
            Stage(
                "evaluators/inspector",
                lambda out: train_inspector(out, scenes, pairs, reconstructions, settings, device),
            ),
            Stage("rewards/hps", lambda out: train_hps(out, scenes, preferences, tokenizer_2, settings, device)),
            Stage("rewards/pick", lambda out: train_pick(out, scenes, preferences, tokenizer, settings, device)),
            Stage("rewards/aesthetic", lambda out: train_aesthetic(out, preferences, settings, device)),
            Stage(
                "evaluators/imagereward",
                lambda out: train_imagereward(out, scenes, preferences, wordpiece, settings, device),
            ),
            Stage("metrics.json", self._write_report),
        ]

    def _assemble_pipeline(self, output: Path) -> None:
        """Put the trained parts, the tokenizers and the scheduler together, in half precision."""
        pipeline = StableDiffusionXLPipeline(
            vae=load_part(AutoencoderKL, self.vae),
            text_encoder=CLIPTextModel.from_pretrained(self.text / "text_encoder", dtype=torch.float16),
            text_encoder_2=CLIPTextModelWithProjection.from_pretrained(
                self.text / "text_encoder_2", dtype=torch.float16
            ),
            tokenizer=CLIPTokenizer.from_pretrained(self.tokenizers / "tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(self.tokenizers / "tokenizer_2"),
            unet=load_part(UNet2DConditionModel, self.unet),
            scheduler=noise_scheduler(),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
        save_pipeline(pipeline, output)

    def _write_report(self, output: Path) -> None:
        report = write_report(output, self.output_dir, self.pairs, self.logs, self.settings, self.device)
        print(gate_table(report), flush=True)
