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

import transformers.integrations.deepspeed as hf_deepspeed


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
