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

"""
One of the processes of a training, from within. Started by `torchrun` or `accelerate launch` with the arguments of `craft train`.
"""

import hashlib

import torch

from craft_trl.devices import on_main_process
from craft_trl.errors import exit_code
from craft_trl.scripts.train import main, make_parser
from craft_trl.trainer.craft_trainer import CraftTrainer


class Watched(CraftTrainer):
    """Says what was encoded, and where and in which precision gradients are summed."""

    def train(self, *arguments, **settings):
        self.say(f"encoded {hashlib.sha256(self.encoded.read_bytes()).hexdigest()}")
        self.say(f"beside it {sorted(path.name for path in self.encoded.parent.glob('encoded*'))}")
        return super().train(*arguments, **settings)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            gradients = [parameter.grad for parameter in model.parameters()]
            storages = {gradient.untyped_storage().data_ptr() for gradient in gradients}
            where = "buckets" if len(storages) < len(gradients) else "their own"
            self.say(f"synchronised {self.accelerator.sync_gradients}: gradients in {where}")
        return loss

    def _clip_grad_norm(self, model):
        if self.is_deepspeed_enabled:
            optimizer = self.model_wrapped.optimizer
            kind = getattr(optimizer, "gradient_accumulation_dtype", None) or optimizer.grad_acc_dtype
            self.say(f"{type(optimizer).__name__} sums in {kind} over {self.model.dtype}")
        return super()._clip_grad_norm(model)

    def say(self, message: str) -> None:
        on_main_process(lambda: print(message, flush=True))


if code := exit_code(lambda: main(*make_parser().parse_args_and_config(), trainer_class=Watched)):
    raise SystemExit(code)
