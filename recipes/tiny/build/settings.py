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
Every size and count of a build.

`SHIPPED` made the published files and `FLOW` is the full build of the flow model; `SMOKE` and `FLOW_SMOKE` only show
that the code runs.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Transformer:
    """Shape of a transformer; its feed-forward layers are four times as wide as its hidden states."""

    width: int
    layers: int
    heads: int
    projection: int = 0  # width of the joint embedding, 0 without one


@dataclass(frozen=True)
class NetworkSizes:
    """Shapes of all networks."""

    text_1: Transformer = Transformer(64, 4, 2, 64)
    text_2: Transformer = Transformer(128, 5, 4, 128)
    # Teacher of the text encoders: the first 64 numbers of its embedding match text encoder 1, the others number 2.
    image_tower: Transformer = Transformer(192, 4, 6, 192)
    vae_channels: tuple[int, ...] = (32, 64, 96)
    unet_channels: tuple[int, ...] = (48, 96, 128)
    unet_heads: tuple[int, ...] = (2, 3, 4)
    unet_transformer_layers: tuple[int, ...] = (1, 1, 2)
    unet_size_embedding: int = 32
    norm_groups: int = 16
    hps_vision: Transformer = Transformer(160, 4, 5)
    hps_text: Transformer = Transformer(128, 3, 4, 128)
    pick_vision: Transformer = Transformer(144, 5, 4)
    pick_text: Transformer = Transformer(112, 3, 4, 112)
    aesthetic: Transformer = Transformer(96, 5, 3, 96)
    imagereward_vision: Transformer = Transformer(128, 4, 4)
    imagereward_text: Transformer = Transformer(112, 3, 4)
    head_widths: tuple[int, ...] = (128, 32, 16, 8)  # hidden layers of the aesthetic and ImageReward heads
    oracle: Transformer = Transformer(192, 6, 6, 256)
    inspector_stem: int = 32
    inspector_channels: tuple[int, ...] = (48, 80, 128, 192)


@dataclass(frozen=True)
class Run:
    """Length of one training run."""

    steps: int
    batch_size: int


@dataclass(frozen=True)
class Settings:
    """What a build computes. The counts of scenes, pairs and images are rows; `seed` shifts all training seeds."""

    networks: NetworkSizes = NetworkSizes()
    # Scenes of the base model, and how many of the first ones each network reads.
    scenes: int = 500_000
    scenes_of_vae: int = 200_000
    scenes_of_vae_held_out: int = 512
    scenes_of_classifiers: int = 300_000  # the oracle reads the even ones, the inspector the odd ones
    scenes_of_clip_rewards: int = 150_000  # each, one after the other
    scenes_of_imagereward: int = 200_000
    # Pairs of drawings for the simulated annotators; the last ones are kept for the report.
    pairs: int = 160_000
    pairs_held_out: int = 4_000
    pairs_of_classifiers: int = 30_000
    # Images by the base model.
    reconstructions: int = 50_000
    candidates: int = 40_000
    sampling_steps: int = 20
    sampling_batch_size: int = 1_024
    # The first three counts were measured on the published networks. Those ran for a fixed time, and so did the
    # rewards, whose steps were not kept: the counts below are estimated from that time (see README.md).
    text: Run = Run(1_849, 1_024)
    vae: Run = Run(2_844, 256)
    unet: Run = Run(10_449, 1_024)
    oracle: Run = Run(1_800, 384)
    inspector: Run = Run(2_000, 256)
    hps: Run = Run(3_300, 256)
    pick: Run = Run(3_200, 256)
    aesthetic: Run = Run(1_700, 384)
    imagereward: Run = Run(1_800, 384)
    # The report.
    report_prompts: int | None = None  # of each prompt set; None: all
    report_seeds: int = 2
    report_hard_negative_scenes: int = 2_000
    seed: int = 0

    def scaled(self, factor: float) -> "Settings":
        """The same build with `factor` times as many training steps."""
        if factor <= 0:
            raise ValueError(f"`factor` must be positive, got {factor}.")
        runs = {name: value for name, value in vars(self).items() if isinstance(value, Run)}
        scaled = {name: Run(max(1, round(run.steps * factor)), run.batch_size) for name, run in runs.items()}
        return dataclasses.replace(self, **scaled)


