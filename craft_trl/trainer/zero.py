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

"""DeepSpeed's ZeRO-3."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import transformers.integrations.deepspeed as hf_deepspeed


if TYPE_CHECKING:
    from .diffusion_config import DiffusionConfig


def configure_deepspeed(args: "DiffusionConfig") -> None:
    """
    Complete DeepSpeed's configuration, if there is one, before its engine is made: gradients are summed over micro-batches in float32, where
    DeepSpeed's default is the precision of the module (0.19), and there are as many micro-batches as `args` says.
    """
    if args.deepspeed_plugin is None:
        return
    # An accelerate configuration has no word for it (1.15).
    config = args.deepspeed_plugin.deepspeed_config
    config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    config["gradient_accumulation_steps"] = args.gradient_accumulation_steps
    config["train_batch_size"] = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


@contextmanager
def zero_init_disabled() -> Iterator[None]:
    """
    Load modules whole on every rank.

    Under ZeRO-3, `from_pretrained` of transformers partitions whatever it loads. Only the denoiser becomes a DeepSpeed
    engine, so text encoders would stay empty shards. `zero3_init_context_manager(enable=False)` does not prevent it
    any more (accelerate 1.15); delete this once it does.
    """
    reference = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = reference
