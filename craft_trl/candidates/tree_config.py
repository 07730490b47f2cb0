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

"""Settings of trees of transitions, and what they cannot be drawn with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ..errors import UsageError
from ..families import get_family
from ..families.checks import model_files
from ..ranges import Range, check_ranges
from ..sources import model_hash
from ..stages import fingerprint
from .config import CandidatesConfig


@dataclass
class TreeConfig:
    """
    How trees of transitions are drawn, see [`draw_trees`], and which pairs are taken from them. The defaults are those of SPO
    (https://huggingface.co/papers/2406.04314) for SD 1.5.

    Parameters:
        tree_steps (`int`, *optional*, defaults to `20`):
            Denoising steps, of DDIM with `eta = 1`.
        first_branch (`int`, *optional*, defaults to `4`):
            Steps before the first that branches: above a timestep of 750 what is decoded says little of the image.
        num_branches (`int`, *optional*, defaults to `4`):
            Latents that are drawn from the same ones in each step from there on.
        min_preference (`float`, *optional*, defaults to `0.3`):
            Of a softmax over the best branch and the worst, by how much their shares must differ for them to be a pair. SPO's
            value for SDXL is 0.4.
    """

    tree_steps: Annotated[int, Range(2, 1000)] = field(
        default=20, metadata={"help": "Denoising steps of SPO's trees."}
    )
    first_branch: Annotated[int, Range(0, 999)] = field(
        default=4, metadata={"help": "Steps of SPO's trees before the first that branches."}
    )
    num_branches: Annotated[int, Range(2, 64)] = field(
        default=4, metadata={"help": "Latents that SPO's trees draw from the same ones in each step."}
    )
    min_preference: Annotated[float, Range(0, 1, "[)")] = field(
        default=0.3,
        metadata={
            "help": "By how much the best branch must be preferred to the worst for the two to be a pair of SPO's."
        },
    )

    def __post_init__(self):
        check_ranges(self)
        if self.first_branch >= self.tree_steps:
            raise UsageError(
                f"first_branch is {self.first_branch}, and there are {self.tree_steps} steps: none would branch."
            )

    @property
    def evaluations(self) -> int:
        """Noisy latents of a tree that the denoiser sees; with guidance it sees each twice."""
        return self.first_branch + 1 + self.num_branches * (self.tree_steps - self.first_branch - 1)


def check_diffusion(model: str, revision: str | None = None) -> None:
    """Raise a [`UsageError`] unless a model is of diffusion, whose steps have chance in them."""
    pipeline_class = model_files(model, revision).index["_class_name"]
    if get_family(pipeline_class).noise == "flow":
        raise UsageError(
            f"A {pipeline_class} is of flow matching, whose steps have no chance in them: SPO compares steps of diffusion, and "
            "its paper leaves flows out. Take another model, or another method."
        )


def check_trees(config: CandidatesConfig) -> None:
    """Raise a [`UsageError`] unless trees of transitions can be drawn as a recipe of candidates says."""
    check_diffusion(config.model_name_or_path, config.model_revision)
    unused = {"draft_adapter": None, "negative_prompt": None, "guidance_rescale": 0.0, "guidance_cutoff": None}
    for name, without in {**unused, "cache_interval": None}.items():
        if getattr(config, name) != without:
            raise UsageError(
                f"{name} is {getattr(config, name)!r}, and SPO has no place for it: its steps are those of the model, guided "
                "away from the empty prompt. Leave out the arm spo_offline, or this option."
            )


def tree_settings(config: CandidatesConfig, tree: TreeConfig, rewards: Mapping[str, str]) -> dict:
    """
    All that decides what a tree of a prompt and a seed looks like, as JSON values.

    Args:
        config ([`CandidatesConfig`]):
            How images are drawn: of that, trees have another scheduler and number of steps.
        tree ([`TreeConfig`]):
            How trees are.
        rewards (`Mapping[str, str]`):
            What identifies each reward.
    """
    sampling = {k: v for k, v in config.sampling().items() if k not in ("scheduler", "num_inference_steps")}
    model = model_hash(config.model_name_or_path, config.model_revision)
    shape = {name: getattr(tree, name) for name in ("tree_steps", "first_branch", "num_branches")}
    return {"model": model, "sampling": sampling, "rewards": dict(rewards), "tree": shape}


def tree_file(folder: Path, settings: Mapping, prompt: str, seed: int) -> Path:
    """Where the tree of a prompt and a seed lies: its name says what it was drawn from."""
    return folder / f"{fingerprint([settings, prompt, seed])[:24]}.safetensors"