@dataclass(frozen=True)
class FlowSettings:
    """What a build of the flow model computes, from a tiny SDXL; the defaults are those of the full build."""

    transformer: Transformer = Transformer(192, 5, 6)
    patch_size: int = 2
    scenes: int = 60_000
    scenes_held_out: int = 512
    run: Run = Run(10_000, 64)
    learning_rate: float = 1e-3
    bfloat16: bool = False  # on a CPU too
    seconds_between_checkpoints: float = 180
    seed: int = 0
    # SHA-256 of the weights of the tiny SDXL that teaches, and of the transformer that the training starts from, if any.
    teacher: str = ""
    init: str | None = None

    def transformer_config(self, teacher: Path) -> dict:
        """Arguments of `SD3Transformer2DModel` on the latents and the text of the tiny SDXL in the folder `teacher`."""
        text, text_2, unet = (
            json.loads((teacher / part / "config.json").read_text())
            for part in ("text_encoder", "text_encoder_2", "unet")
        )
        return {
            "sample_size": unet["sample_size"],
            "patch_size": self.patch_size,
            "in_channels": unet["in_channels"],
            "out_channels": unet["in_channels"],
            "num_layers": self.transformer.layers,
            "attention_head_dim": self.transformer.width // self.transformer.heads,
            "num_attention_heads": self.transformer.heads,
            "joint_attention_dim": text["hidden_size"] + text_2["hidden_size"],
            "caption_projection_dim": self.transformer.width,
            # SD3 has the first encoder's pooled text too, which keeps its width.
            "pooled_projection_dim": text["hidden_size"] + text_2["projection_dim"],
            "pos_embed_max_size": unet["sample_size"] // self.patch_size,
            "qk_norm": "rms_norm",  # keeps attention stable at high learning rates
        }


SHIPPED = Settings()
SMOKE = Settings(
    networks=NetworkSizes(
        text_1=Transformer(16, 1, 2, 16),
        text_2=Transformer(16, 1, 2, 16),
        image_tower=Transformer(16, 1, 2, 32),
        vae_channels=(8, 8, 8),
        unet_channels=(8, 16, 16),
        unet_heads=(1, 2, 2),
        unet_transformer_layers=(1, 1, 1),
        unet_size_embedding=8,
        norm_groups=4,
        hps_vision=Transformer(16, 1, 2),
        hps_text=Transformer(16, 1, 2, 16),
        pick_vision=Transformer(16, 1, 2),
        pick_text=Transformer(16, 1, 2, 16),
        aesthetic=Transformer(16, 1, 2, 16),
        imagereward_vision=Transformer(16, 1, 2),
        imagereward_text=Transformer(16, 1, 2),
        oracle=Transformer(16, 1, 2, 16),
        inspector_stem=8,
        inspector_channels=(8, 8, 8, 8),
    ),
    scenes=160,
    scenes_of_vae=160,
    scenes_of_vae_held_out=16,
    scenes_of_classifiers=160,
    scenes_of_clip_rewards=80,
    scenes_of_imagereward=160,
    pairs=120,
    pairs_held_out=40,
    pairs_of_classifiers=16,
    reconstructions=20,
    candidates=40,
    sampling_steps=4,
    sampling_batch_size=32,
    text=Run(3, 16),
    vae=Run(3, 16),
    unet=Run(3, 16),
    oracle=Run(3, 8),
    inspector=Run(3, 8),
    hps=Run(3, 8),
    pick=Run(3, 8),
    aesthetic=Run(3, 8),
    imagereward=Run(3, 8),
    report_prompts=12,
    report_seeds=2,
    report_hard_negative_scenes=12,
)
FLOW = FlowSettings()
FLOW_SMOKE = FlowSettings(
    transformer=Transformer(32, 1, 2),
    scenes=48,
    scenes_held_out=16,
    run=Run(6, 8),
    seconds_between_checkpoints=0,
)


def claim(output_dir: Path, settings: Settings | FlowSettings, outputs: tuple[str, ...]) -> str | None:
    """Note in the output folder what is built there; an error message if it already holds something else."""
    wanted = json.loads(json.dumps(dataclasses.asdict(settings)))
    record = output_dir / "work" / "settings.json"
    if record.exists():
        built = json.loads(record.read_text())
    elif (output_dir / "metrics.json").exists():  # a complete build whose `work` was deleted
        built = json.loads((output_dir / "metrics.json").read_text())["settings"]
    elif any((output_dir / output).exists() for output in outputs):
        return (
            f"{output_dir} holds results but not how they were made (work/settings.json); choose another --output_dir"
        )
    else:
        record.parent.mkdir(parents=True, exist_ok=True)
        unfinished = record.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(wanted, indent=1) + "\n")
        unfinished.replace(record)
        return None
    different = sorted(name for name in wanted.keys() | built.keys() if wanted.get(name) != built.get(name))
    if different:
        return (
            f"{output_dir} holds a build with other settings ({', '.join(different)}); give the same options as then, "
            "or choose another --output_dir"
        )
    return None
