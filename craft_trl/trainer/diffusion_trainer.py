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


"""All that stands between transformers' Trainer and a diffusers model."""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from diffusers.training_utils import EMAModel
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from trl.trainer.base_trainer import _BaseTrainer

from ..candidates.loading import load_pipeline, pipeline_folder
from ..compilation import compile_blocks
from ..devices import on_main_process
from ..families import get_family
from ..families.checks import check_model
from ..families.files import find_files
from ..families.uses import check_size
from ..filtering.dataset import validate
from ..filtering.images import TrainingImages
from ..noise import NoiseProcess, noise_process
from ..sources import model_hash
from ..stages import fingerprint
from .callbacks import DivergenceCallback, EMACallback, ModelFreeTensorBoardCallback, ValidationCallback
from .checkpoints import (
    checkpoint_to_go_on_from,
    copy_frozen,
    load_adapter,
    load_average,
    load_weights,
    save_adapter,
    save_average,
    save_weights,
    unpack_single_file,
)
from .denoiser import load_denoiser, prepare_denoiser
from .diffusion_config import DiffusionConfig
from .export import average_into
from .fsdp import FSDP_WEIGHTS, check_shards, configure_fsdp, shard_on_cpu
from .precision import compute_in_bfloat16, encoding_dtypes, is_bfloat16_module
from .publishing import PublishingMixin
from .training_options import check_available
from .training_samples import StepBatches, TrainingSamples, check_shared_memory, encode_dataset, needed_micro_batches
from .zero import configure_deepspeed, zero_init_disabled


