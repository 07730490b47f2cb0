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
Memory of training, computed: the operations run on tensors without data, and every storage is counted while it lives.
`benchmarks/train.py --memory` prints it.
"""

import itertools
import weakref

import torch
import torch.nn.functional as F
from architectures import make_batch, make_denoiser, predict, put_adapter_on
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from craft_trl.trainer.precision import checkpoint_block, compute_in_bfloat16


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of live storages, and the most there ever were. Views and reshapes share a storage."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self.known:
                    self.known.add(storage)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self.free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return output

    def free(self, size: int) -> None:
        self.live -= size


def training_memory(name: str, micro_batch: int, mode: str, checkpointing: bool) -> dict[str, float]:
    """
    Bytes on the GPU while training, by what they are for.

    Args:
        name (`str`):
            Architecture.
        micro_batch (`int`):
            Samples per forward pass.
        mode (`"full"`, `"offload"` or `"lora"`):
            Full training on float32 master weights; the same with master weights and optimizer in the memory of the host;
            or a LoRA adapter.
        checkpointing (`bool`):
            Whether to recompute activations.

    Returns:
        `dict[str, float]`: `parameters`, `gradients` and `optimizer`, exact, and `activations`, the rest of the peak: all
        that lives at once in the forward and backward pass, bfloat16 copies of parameters included.
    """
    with torch.device("meta"):
        model = make_denoiser(name)
        if mode == "lora":
            put_adapter_on(model, name)
        elif mode == "offload":
            model.to(torch.bfloat16)
    with FakeTensorMode(), PeakMemory() as memory:
        # Fake tensors of a CPU rather than of the device `meta`: for those attention would keep its whole matrix.
        for module in model.modules():
            for key, p in module._parameters.items():
                if p is not None:
                    fake = torch.empty(p.shape, dtype=p.dtype)
                    module._parameters[key] = torch.nn.Parameter(fake, requires_grad=p.requires_grad)
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = torch.empty(buffer.shape, dtype=buffer.dtype)
        if checkpointing:
            model.enable_gradient_checkpointing(checkpoint_block)
        if mode in ("full", "lora"):
            compute_in_bfloat16(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        parameters = sum(p.numel() * p.element_size() for p in itertools.chain(model.parameters(), model.buffers()))
        gradients = 4 * sum(p.numel() for p in trained)  # float32 sums over the micro-batches before
        optimizer = 0 if mode == "offload" else 2 * gradients
        # Beside those that this one makes. DeepSpeed keeps them apart from its bfloat16 module.
        for p in trained if mode != "offload" else ():
            p.grad = torch.zeros_like(p)
        batch = make_batch(name, micro_batch)
        dtype = torch.bfloat16 if mode == "offload" else torch.float32
        batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
        memory.peak = before = memory.live
        F.mse_loss(predict(name, model, batch).float(), batch["noise"].float()).backward()
        return {
            "parameters": parameters,
            "gradients": gradients,
            "optimizer": optimizer,
            "activations": memory.peak - before,
        }


# Recipe, and what of it decides on memory.
PROFILES = {
    "sdxl": [
        ("craft.yaml", 4, "full", False),
        ("craft_24gb.yaml", 4, "offload", True),
        ("craft_lora.yaml", 4, "lora", True),
    ],
    "sd15": [("craft.yaml", 16, "full", False)],
    "sd35_medium": [("craft.yaml", 2, "full", False), ("craft_lora.yaml", 4, "lora", True)],
    "flux_dev": [("craft.yaml", 4, "lora", True)],
    "flux2_klein": [("craft.yaml", 1, "full", True), ("craft_lora.yaml", 4, "lora", True)],
    "sana": [("craft.yaml", 4, "full", False)],
    "pixart_sigma": [("craft.yaml", 4, "full", False)],
    "tiny": [("craft.yaml", 32, "full", False)],
}


def print_memory(name: str) -> None:
    print(f"\n{name}: GB (1e9 bytes), computed from the operations on tensors without data, not measured.")
    print("Not counted: the CUDA context, fragmentation, workspaces of libraries, buckets of DeepSpeed.\n")
    columns = ("parameters", "gradients", "optimizer", "activations", "sum")
    print(f"| profile | micro-batch | checkpointing | {' | '.join(columns)} |\n|{'---|' * (3 + len(columns))}")
    for profile, micro_batch, mode, checkpointing in PROFILES[name]:
        row = training_memory(name, micro_batch, mode, checkpointing)
        row["sum"] = sum(row.values())
        cells = " | ".join(f"{row[column] / 1e9:.2f}" for column in columns)
        print(f"| {profile} | {micro_batch} | {'yes' if checkpointing else 'no'} | {cells} |", flush=True)
