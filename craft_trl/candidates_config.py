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


"""Settings of the stages that make the training set: expand, generate, filter."""

from dataclasses import dataclass, field
from typing import Literal

from .dataset import FilterConfig
from .errors import UsageError
from .expansion.config import ExpansionConfig
from .generation import SamplingConfig
from .prompts import PromptsConfig


@dataclass
class CandidatesConfig(PromptsConfig, ExpansionConfig, SamplingConfig, FilterConfig):
    """
    Configuration of `craft expand`, `craft generate` and `craft filter`.

    Parameters:
        model_name_or_path (`str`):
            Hub id or folder of the pipeline that draws the candidates, the model to be tuned, or a single `.safetensors`
            file, see [`load_pipeline`].
        model_revision (`str`, *optional*):
            Revision on the Hub.
        rewards (`list[str]`, *optional*, defaults to `["hpsv2", "pickscore", "aesthetic"]`):
            Rewards that score every candidate, as `NAME` or `NAME=SOURCE`, see [`rewards`].
        generate_all (`bool`, *optional*, defaults to `False`):
            Make every variant of every group. By default a group stops at its first failure where the filter permits.
        target_groups (`int`, *optional*):
            Stop as soon as this many groups have passed the filter, and filter those up to there only. Needs
            `filter_level: group` and early rejection. Defaults to working through all groups.
        num_processes (`int`, *optional*, defaults to `1`):
            Processes of `craft generate` on this machine, which share out the GPUs and the groups.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sample, of the choice of templates, and of the starting noise.
        group_seeds (`"same"` or `"distinct"`, *optional*, defaults to `"same"`):
            Whether the images of a group start from the same noise or each from its own.
        seed_by (`"position"` or `"prompt"`, *optional*, defaults to `"position"`):
            Whether the noise of a group is that of its place in the list of prompts, or of its prompt, see
            [`make_groups`]. With `prompt`, prompts may be added anywhere, and nothing that is in the pool is drawn again.
        output_dir (`str`):
            Folder of the run. The stages write `prompts/`, `pool/` and `dataset/` into it.

        > Parameters that control the push to the Hub

        push_to_hub (`bool`, *optional*, defaults to `False`):
            Whether `craft filter` puts the dataset on the Hub, see `craft push`.
        hub_dataset_id (`str`, *optional*):
            `org/name` of the dataset on the Hub.
        hub_private_repo (`bool`, *optional*):
            Whether it is private. Defaults to what it is, or the account's setting for a new one.

        The parameters of the prompts, the expansion, the sampler and the filter are those of [`PromptsConfig`],
        [`ExpansionConfig`], [`SamplingConfig`] and [`FilterConfig`].
    """

    model_name_or_path: str = field(
        default=None,
        metadata={
            "help": "Hub id, folder or single .safetensors file of the pipeline that draws the candidates: the model to be "
            "tuned."
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "Revision on the Hub."})
    rewards: list[str] = field(
        default_factory=lambda: ["hpsv2", "pickscore", "aesthetic"],
        metadata={"help": "Rewards that score every candidate, as NAME or NAME=SOURCE."},
    )
    generate_all: bool = field(
        default=False,
        metadata={
            "help": "Make every variant of every group. By default a group stops at its first failure where the "
            "filter permits."
        },
    )
    target_groups: int | None = field(
        default=None,
        metadata={"help": "Stop as soon as this many groups have passed the filter. Defaults to all groups."},
    )
    num_processes: int = field(
        default=1, metadata={"help": "Processes of `craft generate`, which share out the GPUs and the groups."}
    )
    seed: int = field(
        default=0,
        metadata={"help": "Seed of the sample, of the choice of templates, and of the starting noise."},
    )
    group_seeds: Literal["same", "distinct"] = field(
        default="same",
        metadata={"help": "Whether the images of a group start from the same noise or each from its own."},
    )
    seed_by: Literal["position", "prompt"] = field(
        default="position",
        metadata={
            "help": "Whether the noise of a group is that of its place in the list of prompts, or of its prompt, so that "
            "prompts may be added anywhere."
        },
    )
    output_dir: str = field(
        default=None,
        metadata={"help": "Folder of the run. The stages write prompts/, pool/ and dataset/ into it."},
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "Whether `craft filter` puts the dataset on the Hub, see `craft push`."}
    )
    hub_dataset_id: str | None = field(default=None, metadata={"help": "org/name of the dataset on the Hub."})
    hub_private_repo: bool | None = field(
        default=None,
        metadata={"help": "Whether it is private. Defaults to what it is, or the account's setting for a new one."},
    )

    def __post_init__(self):
        PromptsConfig.__post_init__(self)
        ExpansionConfig.__post_init__(self)
        SamplingConfig.__post_init__(self)
        FilterConfig.__post_init__(self)
        for name in ("model_name_or_path", "output_dir", "rewards"):
            if not getattr(self, name):
                raise UsageError(f"{name} is missing: give it in the recipe or as --{name}.")
        for name in ("target_groups", "num_processes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.target_groups is not None and self.reject_on is None:
            raise UsageError(
                f"target_groups is {self.target_groups}, but groups pass or fail only under filter_level: group, and "
                "are counted only without generate_all: leave one of them out."
            )
        self.check_rewards(self.reward_names)
        if self.push_to_hub and not self.hub_dataset_id:
            raise UsageError("push_to_hub needs the repository: hub_dataset_id: org/name.")

    @property
    def reward_names(self) -> list[str]:
        """Names of the score columns."""
        return [reward.partition("=")[0] for reward in self.rewards]

    @property
    def reject_on(self) -> list[str] | None:
        """Rewards of the early rejection, or `None` where the filter needs every image."""
        if self.generate_all or self.filter_level == "image":
            return None
        return self.filter_rewards or self.reward_names
