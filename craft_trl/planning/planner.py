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

"""What a run will take, before anything is spent: images, survivors, GPU hours, money, memory and disk."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig

from ..candidates.config import SamplingConfig
from ..evaluation.evaluate import Evaluation
from ..families.checks import check_model
from ..rewards import RewardSpec, parse_rewards
from .gpus import GIGA, GPU, TERA
from .memory import AUTOCAST_ACTIVATIONS, CONTEXT, Profile, sampling_memory
from .odds import CORRELATION, simulate
from .operations import MetaPipeline, reward_towers
from .plan import Plan, StagePlan
from .recipes import RunRecipes


# Shares of the peak that plain loops of diffusers and transformers reach. Sampling of SDXL in half precision: 17 % (H100,
# batch 1, stock) to 40 % (A100) in published measurements. Training it on an H100: 16 % under autocast, 23 % as a
# bfloat16 module, measured at micro-batches of 8 with checkpointing, model operations counted only.
SHARES = {"sampling": 0.3, "training (autocast)": 0.16, "training (16 bits)": 0.23, "float32": 0.5}
PNG_BYTES_PER_PIXEL = 1.6


@dataclass(frozen=True)
class Rates:
    """
    How fast the work goes on one GPU.

    Args:
        sampling (`float`):
            FLOP/s while images are drawn.
        scoring (`float`):
            Seconds per candidate, all rewards.
        judging (`float`):
            Seconds per evaluated image, all rewards and judges.
        encoding (`float`):
            Seconds per training image and its prompt, before training.
        training (`float`):
            FLOP/s of forward and backward pass, the optimizer's time included.
        storing (`float`, *optional*, defaults to 0):
            Seconds per image until it is in the pool as a PNG.
        saving (`float`, *optional*, defaults to `inf`):
            Bytes/s of the model and its checkpoints.
        loading (`dict[str, float]`, *optional*):
            Seconds until a stage begins its work.
    """

    sampling: float
    scoring: float
    judging: float
    encoding: float
    training: float
    storing: float = 0.0
    saving: float = float("inf")
    loading: dict[str, float] = field(default_factory=dict)


class Planner:
    """
    Counts what a run's recipes ask for.

    Args:
        recipes ([`RunRecipes`]):
            The recipes.
        profile ([`Profile`]):
            How training is spread out.
        gpu ([`GPU`]):
            The device to plan for.
        pass_rate (`float`, *optional*):
            Share of variants that pass the filter, see [`simulate`].
    """

    def __init__(self, recipes: RunRecipes, profile: Profile, gpu: GPU, pass_rate: float | None = None):
        self.recipes, self.profile, self.gpu = recipes, profile, gpu
        config = recipes.candidates
        check_model(config.model_name_or_path, config.model_revision, config.vae_name_or_path)
        check_model(recipes.train.model_name_or_path, recipes.train.model_revision, train=True)
        for spec in recipes.evaluation.model_specs.values():
            if spec.kind == "pipeline" and Path(spec.source) != Path(recipes.training.output_dir):
                check_model(*spec.whole, recipes.evaluation.vae_name_or_path)
        self.odds = simulate(config, pass_rate)
        self.assumed_pass_rate = pass_rate is None
        self.evaluation = Evaluation(recipes.evaluation)
        self.rewards = parse_rewards(config.rewards)
        self.num_prompts = config.num_prompts
        if config.num_prompts is None or Path(config.prompts).exists():  # nothing is downloaded to be counted only
            self.num_prompts = len(config.load_prompts(config.seed)[0])
        drawn_groups = self.num_prompts
        if config.target_groups is not None and self.odds.kept_groups:
            drawn_groups = min(drawn_groups, config.target_groups / self.odds.kept_groups)
        self.images = round(drawn_groups * self.odds.images)
        # A batch that is not full takes as long as one that is: its places are filled with copies, whose images are dropped.
        self.places = whole_batches(self.images, config.batch_size)
        self.kept_images = drawn_groups * self.odds.kept_images
        self.kept_groups = drawn_groups * self.odds.kept_groups
        arms = len(self.evaluation.config.model_specs) + bool(self.evaluation.config.templates)
        evaluated = len(self.evaluation.prompts) * self.evaluation.config.num_images_per_prompt  # of each model
        self.evaluated = arms * evaluated
        self.evaluated_places = arms * whole_batches(evaluated, self.evaluation.config.batch_size)
        self.samples = recipes.training.max_steps * recipes.training.global_batch_size
        self.weighted = 1.0 if recipes.training.negative_advantages == "keep" else self.odds.weighted
        self._count()

    def _count(self) -> None:
        """Operations and activations of everything that is repeated."""
        config, args, train = self.recipes.candidates, self.recipes.training, self.recipes.train
        meta = MetaPipeline(config.model_name_or_path, config.model_revision, getattr(torch, config.dtype))
        self.height, self.width = meta.size(config)
        self.calls = meta.calls(config)
        self.pipeline_parameters, self.denoiser_parameters = meta.parameters(), meta.parameters(meta.family.DENOISER)
        size = self.height, self.width
        text, self.denoising, self.decoding = (
            meta.count_text(),
            meta.count_denoising(*size),
            meta.count_decoding(*size),
        )
        self.image_flops = self._image_flops(config, self.calls, text.flops, self.denoising.flops, self.decoding.flops)
        evaluation = self.evaluation.config
        evaluated = meta.size(evaluation)
        denoising, decoding = self.denoising, self.decoding
        if evaluated != size:
            denoising, decoding = meta.count_denoising(*evaluated), meta.count_decoding(*evaluated)
        self.evaluated_size = evaluated
        self.evaluated_activations = denoising, decoding
        self.evaluated_flops = self._image_flops(
            evaluation, meta.calls(evaluation), text.flops, denoising.flops, decoding.flops
        )
        self.score_flops = sum(flops(spec) for spec in self.rewards)
        self.judge_flops = sum(flops(spec) for spec in self.evaluation.specs.values())
        self.uncounted = [name for name, spec in self.evaluation.specs.items() if reward_towers(spec) is None]

        module_dtype = torch.float32 if self.profile.dtype == "float32" else torch.bfloat16
        meta = MetaPipeline(train.model_name_or_path, train.model_revision, module_dtype)
        encoding = meta.count_encoding(*size)
        self.encode_flops = encoding.flops + text.flops
        self.lora = None
        if train.use_peft:
            modules = train.lora_target_modules or meta.family.LORA_TARGET_MODULES
            self.lora = LoraConfig(r=train.lora_r, target_modules=modules)
        self.training, self.trained_parameters = meta.count_training(
            *size, checkpointing=bool(args.activation_checkpointing), lora=self.lora
        )

    @staticmethod
    def _image_flops(config: SamplingConfig, calls: int, text: float, denoising: float, decoding: float) -> float:
        guided = 2 if config.guidance_scale > 1 else 1
        return guided * (calls * denoising + text) + decoding

    def assumed_rates(self) -> Rates:
        """Rates at the assumed shares of the peak."""
        single = SHARES["float32"] * self.gpu.peak("float32")

        def sampling(dtype: str) -> float:
            return (
                single if dtype == "float32" or self.gpu.name == "cpu" else SHARES["sampling"] * self.gpu.peak(dtype)
            )

        if self.profile.dtype == "float32" or self.gpu.name == "cpu":
            training = single
        else:
            training = SHARES[self._training_share()] * self.gpu.peak(self.profile.dtype)
        return Rates(
            sampling=sampling(self.recipes.candidates.dtype),
            scoring=self.score_flops / single,
            judging=self.judge_flops / single,
            encoding=self.encode_flops / single,
            training=training,
        )

    def _training_share(self) -> str:
        if self.profile.dtype == "float32":
            return "float32"
        return "training (autocast)" if self.profile.autocast else "training (16 bits)"

    def seconds(self, rates: Rates) -> dict[str, float]:
        """GPU seconds of each stage."""
        # The evaluation may sample in another precision than the candidates.
        ratio = 1.0
        if self.recipes.evaluation.dtype != self.recipes.candidates.dtype and not rates.loading:
            both = self.recipes.evaluation.dtype, self.recipes.candidates.dtype
            share = [SHARES["float32"] if d == "float32" else SHARES["sampling"] for d in both]
            ratio = share[0] * self.gpu.peak(both[0]) / (share[1] * self.gpu.peak(both[1]))
        work = {
            "generate": self.places * (self.image_flops / rates.sampling + rates.scoring)
            + self.images * rates.storing,
            "train": self.kept_images * rates.encoding
            + self.samples * self.weighted * self.training.flops / rates.training
            + (self.model_bytes + self.num_saves * self.checkpoint_bytes) / rates.saving,
            "evaluate": self.evaluated_places * (self.evaluated_flops / (rates.sampling * ratio) + rates.judging)
            + self.evaluated * rates.storing,
        }
        return {name: seconds + rates.loading.get(name, 0.0) for name, seconds in work.items()}

    def plan(self, price: float | None = None, measured: Rates | None = None) -> "Plan":
        """The whole plan."""
        config, args, profile = self.recipes.candidates, self.recipes.training, self.profile
        guided = 2 if config.guidance_scale > 1 else 1
        most = self.num_prompts * (1 + config.num_variants)
        picture = PNG_BYTES_PER_PIXEL * self.height * self.width
        evaluated_picture = PNG_BYTES_PER_PIXEL * self.evaluated_size[0] * self.evaluated_size[1]
        frozen = self.denoiser_parameters if self.adapter else 0
        micro = min(args.per_device_train_batch_size, args.global_batch_size // profile.num_processes or 1)
        activations = micro * self.training.activations * (AUTOCAST_ACTIVATIONS if profile.autocast else 1)
        training_memory = profile.static_bytes(self.trained_parameters, frozen) + activations
        training_memory += 4 * self.trained_parameters if args.use_ema else 0
        training_memory = max(training_memory, 4 * (self.pipeline_parameters - self.denoiser_parameters))
        lora = " of LoRA" if frozen else ""
        kind = f"ZeRO-{profile.zero_stage}" if profile.zero_stage else profile.dtype
        stages = [
            StagePlan("expand", f"{self.num_prompts:,} prompts, {config.num_variants} variants each"),
            StagePlan(
                "generate",
                f"{self.images:,} of {most:,} images of {self.height}x{self.width}, {self.calls} calls{' x 2' * (guided - 1)}",
                flops=self.images * (self.image_flops + self.score_flops),
                memory=sampling_memory(
                    config, self.pipeline_parameters, self.rewards, guided * self.denoising.activations,
                    self.decoding.activations,
                ),
                disk=self.images * picture,
            ),
            StagePlan(
                "filter",
                f"about {self.kept_groups:,.0f} groups kept, {self.kept_images:,.0f} images",
                disk=self.kept_images * picture,
            ),
            StagePlan(
                "train",
                f"{args.max_steps:,} steps of {args.global_batch_size}{lora}, micro-batch {micro}, {kind} on "
                f"{profile.num_processes}",
                flops=self.kept_images * self.encode_flops + self.samples * self.weighted * self.training.flops,
                memory=training_memory,
                disk=self._training_disk(),
            ),
            StagePlan(
                "evaluate",
                f"{self.evaluated:,} images, {len(self.evaluation.specs)} rewards and judges",
                flops=self.evaluated * (self.evaluated_flops + self.judge_flops),
                memory=sampling_memory(
                    self.evaluation.config, self.pipeline_parameters, list(self.evaluation.specs.values()),
                    guided * self.evaluated_activations[0].activations, self.evaluated_activations[1].activations,
                ),
                disk=self.evaluated * evaluated_picture,
            ),
        ]  # fmt: skip
        assumed = self.seconds(self.assumed_rates())
        calibrated = self.seconds(measured) if measured is not None else {}
        for stage in stages:
            stage.seconds = assumed.get(stage.name, 0.0)
            if measured is not None:
                stage.measured_seconds = calibrated.get(stage.name, 0.0)
            if stage.memory and self.gpu.name != "cpu":
                stage.memory += CONTEXT
        return Plan(
            gpu=self.gpu,
            price=price,
            stages=stages,
            odds=self.odds,
            image_tflops=self.image_flops / TERA,
            sample_tflops=self.training.flops / TERA,
            denoiser_tflops=self.denoising.flops / TERA,
            assumptions=self.assumptions(measured),
        )

    @property
    def adapter(self) -> bool:
        """Whether an adapter is trained, and the denoiser itself is not."""
        return self.trained_parameters < self.denoiser_parameters

    @property
    def num_saves(self) -> int:
        """Checkpoints that are written."""
        args = self.recipes.training
        if args.save_strategy != "steps":
            return 0 if args.save_strategy == "no" else 1
        every = args.save_steps if args.save_steps >= 1 else math.ceil(args.max_steps * args.save_steps)
        return math.ceil(args.max_steps / every)  # the last step is saved whatever its number

    @property
    def model_bytes(self) -> int:
        """What is left of the training: an adapter, or a whole pipeline."""
        return 4 * (self.trained_parameters if self.adapter else self.pipeline_parameters)

    @property
    def checkpoint_bytes(self) -> int:
        """Weights, their moving average if there is one, and two moments."""
        return 4 * self.trained_parameters * (4 if self.recipes.training.use_ema else 3)

    def _training_disk(self) -> float:
        """The tuned pipeline, the checkpoints that stay, and the encoded dataset."""
        limit = self.recipes.training.save_total_limit
        # One more while the oldest has not been deleted yet.
        checkpoints = min(self.num_saves, limit + 1) if limit else self.num_saves
        # Mean and deviation of four channels, an eighth of the size, in float32
        latents = self.kept_images * self.height * self.width / 2
        return self.model_bytes + checkpoints * self.checkpoint_bytes + latents

    def assumptions(self, measured: Rates | None) -> list[str]:
        """What the numbers rest on, a line each."""
        gpu, odds = self.gpu, self.odds
        whence = "as among images that differ by chance alone" if self.assumed_pass_rate else "as given"
        lines = [
            f"{gpu.name}: {gpu.half:g} TFLOP/s in half precision, {gpu.single:g} in float32, by {gpu.source}.",
            f"{odds.pass_rate:.0%} of variants pass the filter, {whence}; rewards are correlated by {CORRELATION}.",
            f"{self.weighted:.0%} of the training samples have a weight; the others are skipped.",
            "Operations are counted on the model's own classes; memory is weights, gradients, optimizer states and the "
            "largest sum of activations alive at once, eager, attention as FlashAttention keeps it"
            + (f", times {AUTOCAST_ACTIVATIONS} under autocast" if self.profile.autocast else "")
            + (f", and {CONTEXT / GIGA} GB for CUDA itself." if gpu.name != "cpu" else "."),
            "Images are drawn in whole batches, and a checkpoint takes as long to write as the model does, by its bytes."
            if measured is not None
            else "Images are drawn in whole batches. Writing them, the model and its checkpoints is not counted.",
            f"A PNG takes {PNG_BYTES_PER_PIXEL} bytes a pixel. Expansion by a language model is not counted.",
        ]
        if gpu.name == "cpu":
            shares = f"{SHARES['float32']:.0%} of the peak"
        else:
            sampling = "float32" if self.recipes.candidates.dtype == "float32" else "sampling"
            shares = (
                f"{SHARES[sampling]:.0%} of the peak while sampling in {self.recipes.candidates.dtype}, "
                f"{SHARES[self._training_share()]:.0%} while training in {self.profile.dtype}"
                f"{' under autocast' if self.profile.autocast else ''}, {SHARES['float32']:.0%} in float32 rewards"
            )
        lines.insert(1, f"Assumed share: {shares}.")
        if measured is not None:
            lines.insert(
                2,
                f"Measured here: sampling {measured.sampling / TERA:.3g} TFLOP/s, training {measured.training / TERA:.3g} "
                f"TFLOP/s, scoring {1000 * measured.scoring:.3g} ms an image ({1000 * measured.judging:.3g} ms with all "
                f"judges), writing {1000 * measured.storing:.3g} ms an image and {measured.saving / 1e6:.3g} MB/s of the "
                "model.",
            )
        if self.recipes.train.held_out_rewards:
            lines.append("Not counted: the guard, which draws and judges images while the model trains.")
        if self.uncounted:
            lines.append(f"Not counted, unless measured: {', '.join(self.uncounted)}, whose size is not known.")
        return lines


def whole_batches(images: int, batch_size: int) -> int:
    """Places of the batches that it takes to draw so many images."""
    return -(-images // batch_size) * batch_size


def flops(spec: RewardSpec) -> float:
    """Operations of a reward for one image; its prompt's are shared by a group and are little."""
    towers = reward_towers(spec)
    return sum(tower.flops for tower in towers if tower) if towers else 0.0
