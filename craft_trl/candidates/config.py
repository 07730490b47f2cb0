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

import importlib.util
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ..errors import UsageError
from ..expansion.config import ExpansionConfig
from ..families.schedulers import FLOW_SCHEDULERS, SCHEDULERS
from ..parser import suggest
from ..prompts.config import PromptsConfig
from ..ranges import Count, Pixels, Processes, Range, Seed, Share, check_ranges
from ..rewards.config import ScoringConfig
from ..sources import adapter_hash, looks_like_hub_id, source_hash
from .executors import ExecutorArguments
from .filter_config import FilterConfig


@dataclass
class SamplingConfig:
    """
    How images are drawn; the names are those of diffusers' pipelines.

    Parameters:
        scheduler (`str`, *optional*):
            Class name of a diffusers scheduler, such as `DDIMScheduler`. Defaults to the model's own.
        num_inference_steps (`int`, *optional*, defaults to `50`):
            Denoising steps.
        guidance_scale (`float`, *optional*, defaults to `5.0`):
            Scale of guidance, in the sense of the model's pipeline: of classifier-free guidance, where at 1 and below there is
            none; of FLUX.1-dev and FLUX.2-dev an input of the denoiser; of Z-Image one less than the usual, 0 being none.
        guidance_rescale (`float`, *optional*, defaults to `0.0`):
            How far guidance is scaled back to the contrast of the prediction without it, against overexposure in models
            of zero terminal SNR (https://huggingface.co/papers/2305.08891, section 3.4).
        guidance_cutoff (`float`, *optional*):
            Share of the steps, the first ones, that are guided: the rest takes half the work. Defaults to all steps.
        timestep_spacing (`"linspace"`, `"leading"` or `"trailing"`, *optional*):
            Which of the noise levels that a model was trained on are steps, as diffusers' schedulers have it. Defaults to what
            the model's scheduler says; models that draw in a few steps mostly want `trailing`.
        cache_interval (`int`, *optional*):
            After the first steps, compute the denoiser in every so many steps only, and extrapolate what it says in between, by
            diffusers' TaylorSeer (https://huggingface.co/papers/2503.06923) in its light form. Defaults to every step.
        negative_prompt (`str`, *optional*):
            Negative prompt of every image.
        max_sequence_length (`int`, *optional*):
            Tokens of a prompt that are read, of models whose pipelines take it. Defaults to the pipeline's own.
        height (`int`, *optional*):
            Height in pixels. Defaults to the model's own.
        width (`int`, *optional*):
            Width in pixels. Defaults to the model's own.
        dtype (`"float32"`, `"float16"` or `"bfloat16"`, *optional*, defaults to `"float32"`):
            Precision of the pipeline. A VAE that its config says overflows in float16 is kept in float32 there, and an
            image that comes out broken in 16 bits is drawn again in float32.
        vae_name_or_path (`str`, *optional*):
            Hub id or folder of another VAE, such as `madebyollin/sdxl-vae-fp16-fix`. Defaults to the model's own.
        torch_compile (`bool`, *optional*, defaults to `False`):
            Compile the blocks that the denoiser repeats. It changes an image by rounding errors at most.
        batch_size (`int`, *optional*, defaults to `16`):
            Images per batch. It changes an image by rounding errors at most.
    """

    scheduler: str | None = field(
        default=None,
        metadata={"help": "Class name of a diffusers scheduler, such as DDIMScheduler. Defaults to the model's own."},
    )
    num_inference_steps: Annotated[int, Range(1, 1000)] = field(default=50, metadata={"help": "Denoising steps."})
    guidance_scale: Annotated[float, Range(0, 1000)] = field(
        default=5.0, metadata={"help": "Scale of guidance, in the sense of the model's pipeline."}
    )
    guidance_rescale: Share = field(
        default=0.0,
        metadata={"help": "How far guidance is scaled back to the contrast of the prediction without it."},
    )
    guidance_cutoff: Annotated[float, Range(0, 1)] | None = field(
        default=None, metadata={"help": "Share of the steps, the first ones, that are guided. Defaults to all steps."}
    )
    timestep_spacing: Literal["linspace", "leading", "trailing"] | None = field(
        default=None,
        metadata={"help": "Which of the noise levels are steps. Defaults to what the model's scheduler says."},
    )
    cache_interval: Annotated[int, Range(2, 1000)] | None = field(
        default=None,
        metadata={
            "help": "Compute the denoiser in every so many steps only, and extrapolate in between (TaylorSeer)."
        },
    )
    negative_prompt: str | None = field(default=None, metadata={"help": "Negative prompt of every image."})
    max_sequence_length: Annotated[int, Range(0, 1024)] | None = field(
        default=None, metadata={"help": "Tokens of a prompt that are read. Defaults to the pipeline's own."}
    )
    height: Pixels | None = field(default=None, metadata={"help": "Height in pixels. Defaults to the model's own."})
    width: Pixels | None = field(default=None, metadata={"help": "Width in pixels. Defaults to the model's own."})
    dtype: Literal["float32", "float16", "bfloat16"] = field(
        default="float32", metadata={"help": "Precision of the pipeline."}
    )
    vae_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of another VAE, such as madebyollin/sdxl-vae-fp16-fix. Defaults to the model's own."
        },
    )
    torch_compile: bool = field(default=False, metadata={"help": "Compile the blocks that the denoiser repeats."})
    batch_size: Count = field(
        default=16, metadata={"help": "Images per batch. It changes an image by rounding errors at most."}
    )

    def __post_init__(self):
        check_ranges(self)
        if self.scheduler is not None:
            known = scheduler_names()
            if self.scheduler not in known:
                remedy = suggest(self.scheduler, known, otherwise="diffusers' documentation lists them.")
                raise UsageError(f"There is no scheduler {self.scheduler!r}. {remedy}")
            if self.scheduler not in (supported := sorted({*SCHEDULERS, *FLOW_SCHEDULERS})):
                raise UsageError(
                    f"scheduler {self.scheduler} is of another noise process than those of the models that are supported. "
                    f"Of those are {', '.join(supported)}."
                )
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and value % 8:
                raise UsageError(f"{name} must be a multiple of 8, got {value}.")
        vae = self.vae_name_or_path
        if (
            vae is not None
            and not (Path(vae) / "config.json").is_file()
            and (Path(vae).exists() or not looks_like_hub_id(vae))
        ):
            raise UsageError(
                f"vae_name_or_path {vae}: no folder with the config.json of a VAE, and no Hub id org/name."
            )

    def sampling(self) -> dict:
        """The settings that change an image by more than rounding, for fingerprints and tables."""
        rounding = ("batch_size", "torch_compile")
        # Options that came later and are not used are left out: they make no older pool another one.
        later = {"guidance_rescale": 0.0, "vae_name_or_path": None, "max_sequence_length": None}
        later |= {"guidance_cutoff": None, "timestep_spacing": None, "cache_interval": None}
        settings = {name: value for name, value in asdict(self).items() if name in SamplingConfig.__dataclass_fields__}
        settings = {name: value for name, value in settings.items() if name not in rounding}
        settings = {name: value for name, value in settings.items() if name not in later or value != later[name]}
        if self.vae_name_or_path is not None:
            settings["vae_name_or_path"] = source_hash(self.vae_name_or_path)
        return settings


