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
from pathlib import Path

import torch

from ..candidates.config import CandidatesConfig
from ..candidates.rejection import check_target
from ..candidates.sizes import PNG_BYTES_PER_PIXEL, image_bytes
from ..candidates.turns import Turns
from ..evaluation.config import EvaluationConfig
from ..evaluation.evaluate import Evaluation
from ..evaluation.models import Model
from ..families.checks import check_model
from ..rewards import parse_rewards
from ..trainer.precision import encoding_dtypes
from .gpus import GIGA, GPU, TERA
from .images import Counts, Drawing, Watching
from .memory import AUTOCAST_ACTIVATIONS, CONTEXT, Profile
from .odds import CORRELATION, simulate
from .operations import MetaPipeline
from .plan import Plan, StagePlan, later_rounds
from .questions import uncounted_lines
from .rates import DISK, SHARES, TRANSFER, Rates
from .recipes import RunRecipes
from .towers import reward_towers
from .training import Training


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
        Model.of_candidates(config).check(config)
        check_model(recipes.train.model_name_or_path, recipes.train.model_revision, train=recipes.training)
        for spec in recipes.evaluation.model_specs.values():
            if spec.kind == "pipeline" and Path(spec.source) != Path(recipes.training.output_dir):
                check_model(*spec.whole, recipes.evaluation)
        self.odds = simulate(config, pass_rate)
        self.assumed_pass_rate = pass_rate is None
        self.evaluation = Evaluation(recipes.evaluation)
        self.rewards = parse_rewards(config.rewards)
        self.num_prompts = config.num_prompts
        if config.num_prompts is None or Path(config.prompts).exists():  # nothing is downloaded to be counted only
            self.num_prompts = len(config.load_prompts(config.seed)[0])
        check_target(config.target_groups, range(self.num_prompts))
        drawn_groups = min(self.num_prompts, self.odds.groups_for(config.target_groups))
        self.images = round(drawn_groups * self.odds.images)
        # A batch that is not full takes as long as one that is: its places are filled with copies, whose images are dropped.
        self.places = whole_batches(self.images, config.batch_size)
        self.kept_images = drawn_groups * self.odds.kept_images
        self.kept_groups = drawn_groups * self.odds.kept_groups
        evaluated = self.evaluation.image_counts()  # of each model
        self.evaluated = sum(evaluated)
        self.evaluated_places = sum(whole_batches(n, self.evaluation.config.batch_size) for n in evaluated)
        self.samples = recipes.training.max_steps * recipes.training.global_batch_size
        self.weighted = self.odds.weighted if recipes.training.negative_advantages == "zero" else 1.0
        self._count()

    def _count(self) -> None:
        """Operations and activations of everything that is repeated."""
        config, args, train = self.recipes.candidates, self.recipes.training, self.recipes.train
        evaluation, specs = self.evaluation.config, list(self.evaluation.specs.values())
        precisions = {}

        def pipeline(stage: CandidatesConfig | EvaluationConfig) -> MetaPipeline:
            how = stage.dtype, stage.vae_name_or_path
            if how not in precisions:
                dtype = getattr(torch, stage.dtype)
                precisions[how] = MetaPipeline(
                    config.model_name_or_path, config.model_revision, dtype, stage.vae_name_or_path
                )
            return precisions[how]

        meta = pipeline(config)
        self.pipeline_parameters, self.denoiser_parameters = meta.parameters(), meta.parameters(meta.family.denoiser)
        self.drawing = Drawing.of(config, meta, self.rewards)
        same = pipeline(evaluation) is meta and meta.size(evaluation) == self.drawing.size
        same = same and evaluation.max_sequence_length == config.max_sequence_length
        self.judging = Drawing.of(evaluation, pipeline(evaluation), specs, self.drawing.counts if same else None)
        self.uncounted = [spec.name for spec in specs if reward_towers(spec) is None]

        # Images and prompts are encoded before the model is on the GPU.
        meta = MetaPipeline(train.model_name_or_path, train.model_revision)
        dtypes, length = encoding_dtypes(meta.files, args.text_encoder_dtype), args.max_sequence_length
        meta.cast(dtypes)
        text, encoding = meta.conditioning(length), meta.count_encoding(*self.drawing.size)
        frozen = meta.modules.keys() - {meta.family.denoiser}
        self.frozen_bytes = meta.weights(*frozen)
        self.text_dtype = dtypes.get(max(frozen - {"vae"}, key=meta.parameters), torch.float32)  # of the largest
        self.encode_memory = self.frozen_bytes + encoding.activations
        self.prompt_bytes = sum(value.nbytes for value in text.values())
        vae = meta.pipeline.vae.config
        pixels = self.drawing.size[0] * self.drawing.size[1] // meta.family.pixels_per_latent(vae) ** 2
        self.latent_bytes = 2 * 4 * meta.family.latent_channels(vae) * pixels  # mean and deviation, in float32

        meta.cast(torch.float32 if self.profile.dtype == "float32" else torch.bfloat16)
        counts = Counts.of(meta, *self.drawing.size, length)
        self.encode_flops, self.text_flops = encoding.flops, counts.text.flops
        self.watching = Watching.of(self.recipes, meta, counts, self.frozen_bytes)
        self.training = Training.of(self.recipes, self.profile, meta, self.drawing.size)
        self.trained_parameters = self.training.trained

    @property
    def image_flops(self) -> float:
        """Operations of a candidate."""
        return self.drawing.flops

    @property
    def evaluated_flops(self) -> float:
        """Operations of an evaluated image."""
        return self.judging.flops

    def _speed(self, dtype: str) -> float:
        """FLOP/s assumed for drawing in a precision."""
        if dtype == "float32" or not self.gpu.computes_in(dtype):
            return SHARES["float32"] * self.gpu.peak("float32")
        return SHARES["sampling"] * self.gpu.peak(dtype)

    def assumed_rates(self) -> Rates:
        """Rates at the assumed shares of the peak."""
        single = SHARES["float32"] * self.gpu.peak("float32")
        text_dtype = str(self.text_dtype).removeprefix("torch.")
        if self.profile.dtype == "float32" or not self.gpu.computes_in(self.profile.dtype):
            training = single
        else:
            training = SHARES[self._training_share()] * self.gpu.peak(self.profile.dtype)
        return Rates(
            sampling=self._speed(self.recipes.candidates.dtype),
            scoring=self.drawing.score_flops / self._speed(self.recipes.candidates.reward_dtype),
            judging=self.judging.score_flops / self._speed(self.recipes.evaluation.reward_dtype),
            encoding=self.encode_flops / single + self.text_flops / self._speed(text_dtype),
            training=training,
            saving=DISK,
            watching=self.watching.judge_flops / single,
        )

    def _training_share(self) -> str:
        if self.profile.dtype == "float32":
            return "float32"
        return "training (autocast)" if self.profile.autocast else "training (16 bits)"

    @property
    def available(self) -> float:
        """Bytes of a GPU for what PyTorch allocates; on a CPU nothing gives way to anything."""
        return math.inf if self.gpu.name == "cpu" else self.gpu.memory * GIGA - CONTEXT

    def seconds(self, rates: Rates) -> dict[str, float]:
        """GPU seconds of each stage."""

        # The evaluation, or the guard, may sample in another precision than the candidates.
        def sampling(dtype: str) -> float:
            ratio = 1.0 if rates.loading else self._speed(dtype) / self._speed(self.recipes.candidates.dtype)
            return rates.sampling * ratio

        watching, config, memory = self.watching, self.recipes.candidates, self.drawing.memory
        moved = 0.0
        if memory.offloads(config.reward_device, self.available):
            turns = math.ceil(self.places / (config.batch_size * max(1, Turns.num_images // config.batch_size)))
            moved = turns * (memory.pipeline + sum(memory.rewards.values()))
        # While one process judges, reads or writes, the others wait.
        alone = (
            watching.read / DISK
            + rates.watching
            + (self.model_bytes + self.num_saves * self.checkpoint_bytes + self.best_bytes) / rates.saving
        )
        work = {
            "generate": self.places * (self.image_flops / rates.sampling + rates.scoring)
            + self.images * rates.storing
            + moved / TRANSFER,
            "train": self.kept_images * rates.encoding
            + self.samples * self.weighted * self.training.flops / rates.training
            + watching.flops / sampling(self.profile.dtype)
            + self.profile.num_processes * alone,
            "evaluate": self.evaluated_places
            * (self.evaluated_flops / sampling(self.recipes.evaluation.dtype) + rates.judging)
            + self.evaluated * rates.storing,
        }
        return {name: seconds + rates.loading.get(name, 0.0) for name, seconds in work.items()}

    def plan(self, price: float | None = None, measured: Rates | None = None) -> "Plan":
        """The whole plan."""
        config, args, profile = self.recipes.candidates, self.recipes.training, self.profile
        most = self.num_prompts * (1 + config.num_variants)
        height, width = self.drawing.size
        picture, evaluated_picture = image_bytes(height, width), image_bytes(*self.judging.size)
        lora = " of LoRA" if self.adapter else ""
        kind = "FSDP2" if profile.fsdp else f"ZeRO-{profile.zero_stage}" if profile.zero_stage else profile.dtype
        watching = f", {self.watching.looks} looks of the guard" if self.watching.looks else ""
        stages = [
            StagePlan("expand", f"{self.num_prompts:,} prompts, {config.num_variants} variants each"),
            StagePlan(
                "generate",
                f"{self.images:,} of {most:,} images of {height}x{width}, {self.drawing.work}",
                flops=self.images * (self.image_flops + self.drawing.score_flops),
                memory=self.drawing.memory.peak(config.reward_device, self.available),
                disk=self.images * picture,
            ),
            StagePlan(
                "filter",
                f"about {self.kept_groups:,.0f} groups kept, {self.kept_images:,.0f} images",
                disk=self.kept_images * picture,
            ),
            StagePlan(
                "train",
                f"{args.max_steps:,} steps of {args.global_batch_size}{lora}, micro-batch {self.training.micro_batch}, {kind} on "
                f"{profile.num_processes}{watching}",
                flops=self.kept_images * (self.encode_flops + self.text_flops)
                + self.samples * self.weighted * self.training.flops
                + self.watching.flops
                + self.watching.judge_flops,
                memory=self.training_memory,
                disk=self._training_disk(),
            ),
            StagePlan(
                "evaluate",
                f"{self.evaluated:,} images, {len(self.evaluation.specs)} rewards and judges",
                flops=self.evaluated * (self.evaluated_flops + self.judging.score_flops),
                memory=self.judging.memory.peak(self.recipes.evaluation.reward_device, self.available),
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
            stages=[*stages, *later_rounds(self, stages)],
            odds=self.odds,
            image_tflops=self.image_flops / TERA,
            sample_tflops=self.training.flops / TERA,
            denoiser_tflops=self.drawing.counts.denoising.flops / TERA,
            assumptions=self.assumptions(measured),
        )

    @property
    def training_memory(self) -> float:
        """Peak of encoding the dataset, of a step, or of a look of the guard."""
        return max(self.training.memory(self.watching.memory), self.encode_memory)

    @property
    def adapter(self) -> bool:
        """Whether an adapter is trained, and the denoiser itself is not."""
        return self.training.lora is not None

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
        if self.adapter:
            return 4 * self.trained_parameters
        return 4 * self.denoiser_parameters + self.frozen_bytes

    @property
    def checkpoint_bytes(self) -> int:
        """Weights, two moments, their moving average if there is one, and DeepSpeed's master weights."""
        return 4 * self.trained_parameters * (3 + self.recipes.training.use_ema + bool(self.profile.zero_stage))

    @property
    def best_bytes(self) -> int:
        """Weights that the guard keeps, if every look finds a better model than the one before."""
        return 4 * self.trained_parameters * max(0, self.watching.looks - 1)

    def _training_disk(self) -> float:
        """The tuned pipeline, the checkpoints that stay, and the encoded dataset."""
        limit = self.recipes.training.save_total_limit
        # One more while the oldest has not been deleted yet.
        checkpoints = min(self.num_saves, limit + 1) if limit else self.num_saves
        prompts = 1 + (self.kept_groups if self.recipes.training.train_prompt == "original" else self.kept_images)
        encoded = self.kept_images * self.latent_bytes + prompts * self.prompt_bytes
        return self.model_bytes + checkpoints * self.checkpoint_bytes + encoded

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
            *self._placements(),
            "Images are drawn in whole batches, and a checkpoint takes as long to write as the model does, by its bytes."
            if measured is not None
            else f"Images are drawn in whole batches; writing them goes on meanwhile. Models and checkpoints are written and "
            f"read back at {DISK / GIGA:g} GB/s.",
            f"A PNG takes {PNG_BYTES_PER_PIXEL} bytes a pixel. Expansion by a language model is not counted.",
        ]
        if gpu.name == "cpu":
            shares = f"{SHARES['float32']:.0%} of the peak"
        else:
            stages = self.recipes.candidates, self.recipes.evaluation
            rounded = any(stage.reward_dtype != "float32" for stage in stages)
            sampling = "float32" if self.recipes.candidates.dtype == "float32" else "sampling"
            shares = (
                f"{SHARES[sampling]:.0%} of the peak while sampling in {self.recipes.candidates.dtype}, "
                f"{SHARES[self._training_share()]:.0%} while training in {self.profile.dtype}"
                f"{' under autocast' if self.profile.autocast else ''}, {SHARES['float32']:.0%} in float32 rewards"
                f"{', as while sampling in those of 16 bits' if rounded else ''}"
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
        lines += odds.describe_target(self.recipes.candidates.target_groups, self.num_prompts)
        if self.watching.looks:
            lines.append(
                f"The guard looks {self.watching.looks} times at {self.watching.images} images; each time it is assumed to "
                "find a better model than before, which it keeps."
            )
        return lines + uncounted_lines(self)

    def _placements(self) -> list[str]:
        """Where the rewards are in the stages that draw and score, a line each."""
        if self.gpu.name == "cpu":
            return []
        lines = []
        for stage, config, memory in (
            ("generate", self.recipes.candidates, self.drawing.memory),
            ("evaluate", self.recipes.evaluation, self.judging.memory),
        ):
            offloaded = memory.offloads(config.reward_device, self.available)
            beside, in_turns = ((size + CONTEXT) / GIGA for size in (memory.beside, memory.in_turns))
            if config.reward_device == "cpu":
                how = "the rewards score on the CPU, whose time is not counted"
            elif not offloaded:
                how = (
                    f"the rewards lie beside the pipeline; in turns with it (offload), it would take {in_turns:.1f} GB"
                )
            elif stage == "generate":
                host = (memory.pipeline + sum(memory.rewards.values())) / GIGA
                how = (
                    f"pipeline and rewards take turns (offload), with {host:.0f} GB in the memory of the host and "
                    f"{TRANSFER / GIGA:g} GB/s from there; beside each other they would take {beside:.1f} GB"
                )
            else:
                how = (
                    "the images of all models are drawn first, then one judge at a time is loaded (offload); beside each "
                    f"other they would take {beside:.1f} GB"
                )
            lines.append(f"{stage}: {how}.")
        return lines


def whole_batches(images: int, batch_size: int) -> int:
    """Places of the batches that it takes to draw so many images."""
    return -(-images // batch_size) * batch_size
