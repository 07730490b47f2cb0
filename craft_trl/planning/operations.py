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

"""What a model's work takes, counted on its real classes without weights: operations and bytes of activations."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_flop_count

from ..candidates.config import SamplingConfig
from ..candidates.loading import make_scheduler
from ..errors import UsageError
from ..families import Family, get_family
from ..families.files import UNUSED, find_files
from ..losses import per_sample_mse
from ..trainer.denoiser import add_adapter, freeze


@dataclass(frozen=True)
class Count:
    """
    Work of one sample.

    Args:
        flops (`float`):
            Floating point operations, a multiply-add being two.
        activations (`int`):
            Largest number of bytes of tensors alive at once, weights and their gradients not among them.
    """

    flops: float
    activations: int = 0


@contextmanager
def _flash_attention() -> Iterator[None]:
    """
    Attention as a GPU does it, keeping no matrix of all tokens by all tokens: on the meta device it would be kept.

    Not a `TorchFunctionMode`: it is off during the backward pass, where activation checkpointing calls attention again.
    """
    original = F.scaled_dot_product_attention

    def flash(query, key, value, *args, **kwargs) -> torch.Tensor:
        if kwargs.get("enable_gqa"):  # several heads ask one: the products are as many as if each had its own
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3) for x in (key, value))
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    F.scaled_dot_product_attention = flash
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


# Formulas of torch.utils.flop_counter. Not its `FlopCounterMode`, which keeps tensors alive as it tracks modules. That
# FlashAttention computes the products of the forward pass again in its backward pass is its own affair.
FORMULAS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_backward: lambda grad, q, k, v, *args, **kwargs: (
        2 * sdpa_flop_count(q.shape, k.shape, v.shape)
    ),
    # Each of the two gradients takes what the forward pass does, also of channels in groups (PyTorch 2.14 takes all channels
    # for one group then). Delete when it does not.
    torch.ops.aten.convolution_backward: lambda grad, x, w, *args, **kwargs: (
        sum(args[7][:2]) * conv_flop_count(x.shape, w.shape, grad.shape, args[4])
    ),
}


class _Meter(TorchDispatchMode):
    """
    Adds up the operations of what is done inside, and the bytes of storages that are made and alive at once.

    Token ids and masks may be real, so that what is decided by their values can be: whatever meets a tensor without values
    has none from there on. The one question that transformers' encoders ask of a mask that they moved to where their weights
    are is whether it could be left out, which makes no operation less: the answer is yes.
    """

    def __init__(self, known: list[torch.Tensor]):
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata for tensor in known}
        self.flops = self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and args[0].dtype == torch.bool:
            return True
        if len({tensor.device for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}) > 1:
            args, kwargs = tree_map_only(torch.Tensor, _without_values, (args, kwargs))
        output = func(*args, **kwargs)
        if func._overloadpacket in FORMULAS:
            self.flops += FORMULAS[func._overloadpacket](*args, **kwargs, out_val=output)
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


def count(work: Callable[[], object], *modules: nn.Module) -> Count:
    """Operations and activations of some work of modules on the meta device."""
    known = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    known += [tensor.grad for tensor in known if tensor.grad is not None]
    meter = _Meter(known)
    with _flash_attention(), meter:
        work()
    return Count(meter.flops, meter.peak)


class MetaPipeline:
    """
    A pipeline of the real classes and configurations on the meta device: shapes, but no weights.

    Args:
        source (`str`):
            Hub id or folder of the pipeline. Only configurations and tokenizers are read.
        revision (`str`, *optional*):
            Revision on the Hub.
        dtype (`torch.dtype` or `dict[str, torch.dtype]`, *optional*, defaults to `torch.float32`):
            Precision, see [`cast`].
        vae (`str`, *optional*):
            Hub id or folder of another VAE.
    """

    def __init__(
        self,
        source: str,
        revision: str | None = None,
        dtype: torch.dtype | dict[str, torch.dtype] = torch.float32,
        vae: str | None = None,
    ):
        if Path(source).suffix == ".safetensors":  # its configuration lies beside it, see `load_pipeline`
            source = str(Path(source).parent)
            if not (Path(source) / "model_index.json").is_file():
                raise UsageError(
                    f"There is no model_index.json in {source}, which would say what the model is: plan with a folder."
                )
        self.files = files = find_files(source, revision)
        index = files.index
        self.family: Family = get_family(index["_class_name"])
        components: dict[str, object] = {}
        for name, entry in index.items():
            if name.startswith("_") or not isinstance(entry, (list, tuple)):
                continue
            library, class_name = entry
            if class_name is None or name in UNUSED:
                components[name] = None
                continue
            component_class = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
            where, origin = {"subfolder": name, "revision": revision}, source
            if name == "vae" and vae is not None:
                where, origin = {}, vae
            if not issubclass(component_class, nn.Module):
                components[name] = component_class.from_pretrained(origin, **where)
                continue
            with torch.device("meta"):
                if library == "diffusers":
                    module = component_class.from_config(component_class.load_config(origin, **where))
                else:
                    module = component_class(component_class.config_class.from_pretrained(origin, **where))
            components[name] = module.eval().requires_grad_(False)
        options = {"requires_safety_checker": False} if "safety_checker" in components else {}
        pipeline_class = getattr(diffusers, index["_class_name"])
        # Texts become tokens and masks on the CPU, where they have values.
        self.pipeline = type(index["_class_name"], (pipeline_class,), {"device": torch.device("cpu")})(
            **components, **options
        )
        for name, part in components.items():
            if name.startswith("tokenizer") and hasattr(part, "model_max_length"):
                part.model_max_length = files.model_max_length(name, part.model_max_length)
        self.modules = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
        self.denoiser: nn.Module = components[self.family.denoiser]
        for module in self.modules["vae"].modules():  # statistics of latents, which are read as numbers
            for name, values in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.zeros_like(values, device="cpu"))
        self.cast(dtype)

    def cast(self, dtype: torch.dtype | Mapping[str, torch.dtype]) -> None:
        """
        Change the precision of all modules, or of some by name and of the others as `"default"`, but of a VAE that its
        configuration says overflows in float16, see [`ImageGenerator`].
        """
        for name, module in self.modules.items():
            wanted = dtype if isinstance(dtype, torch.dtype) else dtype.get(name, dtype["default"])
            if name == "vae" and wanted == torch.float16 and module.config.get("force_upcast"):
                wanted = torch.float32
            # Not the classes' own `to`, which warns that weights that were loaded can be rounded. There are none.
            nn.Module.to(module, wanted)

    def parameters(self, *names: str) -> int:
        """Number of parameters of components, by default of all."""
        return sum(p.numel() for name in names or self.modules for p in self.modules[name].parameters())

    def weights(self, *names: str) -> int:
        """Bytes of the parameters and tables of components, by default of all; SD3.5 has .9 GB of positions in a table."""
        modules = [self.modules[name] for name in names or self.modules]
        return sum(tables(module) + sum(p.nbytes for p in module.parameters()) for module in modules)

    def size(self, config: SamplingConfig) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        height, width = self.family.size(self.denoiser.config, self.pipeline.vae.config)
        return config.height or height, config.width or width

    def steps(
        self, num_inference_steps: int, scheduler: str | None = None, timestep_spacing: str | None = None
    ) -> int:
        """Steps of drawing, with the model's own scheduler by default: more than are asked for with some schedulers."""
        own = self.pipeline.scheduler
        # A shift that depends on the size of an image moves the steps, and makes them no more.
        made = make_scheduler(
            scheduler or type(own).__name__, {**own.config, "use_dynamic_shifting": False}, timestep_spacing
        )
        made.set_timesteps(num_inference_steps)
        return len(made.timesteps)

    @torch.no_grad()
    def conditioning(self, max_sequence_length: int | None = None) -> dict[str, torch.Tensor]:
        """What the text encoders make of a prompt: masks with their values, and zeros for all else."""

        def zeros(module: nn.Module, args: tuple, output: object) -> object:
            # Pipelines take out of the states those of real tokens.
            return tree_map_only(torch.Tensor, lambda tensor: torch.zeros_like(tensor, device="cpu"), output)

        encoders = [module for name, module in self.modules.items() if name.startswith("text_encoder")]
        handles = [encoder.register_forward_hook(zeros) for encoder in encoders]
        try:
            with _Meter([]):
                return self.family.encode_prompts(self.pipeline, ["a prompt"], max_sequence_length)
        finally:
            for handle in handles:
                handle.remove()

    def inputs(self, height: int, width: int, max_sequence_length: int | None = None) -> dict[str, torch.Tensor]:
        """A training sample of this size as a batch of one."""
        vae, dtype = self.pipeline.vae.config, self.denoiser.dtype
        factor, channels = self.family.pixels_per_latent(vae), self.family.latent_channels(vae)
        latents = torch.empty(1, channels, height // factor, width // factor, device="meta", dtype=dtype)
        # A guidance that is an input takes as long whatever it is.
        images = self.family.image_conditioning(self.denoiser.config, height, width, 1.0)
        conditioning = self.conditioning(max_sequence_length) | {k: v[None] for k, v in images.items()}
        conditioning = {k: v.to("meta", dtype) if v.is_floating_point() else v for k, v in conditioning.items()}
        timesteps = torch.zeros(1, device="meta", dtype=torch.float32 if self.family.noise == "flow" else torch.long)
        return {"latents": latents, "timesteps": timesteps, "conditioning": conditioning}

    def count_text(self, max_sequence_length: int | None = None) -> Count:
        """Encoding a prompt."""
        return count(lambda: self.conditioning(max_sequence_length), *self.modules.values())

    @torch.no_grad()
    def count_denoising(self, height: int, width: int, max_sequence_length: int | None = None) -> Count:
        """One call of the denoiser for one image."""
        inputs = self.inputs(height, width, max_sequence_length)
        work = (inputs["latents"], inputs["timesteps"], inputs["conditioning"])
        return count(lambda: self.family.predict(self.denoiser, *work), self.denoiser)

    @torch.no_grad()
    def count_decoding(self, height: int, width: int) -> Count:
        """From latents to an image."""
        latents = self.inputs(height, width)["latents"].to(self.pipeline.vae.dtype)
        output = self.family.as_returned(latents)
        return count(lambda: self.family.decode_latents(self.pipeline, output, height, width), self.pipeline.vae)

    @torch.no_grad()
    def count_encoding(self, height: int, width: int) -> Count:
        """From an image to latents."""
        pixels = torch.empty(1, 3, height, width, device="meta", dtype=self.pipeline.vae.dtype)
        return count(lambda: self.family.encode_images(self.pipeline, pixels), self.pipeline.vae)

    def count_training(
        self,
        height: int,
        width: int,
        checkpointing: bool = False,
        lora: LoraConfig | None = None,
        max_sequence_length: int | None = None,
    ) -> tuple[Count, int]:
        """Forward and backward pass of one training sample, and the number of parameters that are trained."""
        inputs = self.inputs(height, width, max_sequence_length)
        denoiser, untrained = self.denoiser.train(), self.family.untrained(self.denoiser.config)
        if checkpointing:
            self.family.checkpoint_activations(denoiser)
        if lora is not None:
            with torch.device("meta"):
                denoiser = nn.Module.to(add_adapter(denoiser, lora, untrained), self.denoiser.dtype)
        else:
            denoiser.requires_grad_(True)
            freeze(denoiser, untrained)
        trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        for parameter in trained:  # they are there from the second micro-batch on
            parameter.grad = torch.empty_like(parameter)
        noise = torch.empty_like(inputs["latents"])

        def work() -> None:
            prediction = self.family.predict(denoiser, inputs["latents"], inputs["timesteps"], inputs["conditioning"])
            per_sample_mse(prediction, noise).sum().backward()

        return count(work, denoiser), sum(parameter.numel() for parameter in trained)


def tables(module: nn.Module) -> int:
    """Bytes of the numbers that a module has besides its parameters; numbers of positions are of no weight."""
    return sum(buffer.nbytes for buffer in module.buffers() if buffer.is_floating_point())
