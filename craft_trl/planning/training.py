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

"""What a step of the training takes."""

from dataclasses import dataclass

from peft import LoraConfig

from ..trainer.denoiser import lora_config
from .memory import AUTOCAST_ACTIVATIONS, Profile
from .operations import MetaPipeline, tables
from .recipes import RunRecipes


@dataclass(frozen=True)
class Training:
    """
    A step of the training, on one GPU.

    Args:
        lora ([`~peft.LoraConfig`], *optional*):
            Configuration of the adapter, if it is one that is trained.
        trained (`int`), frozen (`int`):
            Parameters.
        micro_batch (`int`):
            Samples of a micro-batch, at most.
        flops (`float`):
            Operations of a sample.
        activations (`float`):
            Bytes of a sample's activations.
        static (`float`):
            Bytes that are there between two micro-batches: weights, gradients and the optimizer's states.
    """

    lora: LoraConfig | None
    trained: int
    frozen: int
    micro_batch: int
    flops: float
    activations: float
    static: float

    @classmethod
    def of(cls, recipes: RunRecipes, profile: Profile, meta: MetaPipeline, size: tuple[int, int]) -> "Training":
        """
        The training of some recipes on images of this height and width, with its pipeline in the precision that it computes in,
        whose denoiser has the adapter from then on.
        """
        args, train = recipes.training, recipes.train
        lora = None
        if train.use_peft:
            lora = lora_config(train.lora_target_modules or meta.family.lora_target_modules, train.lora_r)
        whole = meta.parameters(meta.family.denoiser)
        sample, trained = meta.count_training(
            *size, bool(args.activation_checkpointing), lora, args.max_sequence_length
        )
        frozen = whole - (0 if lora is not None else trained)
        # The model that training began with is asked too: the one in training without its adapter, or a copy.
        asked = args.negative_advantages == "proximal"
        copy = profile.copy_bytes(whole) if asked and lora is None else 0.0
        return cls(
            lora=lora,
            trained=trained,
            frozen=frozen,
            micro_batch=min(args.per_device_train_batch_size, args.global_batch_size // profile.num_processes or 1),
            flops=sample.flops * (1 + asked / (4 if args.activation_checkpointing else 3)),
            activations=sample.activations * (AUTOCAST_ACTIVATIONS if profile.autocast else 1),
            static=profile.static_bytes(trained, frozen)
            + (4 * trained if args.use_ema else 0)
            + copy
            # In float32 but for DeepSpeed, which rounds them with the weights.
            + tables(meta.denoiser) * (1 if profile.zero_stage or profile.dtype == "float32" else 2),
        )

    def memory(self, beside: float = 0.0) -> float:
        """Peak of a step in bytes, or of what is done between steps with so many bytes beside."""
        return self.static + max(self.micro_batch * self.activations, beside)
