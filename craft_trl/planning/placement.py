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

"""Whether pipeline and rewards lie beside each other on this machine's GPU."""

from collections.abc import Sequence

import torch

from ..candidates.config import CandidatesConfig
from ..devices import default_device
from ..errors import UsageError
from ..evaluation.config import EvaluationConfig
from ..rewards import RewardSpec
from .memory import CONTEXT, sampling_memory
from .operations import MetaPipeline


def offloads(
    config: CandidatesConfig | EvaluationConfig,
    source: str,
    revision: str | None,
    specs: Sequence[RewardSpec],
    num_processes: int = 1,
) -> bool:
    """
    Whether pipeline and rewards take turns on this process's device, see [`ScoringConfig`].

    Args:
        config ([`CandidatesConfig`] or [`EvaluationConfig`]):
            How the stage draws and scores.
        source (`str`):
            Hub id, folder or single file of the pipeline.
        revision (`str`, *optional*):
            Revision on the Hub.
        specs (`Sequence[RewardSpec]`):
            The rewards.
        num_processes (`int`, *optional*, defaults to `1`):
            Processes on this machine, which share out its GPUs.
    """
    if config.reward_device != "auto" or default_device().type != "cuda":
        return config.reward_device == "offload"
    try:
        meta = MetaPipeline(source, revision, getattr(torch, config.dtype), config.vae_name_or_path)
    except UsageError:
        return True  # a single file without a configuration: what always fits is slower, and no worse
    size = meta.size(config)
    denoising = meta.count_denoising(*size, config.max_sequence_length)
    memory = sampling_memory(config, meta, specs, denoising, meta.count_decoding(*size))
    return memory.offloads(config.reward_device, free_memory(num_processes) - CONTEXT)


def free_memory(num_processes: int = 1) -> float:
    """Bytes of this process's GPU that it can have."""
    device = default_device()
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    # Processes that begin together find each other's share still free.
    return min(free + cached, total / -(-num_processes // torch.cuda.device_count()))
