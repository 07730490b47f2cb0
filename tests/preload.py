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


"""What the programs of [`processes`] need is imported here, so that they need not."""

import gc
import os


os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads cannot be forked safely
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # as `craft` does; DeepSpeed is imported with the Trainer

import accelerate.commands.launch  # noqa: E402, F401
import deepspeed  # noqa: E402, F401
import open_clip  # noqa: E402, F401
import torch.distributed.run  # noqa: E402, F401
from diffusers import StableDiffusionXLPipeline  # noqa: E402, F401
from transformers import Trainer  # noqa: E402, F401

import craft_trl.candidates.drawing  # noqa: E402, F401
import craft_trl.cli.main  # noqa: E402, F401
import craft_trl.evaluation.report  # noqa: E402, F401
import craft_trl.hub.release  # noqa: E402, F401
import craft_trl.scripts.run  # noqa: E402, F401
import craft_trl.trainer.craft_trainer  # noqa: E402, F401
import craft_trl.trainer.guard  # noqa: E402, F401


# On a CPU, DeepSpeed compiles an operator of its own, for a minute and once per environment. Only inference uses it.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

# What is here stays, in every fork: its collections of garbage, the last one among them, need neither look through it nor copy it.
gc.collect()
gc.freeze()