class DiffusionTrainer(PublishingMixin, _BaseTrainer):
    """
    Trainer for the denoiser of a diffusers pipeline.

    It owns the plumbing: data, precision, checkpoints, saving. A method subclasses it with a `compute_loss`.

    Args:
        model (`str`):
            Hub id or folder of the pipeline to tune, or a single `.safetensors` file. Its frozen parts are loaded to
            encode the data, then dropped.
        args ([`DiffusionConfig`]):
            Configuration.
        train_dataset ([`~datasets.Dataset`]):
            Rows with `image`, `prompt` and `advantage`, and `expanded_prompt` if that is what to train on.
        revision (`str`, *optional*):
            Revision of the Hub repository.
        peft_config ([`~peft.LoraConfig`], *optional*):
            Train an adapter instead of all parameters.
        callbacks (`list[TrainerCallback]`, *optional*):
            Callbacks to add to those of the Trainer.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and learning rate scheduler to use instead of those of `args`.
    """

    _tag_names = ["craft_trl"]
    _name = "Diffusion"
    # `compute_loss` returns `batch_mean`; the Trainer divides it by the number of accumulated micro-batches.
    loss_is_scaled_for_ga = False
    average_with: Sequence[str] = ()  # folders of pipelines: what is saved is the mean of their weights and its own
    samples_class: Callable[..., TrainingSamples] = TrainingSamples
    unit = "images"  # what a sample is

    def __init__(
        self,
        model: str,
        args: DiffusionConfig,
        train_dataset: Dataset,
        revision: str | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
    ):
        # Checks, before anything is loaded
        check_model(model, revision, train=args)
        check_available(args)
        prompt_column = "prompt" if args.train_prompt == "original" else "expanded_prompt"
        on_main_process(lambda: validate(train_dataset, prompt_column))
        on_main_process(lambda: check_shards(args))
        self.args = args
        weights = self.sample_weights(torch.tensor(train_dataset["advantage"], dtype=torch.float32))
        self.has_seeds = "seed" in train_dataset.column_names  # as images have that `craft generate` drew

        # Model. In float32: the optimizer's master weights.
        self.revision = revision
        if Path(model).suffix == ".safetensors":
            with zero_init_disabled():
                model = on_main_process(lambda: str(unpack_single_file(Path(model), Path(args.output_dir))))
        self.source = model
        self.model_index = DiffusionPipeline.load_config(model, revision=revision)
        self.family = get_family(self.model_index["_class_name"])
        image = TrainingImages(train_dataset)[0]  # all have its size
        check_size(find_files(model, revision), image.height, image.width)
        if peft_config is None and args.should_save:
            pipeline_folder(model, revision)  # of which the parts that are not trained are copied at the end
        denoiser = load_denoiser(model, revision)
        self.bf16_module = is_bfloat16_module(args)
        trained = prepare_denoiser(denoiser, self.family, args, peft_config)

        # Data, encoded once
        options = {"max_sequence_length": args.max_sequence_length, "guidance_scale": args.train_guidance_scale}
        used = [options] if any(value is not None for value in options.values()) else []
        self.encoded = Path(args.output_dir) / "encoded.safetensors"
        with zero_init_disabled():
            encode_dataset(
                train_dataset,
                prompt_column,
                family=self.family,
                load_frozen=lambda: self.load_frozen().to(args.device),
                path=self.encoded,
                fingerprint=fingerprint(
                    [train_dataset._fingerprint, prompt_column, model_hash(model, revision), *used]
                ),
                **options,
            )
        self.noise_process = self._noise_process(args, denoiser.config)
        samples = self.samples_class(
            self.encoded,
            advantages=weights,
            num_samples=args.max_steps * args.global_batch_size,
            draw_timestep=self.noise_process.draw,
            seed=args.seed,
            proportion_empty_prompts=args.proportion_empty_prompts,
        )
        args = copy.copy(args)  # the caller's say what was asked for
        args.gradient_accumulation_steps = needed_micro_batches(
            samples, args.global_batch_size, args.train_batch_size, args.world_size
        )
        configure_deepspeed(args)
        shard_on_cpu()
        super().__init__(model=trained, args=args, train_dataset=samples, callbacks=callbacks, optimizers=optimizers)
        configure_fsdp(self.accelerator, trained, self.family.repeated_blocks, self.bf16_module)
        if self.bf16_module:
            compute_in_bfloat16(denoiser, cast_parameters=not self.is_fsdp_enabled)
            self.accelerator.native_amp = False  # `prepare` wraps the model in autocast wherever `bf16` is set
        if args.compile_blocks:
            compile_blocks(denoiser, self.family.repeated_blocks)
        self._metrics: dict[str, torch.Tensor] = {}
        self.add_callback(DivergenceCallback())
        # Set by the guard: what to save instead of the last weights.
        self.best_weights: Path | None = None
        self.best_step: int | None = None
        self.best_of = 0  # how many steps it was chosen from
        self.ema: EMAModel | None = None
        if args.use_ema:
            self.ema = EMAModel(self.trainable_parameters(), decay=args.ema_decay, foreach=True)
            self.ema.to(args.device)
            self.add_callback(EMACallback(self))
        if self.pop_callback(TensorBoardCallback) is not None:
            self.add_callback(ModelFreeTensorBoardCallback())
        if args.validation_prompts:  # after the trackers, which must have begun
            self.add_callback(ValidationCallback(self))

    def sample_weights(self, advantages: torch.Tensor) -> torch.Tensor:
        """
        Weight of each row in the loss, from its advantage, both of shape `(N,)`. A row of weight 0 is not passed through
        the model.
        """
        return advantages

    def predict(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the denoiser says of the noised latents of a batch, shape `(B, C, h, w)`."""
        noisy_latents = self.noise_process.add(inputs["latents"], inputs["noise"], inputs["timesteps"])
        return self.denoise(model, noisy_latents, inputs)

    def denoise(self, model: nn.Module, noisy_latents: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the denoiser says of noisy latents, shape `(B, C, h, w)`, with the timesteps and the texts of a batch."""
        # Cast here and nowhere else: right for a bfloat16 DeepSpeed module and for float32 parameters. What computes in bfloat16 is given
        # it, as in drawing: with the latents' dtype, FLUX's pipeline rounds the noise level that it tells the denoiser. Not the
        # model's own `dtype`, for which diffusers (0.42) looks at every module.
        dtype = torch.bfloat16 if self.bf16_module else next(self.model.parameters()).dtype
        texts = {k: v for k, v in inputs.items() if k not in ("latents", "noise", "timesteps", "advantage")}
        conditioning = {k: v.to(dtype) if v.is_floating_point() else v for k, v in texts.items()}
        passes = torch.zeros(2, device=noisy_latents.device)  # without a count, so that the log has the sum
        passes[0] = len(noisy_latents)
        name = "passes" if torch.is_grad_enabled() else "passes_without_gradient"  # a third of the cost
        self._metrics[name] = self._metrics.get(name, 0) + passes
        return self.family.predict(model, noisy_latents.to(dtype), inputs["timesteps"], conditioning)

    def load_frozen(self) -> DiffusionPipeline:
        """The pipeline without its denoiser on the CPU: in float32, but for text encoders, see `text_encoder_dtype`."""
        dtypes = encoding_dtypes(find_files(self.source, self.revision), self.args.text_encoder_dtype)
        return load_pipeline(self.source, dtypes, self.revision, without=[self.family.denoiser])

    def _noise_process(self, args: DiffusionConfig, denoiser: Mapping[str, Any]) -> NoiseProcess:
        """The noise process of the model, with the shift of its noise levels at the size of the encoded images."""
        scheduler = find_files(self.source, self.revision).json("scheduler/scheduler_config.json")
        with safe_open(self.encoded, "pt") as file:
            height, width = file.get_slice("latent_mean").get_shape()[-2:]
        log_shift = self.family.log_shift(scheduler, height * width // self.family.patch**2)
        return noise_process(scheduler, log_shift, args.timestep_sampling, args.timestep_shift)

    def batch_mean(self, losses: torch.Tensor) -> torch.Tensor:
        """
        What `compute_loss` returns for a micro-batch: the sum of `losses` of shape `(B,)`, scaled so that the mean over
        the global batch comes out of the Trainer's division by the number of accumulated micro-batches and the average
        over processes, whatever the sizes of the micro-batches.
        """
        scale = self.args.gradient_accumulation_steps * self.args.world_size / self.args.global_batch_size
        return losses.sum() * scale

    def log_metric(self, name: str, values: torch.Tensor, counted: torch.Tensor | None = None) -> None:
        """
        Add values to the average that the next log line prints under this name, all or those that are counted; both of
        shape `(B,)`. Nothing waits for the device here.
        """
        counted = torch.ones_like(values, dtype=torch.float32) if counted is None else counted.float()
        total = torch.stack([(values.detach().float() * counted).sum(), counted.sum()])
        self._metrics[name] = self._metrics.get(name, 0) + total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = {name: self.accelerator.reduce(sums).tolist() for name, sums in self._metrics.items()}
        self._metrics.clear()
        super().log({**logs, **{name: total / max(count, 1) for name, (total, count) in metrics.items()}}, start_time)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Parameters that training changes."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _build_accelerator_args(self, **kwargs) -> dict[str, Any]:
        settings = super()._build_accelerator_args(**kwargs)
        # DDP adds gradients up in the buffers that it sends, not in copies beside them.
        settings["kwargs_handlers"][0].gradient_as_bucket_view = True
        return settings

    def _send_telemetry(self) -> None:
        # TRL's trainer reports usage and reads `model.config.model_type`, which a diffusers model does not have: it
        # would crash for everyone but CI, where it is off. This library sends nothing.
        pass

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Train, see [`~transformers.Trainer.train`]."""
        resume_from_checkpoint = checkpoint_to_go_on_from(resume_from_checkpoint, self.args.output_dir)
        # The Trainer restores what it knows of. Not in `_load_from_checkpoint`, which DeepSpeed passes by.
        if self.ema is not None and resume_from_checkpoint:
            load_average(self.ema, Path(resume_from_checkpoint), self.args.device)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of this process."""
        # The Trainer shuffles the dataset once an epoch, cuts its last batch, wants equal micro-batches and lets
        # accelerate deal them out. `TrainingSamples` is one long stream, shuffled already, of which each process knows
        # its part.
        args = self.args
        batches = StepBatches(
            self.train_dataset,
            args.global_batch_size,
            args.train_batch_size,
            args.process_index,
            args.world_size,
            micro_batches=args.gradient_accumulation_steps,
        )
        # The Trainer fetches the micro-batches of a step together, and the device waits: workers have them ready.
        prefetch_factor = args.dataloader_prefetch_factor
        if args.dataloader_num_workers > 0:
            prefetch_factor = prefetch_factor or -(-args.gradient_accumulation_steps // args.dataloader_num_workers)
            ahead = args.dataloader_num_workers * prefetch_factor * args.train_batch_size
            check_shared_memory(self.train_dataset[0], ahead)
        return DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )

    def _prepare_input(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # Under DeepSpeed the Trainer casts every float input to the model's dtype, which would round advantages and
        # micro-conditioning to eight bits. Move only, without waiting for the device; `predict` casts.
        return {name: value.to(self.args.device, non_blocking=True) for name, value in data.items()}

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        # The Trainer finds no labels in the batch and would call the model with the batch as keyword arguments.
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the denoiser, and unless this is for a checkpoint also the frozen parts of the pipeline and the card."""
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        if self.best_weights is not None:
            if self.args.should_save:
                shutil.copytree(self.best_weights, output_dir or self.args.output_dir, dirs_exist_ok=True)
        else:
            with self.exported_weights():
                super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            if not isinstance(self.model, PeftModel):
                copy_frozen(self, folder)
            if self.average_with:
                average_into(folder, self.average_with)
            self.create_model_card()
        if self.args.push_to_hub:
            self.push_to_hub()

    @contextmanager
    def exported_weights(self) -> Iterator[None]:
        """The weights that [`save_model`] writes, in the model: the moving average, if there is one."""
        if self.ema is not None:
            self.ema.store(self.trainable_parameters())
            self.ema.copy_to(self.trainable_parameters())
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.restore(self.trainable_parameters())

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The Trainer writes a bare `model.safetensors`, and diffusers' `save_pretrained` takes no state dict, so that
        # weights gathered under ZeRO-3 could not be passed. Write the layout that diffusers loads.
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if self.ema is not None:
            save_average(self.ema, folder)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(model, PeftModel):
            pipeline_class = getattr(diffusers, self.model_index["_class_name"])
            save_adapter(model, state_dict, folder, pipeline_class, self.family.denoiser)
        else:
            save_weights(model, state_dict, folder / self.family.denoiser)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.is_fsdp_enabled and self.args.should_save:
            (Path(output_dir) / FSDP_WEIGHTS).unlink()  # a second copy of the weights, as a pickle

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # The Trainer looks for weights at the root of the checkpoint. Under DeepSpeed it loads its own and not these.
        model = self.model if model is None else model
        if isinstance(model, PeftModel):
            load_adapter(model, Path(resume_from_checkpoint), self.family.denoiser)
        else:
            load_weights(model, Path(resume_from_checkpoint) / self.family.denoiser)