def scheduler_names() -> list[str]:
    """Class names of diffusers' schedulers, read from its source: importing it takes seconds, and a typo should not."""
    source = Path(importlib.util.find_spec("diffusers").origin).read_text(encoding="utf-8")
    return sorted(set(re.findall(r'"(\w+Scheduler)"', source)))


@dataclass
class CandidatesConfig(PromptsConfig, ExpansionConfig, SamplingConfig, ScoringConfig, FilterConfig):
    """
    Configuration of `craft expand`, `craft generate` and `craft filter`.

    Parameters:
        model_name_or_path (`str`):
            Hub id or folder of the pipeline that draws the candidates, the model to be tuned, or a single `.safetensors`
            file, see [`load_pipeline`].
        model_revision (`str`, *optional*):
            Revision on the Hub.
        draft_adapter (`str`, *optional*):
            Adapter that the model draws the candidates with, in fewer steps than it takes itself: a folder, a `.safetensors` file,
            or such a file on the Hub, as `org/name/file.safetensors`. It is merged into the weights that draw. What is trained is the
            model without it.
        originals_from (`str`, *optional*):
            Folder of another run of the same prompts. The images of the original prompts are then those of its pool, with their
            scores, and the model draws the variants only: what is compared with stays the base model's when a tuned one draws, as
            from the second round of `craft run --rounds` on. Defaults to drawing them as well.
        rewards (`list[str]`, *optional*, defaults to `["hpsv2", "pickscore", "aesthetic"]`):
            Rewards that score every candidate, as `NAME` or `NAME=SOURCE`, see [`rewards`].
        generate_all (`bool`, *optional*, defaults to `False`):
            Make every variant of every group. By default a group stops at its first failure where the filter permits.
        target_groups (`int`, *optional*):
            Stop as soon as this many groups have passed the filter, in the order of the prompts and vetoes aside, and filter
            those up to there only. Needs `filter_level: group` and early rejection. Defaults to working through all groups.
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

        The parameters of the prompts, the expansion, the sampler, the rewards and the filter are those of
        [`PromptsConfig`], [`ExpansionConfig`], [`SamplingConfig`], [`ScoringConfig`] and [`FilterConfig`].
    """

    model_name_or_path: str = field(
        default=None,
        metadata={
            "help": "Hub id, folder or single .safetensors file of the pipeline that draws the candidates: the model to be "
            "tuned."
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "Revision on the Hub."})
    draft_adapter: str | None = field(
        default=None,
        metadata={
            "help": "Adapter that the model draws the candidates with, in fewer steps: a folder or file, or org/name/FILE on the "
            "Hub. It is not trained."
        },
    )
    originals_from: str | None = field(
        default=None,
        metadata={
            "help": "Folder of another run whose pool the originals' images are taken from. Defaults to drawing them as well."
        },
    )
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
    target_groups: Count | None = field(
        default=None,
        metadata={"help": "Stop as soon as this many groups have passed the filter. Defaults to all groups."},
    )
    num_processes: Processes = field(
        default=1, metadata={"help": "Processes of `craft generate`, which share out the GPUs and the groups."}
    )
    seed: Seed = field(
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
        if self.target_groups is not None and self.reject_on is None:
            raise UsageError(
                f"target_groups is {self.target_groups}, but groups pass or fail only under filter_level: group, and "
                "are counted only without generate_all: leave one of them out."
            )
        if self.target_groups is not None and self.num_prompts is not None and self.target_groups > self.num_prompts:
            raise UsageError(
                f"target_groups is {self.target_groups}, but num_prompts is {self.num_prompts}, and each makes one group: "
                "lower the one or raise the other."
            )
        self.check_rewards(self.reward_names)
        if self.originals_from is not None and Path(self.originals_from).resolve() == Path(self.output_dir).resolve():
            raise UsageError(f"originals_from {self.originals_from} is output_dir itself: leave it out.")
        if self.push_to_hub and not self.hub_dataset_id:
            raise UsageError("push_to_hub needs the repository: hub_dataset_id: org/name.")

    def sampling(self) -> dict:
        """As [`SamplingConfig.sampling`], with the adapter that draws, if there is one."""
        if self.draft_adapter is None:
            return super().sampling()
        return super().sampling() | {"draft_adapter": adapter_hash(self.draft_adapter)}

    @property
    def reward_names(self) -> list[str]:
        """Names of the score columns."""
        return [reward.partition("=")[0] for reward in self.rewards]

    @property
    def reject_on(self) -> list[str] | None:
        """Rewards of the early rejection, or `None` where the filter needs every image."""
        if self.generate_all or self.filter_level == "image":
            return None
        return self.without_votes().conditions(self.reward_names) or None  # nobody has voted yet


@dataclass
class GenerateArguments(ExecutorArguments):
    """
    How much to draw, and where.

    Args:
        smoke (`bool`, *optional*, defaults to `False`):
            Draw, score and filter the first four prompts only, and say what came out. They are the run's own: what is
            drawn stays in the pool and is not drawn again.

        The others are those of [`ExecutorArguments`].
    """

    smoke: bool = field(
        default=False, metadata={"help": "Draw, score and filter the first four prompts only, and say what came out."}
    )
