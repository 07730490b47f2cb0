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


import os
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..devices import accelerator
from ..errors import UsageError
from ..sources import first_line
from .base_config import BaseConfig, HubStrategy
from .training_options import check_options


def native_half_precision() -> Literal["bf16", "fp16"] | None:
    """
    The 16 bits that a CUDA GPU computes in, `None` without one. PyTorch says of cards before Ampere that they support
    bfloat16, which they emulate, many times slower than float32.
    """
    if not torch.cuda.is_available():
        return None
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@dataclass
class DiffusionConfig(BaseConfig):
    """
    Configuration of [`DiffusionTrainer`], common to all trainers of diffusion models.

    This class includes only the parameters that are specific to diffusion models. Of
    [`~transformers.TrainingArguments`], the names in [`training_options.WORKS`] work here, some with other defaults; any
    other is an error unless it is at its default.

    Parameters:
        > Parameters that control the batches

        global_batch_size (`int`, *optional*):
            Samples per optimizer step over all processes, so that a recipe means the same on one GPU and on eight.
            `gradient_accumulation_steps` follows from it: micro-batches have at most `per_device_train_batch_size`
            samples and need not be even. Defaults to what the three sizes multiply to.

        > Parameters that control the data

        train_prompt (`"original"` or `"expanded"`, *optional*, defaults to `"original"`):
            Prompt an image is trained on: the one it was scored under, or the variant that it was drawn from.
        proportion_empty_prompts (`float`, *optional*, defaults to `0.0`):
            Chance that a sample is trained on the empty prompt instead of its own.

        max_sequence_length (`int`, *optional*):
            Tokens of a prompt that are read, of models whose pipelines take it. Defaults to the pipeline's own. As when the
            images were drawn.
        text_encoder_dtype (`"float32"`, `"bfloat16"` or `"float16"`, *optional*):
            Precision in which prompts are encoded. Defaults to float32 for CLIP's encoders, and to bfloat16 for others,
            which are several billion parameters.
        train_guidance_scale (`float`, *optional*):
            Of models whose denoiser takes the scale of guidance as an input: the one it is trained with, as when the images
            were drawn.
        train_distilled (`bool`, *optional*, defaults to `False`):
            Train a model that was distilled to draw in a few steps, although it will need many again.

        > Parameters that control the loss

        snr_gamma (`float`, *optional*):
            Min-SNR weighting of the timesteps, usually 5. Defaults to none.
        timestep_sampling (`"uniform"` or `"logit_normal"`, *optional*):
            Of flow matching: how the noise levels are distributed before their shift. Defaults to `"uniform"`.
        timestep_shift (`float`, *optional*):
            Of flow matching: shift of the noise levels, see [`FlowNoise`]; 1 is none. Defaults to the one that the model's
            scheduler draws with at the size of the images.

        > Parameters that control speed and memory

        bf16_mode (`"module"` or `"autocast"`, *optional*, defaults to `"module"`):
            What `bf16` means without DeepSpeed: compute the whole module in bfloat16, on copies of its float32
            parameters, or let autocast choose the precision of each operation, which keeps norms in float32 and takes
            more memory and time. DeepSpeed always does the former.
        compile_blocks (`bool`, *optional*, defaults to `False`):
            Compile the blocks that the denoiser repeats, not the whole of it: most of the speed for a fraction of the
            compiling. Not under ZeRO-3.
        channels_last (`bool`, *optional*, defaults to `False`):
            Memory format of the convolutions' weights and activations.

        > Parameters that control what is saved

        use_ema (`bool`, *optional*, defaults to `False`):
            Save an exponential moving average of the weights instead of the last ones. Not under ZeRO-3.
        ema_decay (`float`, *optional*, defaults to `0.99`):
            Largest decay of the average; at step `k` it is at most `(1 + k) / (10 + k)`.

        > Parameters that control validation

        validation_prompts (`list[str]`, *optional*):
            Prompts to draw while training, each from the same noise every time, into `validation/` of `output_dir`.
        validation_steps (`int`, *optional*, defaults to `25`):
            Draw them every so many steps, before the first and after the last.
        validation_num_inference_steps (`int`, *optional*, defaults to `25`):
            Denoising steps.
        validation_guidance_scale (`float`, *optional*, defaults to `5.0`):
            Scale of classifier-free guidance.
    """

    # Parameters whose default values are overridden from TrainingArguments or TRL's base config
    activation_checkpointing: bool | None = field(
        default=False,
        metadata={"help": "Recompute activations in the backward pass: less memory, a quarter more time."},
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Deprecated name of `activation_checkpointing`."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Log every X update steps."})
    max_steps: int = field(default=-1, metadata={"help": "Number of optimizer steps. Must be given."})
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to train in bfloat16. Defaults to `True` on a GPU that has it, and where `accelerate launch` "
            "was told so, unless fp16 is set. On a GPU that only emulates it, fp16 is the default."
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Whether DDP looks for parameters without gradient. A denoiser has none."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Not used: the batch is made by the trainer."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Not used: a loss that is no number stops training, it is never hidden."}
    )
    ddp_timeout: int = field(
        default=7 * 24 * 3600,
        metadata={
            "help": "Seconds that processes wait for each other. Long, as one of them scores images and writes checkpoints; "
            "an error on any of them ends all at once."
        },
    )
    dataloader_pin_memory: bool = field(
        default=torch.cuda.is_available(), metadata={"help": "Whether to pin memory in data loaders."}
    )
    hub_strategy: HubStrategy | str = field(
        default="end", metadata={"help": "When to push to the Hub: only at the end, since checkpoints stay here."}
    )

    # Parameters that control the batches
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Samples per optimizer step over all processes. `gradient_accumulation_steps` follows from it."
        },
    )

    # Parameters that control the data
    train_prompt: Literal["original", "expanded"] = field(
        default="original",
        metadata={"help": "Prompt an image is trained on: the one it was scored under, or its expanded variant."},
    )
    proportion_empty_prompts: float = field(
        default=0.0,
        metadata={"help": "Chance that a sample is trained on the empty prompt instead of its own."},
    )

    max_sequence_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a prompt that are read, as when the images were drawn. Defaults to the pipeline's own."
        },
    )
    text_encoder_dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None,
        metadata={
            "help": "Precision in which prompts are encoded. Defaults to float32 for CLIP and to bfloat16 for others."
        },
    )
    train_guidance_scale: float | None = field(
        default=None,
        metadata={
            "help": "Of models whose denoiser takes the scale of guidance as an input: the one that the images were drawn with."
        },
    )
    train_distilled: bool = field(
        default=False,
        metadata={
            "help": "Train a model that was distilled to draw in a few steps, although it will need many again."
        },
    )

    # Parameters that control the loss
    timestep_sampling: Literal["uniform", "logit_normal"] | None = field(
        default=None, metadata={"help": "Of flow matching: how noise levels are distributed. Defaults to uniform."}
    )
    timestep_shift: float | None = field(
        default=None, metadata={"help": "Of flow matching: shift of the noise levels. Defaults to the model's own."}
    )
    snr_gamma: float | None = field(
        default=None, metadata={"help": "Min-SNR weighting of the timesteps, usually 5. Defaults to none."}
    )

    # Parameters that control speed and memory
    bf16_mode: Literal["module", "autocast"] = field(
        default="module",
        metadata={
            "help": "What bf16 means without DeepSpeed: the whole module in bfloat16 on float32 master weights, or "
            "autocast."
        },
    )
    compile_blocks: bool = field(
        default=False, metadata={"help": "Compile the blocks that the denoiser repeats. Not under ZeRO-3."}
    )
    channels_last: bool = field(
        default=False, metadata={"help": "Memory format of the convolutions' weights and activations."}
    )

    # Parameters that control what is saved
    use_ema: bool = field(
        default=False,
        metadata={"help": "Save an exponential moving average of the weights instead of the last ones."},
    )
    ema_decay: float = field(default=0.99, metadata={"help": "Largest decay of the average."})

    # Parameters that control validation
    validation_prompts: list[str] | None = field(
        default=None, metadata={"help": "Prompts to draw while training, each from the same noise every time."}
    )
    validation_steps: int = field(default=25, metadata={"help": "Draw the validation prompts every so many steps."})
    validation_num_inference_steps: int = field(default=25, metadata={"help": "Denoising steps of validation images."})
    validation_guidance_scale: float = field(default=5.0, metadata={"help": "Guidance scale of validation images."})

    def __post_init__(self):
        check_options(self, BaseConfig)
        # From the launcher: the configuration's own count is known only after its `__post_init__`, which hands the
        # accumulation to DeepSpeed.
        num_processes = int(os.environ.get("WORLD_SIZE", 1))
        micro_batch_size = self.per_device_train_batch_size
        if self.global_batch_size is None:
            self.global_batch_size = micro_batch_size * self.gradient_accumulation_steps * num_processes
        if self.global_batch_size < 1 or self.global_batch_size % num_processes:
            raise UsageError(
                f"global_batch_size must be a multiple of {num_processes}, the number of processes; got "
                f"{self.global_batch_size}."
            )
        accumulation = -(-self.global_batch_size // (micro_batch_size * num_processes))
        if self.gradient_accumulation_steps not in (1, accumulation):
            raise UsageError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}, but a global_batch_size of "
                f"{self.global_batch_size} in micro-batches of {micro_batch_size} on {num_processes} processes needs "
                f"{accumulation}: leave it out."
            )
        self.gradient_accumulation_steps = accumulation
        if accelerator() is None:
            # TrainingArguments (transformers 5.23) falls back on the CPU by itself, but then refuses bf16, and each of
            # several processes takes itself for the only one.
            self.use_cpu = True
        self.fell_back_to_fp16 = False
        if self.bf16 is None:
            half = None if self.use_cpu else native_half_precision()
            self.fell_back_to_fp16 = half == "fp16" and not self.fp16
            self.fp16 = self.fp16 or self.fell_back_to_fp16
            launched = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"  # DeepSpeed will compute in it
            self.bf16 = not self.fp16 and (launched or half == "bf16")
        try:
            super().__post_init__()
        except (ImportError, NotImplementedError, TypeError, ValueError) as error:
            raise error if isinstance(error, UsageError) else UsageError(first_line(error)) from error
        if self.train_prompt not in ("original", "expanded"):
            raise UsageError(f"train_prompt must be 'original' or 'expanded', got {self.train_prompt!r}.")
        for name, choices in (
            ("bf16_mode", ("module", "autocast")),
            ("timestep_sampling", (None, "uniform", "logit_normal")),
            ("text_encoder_dtype", (None, "float32", "bfloat16", "float16")),
        ):
            if (value := getattr(self, name)) not in choices:
                said = " or ".join(repr(choice) for choice in choices if choice)
                raise UsageError(f"{name} must be {said}, got {value!r}.")
        # With several GPUs and no launcher the Trainer would wrap the model in `DataParallel`, which splits every
        # micro-batch anew and is slower than one GPU. Use one; `accelerate launch` uses all.
        if self.n_gpu > 1:
            self._n_gpu = 1
        # Others ask a model's configuration for methods that those of diffusers do not have. Inside of Kubeflow the
        # Trainer adds that one by itself.
        trackers = {"tensorboard", "trackio", "wandb"}
        if unknown := sorted(set(self.report_to) - trackers - {"kubeflow"}):
            raise UsageError(f"report_to must be among {', '.join(sorted(trackers))}, none; got {unknown[0]!r}.")
        if self.push_to_hub and self.hub_strategy != "end":
            raise UsageError(f"hub_strategy must be 'end', got {self.hub_strategy.value!r}: checkpoints stay here.")
