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

import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ..candidates.config import SamplingConfig
from ..errors import UsageError
from ..families import Family, get_family
from ..families.files import find_files
from ..losses import per_sample_mse
from ..rewards import RewardSpec


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
    )
}


class _Meter(TorchDispatchMode):
    """Adds up the operations of what is done inside, and the bytes of storages that are made and alive at once."""

    def __init__(self, known: list[torch.Tensor]):
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata for tensor in known}
        self.flops = self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
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
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Precision of all modules, but of a VAE that its configuration says overflows in float16, see [`ImageGenerator`].
        vae (`str`, *optional*):
            Hub id or folder of another VAE.
    """

    def __init__(
        self,
        source: str,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        vae: str | None = None,
    ):
        if Path(source).suffix == ".safetensors":  # its configuration lies beside it, see `load_pipeline`
            source = str(Path(source).parent)
            if not (Path(source) / "model_index.json").is_file():
                raise UsageError(
                    f"There is no model_index.json in {source}, which would say what the model is: plan with a folder."
                )
        files = find_files(source, revision)
        index = files.index
        self.family: Family = get_family(index["_class_name"])
        components: dict[str, object] = {}
        for name, entry in index.items():
            if name.startswith("_") or not isinstance(entry, (list, tuple)):
                continue
            library, class_name = entry
            if class_name is None or name in ("safety_checker", "feature_extractor", "image_encoder"):
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
            # Not the classes' own `to`, which warns that weights that were loaded can be rounded. There are none.
            components[name] = nn.Module.to(module, dtype).eval().requires_grad_(False)
        if dtype == torch.float16 and components["vae"].config.get("force_upcast"):
            nn.Module.to(components["vae"], torch.float32)
        options = {"requires_safety_checker": False} if "safety_checker" in components else {}
        self.pipeline = getattr(diffusers, index["_class_name"])(**components, **options)
        for name, part in components.items():
            if name.startswith("tokenizer") and hasattr(part, "model_max_length"):
                part.model_max_length = files.model_max_length(name, part.model_max_length)
        self.modules = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
        self.denoiser: nn.Module = components[self.family.denoiser]

    def parameters(self, *names: str) -> int:
        """Number of parameters of components, by default of all."""
        return sum(p.numel() for name in names or self.modules for p in self.modules[name].parameters())

    def weights(self, *names: str) -> int:
        """Bytes of the parameters of components, by default of all."""
        modules = [self.modules[name] for name in names or self.modules]
        return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())

    def size(self, config: SamplingConfig) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        height, width = self.family.size(self.denoiser.config, self.pipeline.vae.config)
        return config.height or height, config.width or width

    def calls(self, config: SamplingConfig) -> int:
        """How often the denoiser is called for one image, guidance aside: more than once a step with some schedulers."""
        return self.steps(config.num_inference_steps, config.scheduler)

    def steps(self, num_inference_steps: int, scheduler: str | None = None) -> int:
        """The same, with the model's own scheduler by default."""
        scheduler_class = getattr(diffusers, scheduler) if scheduler else type(self.pipeline.scheduler)
        made = scheduler_class.from_config(self.pipeline.scheduler.config)
        made.set_timesteps(num_inference_steps)
        return len(made.timesteps)

    @cached_property
    def conditioning(self) -> dict[str, torch.Tensor]:
        """What the text encoders make of a prompt."""
        with torch.device("meta"), torch.no_grad():
            return self.family.encode_prompts(self.pipeline, ["a prompt"])

    def inputs(self, height: int, width: int) -> dict[str, torch.Tensor]:
        """A training sample of this size as a batch of one."""
        vae, factor = self.pipeline.vae, self.pipeline.vae_scale_factor
        latents = torch.empty(1, vae.config.latent_channels, height // factor, width // factor, device="meta")
        with torch.device("meta"):
            conditioning = dict(self.conditioning)
            conditioning |= {k: v[None].to("meta") for k, v in self.family.image_conditioning(height, width).items()}
            timesteps = torch.zeros(1, dtype=torch.long)
        conditioning = {k: v.to(self.denoiser.dtype) for k, v in conditioning.items()}
        return {"latents": latents.to(self.denoiser.dtype), "timesteps": timesteps, "conditioning": conditioning}

    @torch.no_grad()
    def count_text(self) -> Count:
        """Encoding a prompt."""
        return count(lambda: self.family.encode_prompts(self.pipeline, ["a prompt"]), *self.modules.values())

    @torch.no_grad()
    def count_denoising(self, height: int, width: int) -> Count:
        """One call of the denoiser for one image."""
        inputs = self.inputs(height, width)
        work = (inputs["latents"], inputs["timesteps"], inputs["conditioning"])
        return count(lambda: self.family.predict(self.denoiser, *work), self.denoiser)

    @torch.no_grad()
    def count_decoding(self, height: int, width: int) -> Count:
        """From latents to an image."""
        latents = self.inputs(height, width)["latents"].to(self.pipeline.vae.dtype)
        return count(lambda: self.pipeline.vae.decode(latents), self.pipeline.vae)

    @torch.no_grad()
    def count_encoding(self, height: int, width: int) -> Count:
        """From an image to latents."""
        pixels = torch.empty(1, 3, height, width, device="meta", dtype=self.pipeline.vae.dtype)
        return count(lambda: self.pipeline.vae.encode(pixels), self.pipeline.vae)

    def count_training(
        self, height: int, width: int, checkpointing: bool = False, lora: LoraConfig | None = None
    ) -> tuple[Count, int]:
        """Forward and backward pass of one training sample, and the number of parameters that are trained."""
        inputs = self.inputs(height, width)
        denoiser = self.denoiser.train()
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        if lora is not None:
            with torch.device("meta"):
                denoiser = nn.Module.to(get_peft_model(denoiser, lora), self.denoiser.dtype)
        else:
            denoiser.requires_grad_(True)
        trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        for parameter in trained:  # they are there from the second micro-batch on
            parameter.grad = torch.empty_like(parameter)
        noise = torch.empty_like(inputs["latents"])

        def work() -> None:
            prediction = self.family.predict(denoiser, inputs["latents"], inputs["timesteps"], inputs["conditioning"])
            per_sample_mse(prediction, noise).sum().backward()

        return count(work, denoiser), sum(parameter.numel() for parameter in trained)


@dataclass(frozen=True)
class Tower:
    """
    A transformer, as wide as all of its kind: four projections and two layers of the feed-forward network a block.

    Args:
        layers (`int`):
            Blocks.
        width (`int`):
            Hidden size.
        mlp (`int`):
            Inner size of the feed-forward network.
        tokens (`int`):
            Length of its sequence.
        vocabulary (`int`, *optional*, defaults to `0`):
            Rows of its embedding.
    """

    layers: int
    width: int
    mlp: int
    tokens: int
    vocabulary: int = 0

    @property
    def flops(self) -> int:
        """Operations of a forward pass of one sequence."""
        products = self.tokens * (4 * self.width**2 + 2 * self.width * self.mlp) + 2 * self.tokens**2 * self.width
        return 2 * self.layers * products

    @property
    def parameters(self) -> int:
        return self.layers * (4 * self.width**2 + 2 * self.width * self.mlp) + self.vocabulary * self.width

    @property
    def activations(self) -> int:
        """Values alive at once in a block for one sequence: its input before and after the norm, twice the inner layer."""
        return 2 * self.tokens * (self.width + self.mlp)


@dataclass(frozen=True)
class Network:
    """
    A network of another kind, whose work was counted once.

    Args:
        flops (`float`):
            Operations of a forward pass of one image.
        parameters (`int`):
            Number of parameters.
        activations (`int`):
            Values alive at once.
    """

    flops: float
    parameters: int
    activations: int


VIT_H = Tower(32, 1280, 5120, 257), Tower(24, 1024, 4096, 77, 49408)
VIT_L = Tower(24, 1024, 4096, 257), Tower(12, 768, 3072, 77, 49408)
# Mask2Former with Swin-S, of an image of 800 x 800 pixels.
MASK2FORMER = Network(0.442e12, 68_741_083, 176_600_000)
# By name: the tower that sees every image, and the one that sees every prompt once, if there is one, then what else there is.
# MPS's layers in which the image looks at the prompt have 8 + 4 times their width between the projections, as a tower with
# this inner layer. BLIP's text tower has projections to look at the image, counted with its inner layer; it runs for every
# image, and is counted with its prompt.
Towers = tuple[Tower | Network | None, ...]
PUBLISHED: dict[str, Towers] = {
    "hpsv2": VIT_H,
    "pickscore": VIT_H,
    "mps": (*VIT_H, Tower(4, 1024, 12416, 257)),
    "clipscore": VIT_L,
    "aesthetic": (VIT_L[0], None),
    "imagereward": (Tower(24, 1024, 4096, 197), Tower(12, 768, 4864, 35, 30524)),
    "geneval": (MASK2FORMER, None, *VIT_L),
}


def reward_towers(spec: RewardSpec) -> Towers | None:
    """Size of a reward model from its configuration, or of the published one; `None` where it is not known."""
    if spec.custom or spec.remote:
        return None
    folder = Path(spec.source or "")
    if spec.source and (folder / "open_clip_config.json").is_file():
        config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
        vision, text = config["vision_cfg"], config["text_cfg"]
        tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
        return (
            Tower(vision["layers"], vision["width"], int(vision["width"] * vision.get("mlp_ratio", 4)), tokens),
            Tower(text["layers"], text["width"], 4 * text["width"], text["context_length"], text["vocab_size"]),
        )
    if spec.source and (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vision, text = config.get("vision_config", config), config.get("text_config")
        if "patch_size" not in vision:
            return PUBLISHED.get(spec.name)
        tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
        image = Tower(vision["num_hidden_layers"], vision["hidden_size"], vision["intermediate_size"], tokens)
        if text is None:
            return image, None
        length = config.get("max_length") or text.get("max_position_embeddings", 77)
        width, mlp = text["hidden_size"], text["intermediate_size"]
        mlp += width + text["encoder_hidden_size"] if "encoder_hidden_size" in text else 0
        towers = image, Tower(text["num_hidden_layers"], width, mlp, length, text.get("vocab_size", 49408))
        if cross := config.get("cross_config"):
            width, heads, head = config["projection_dim"], cross["num_heads"], cross["head_width"]
            towers += (Tower(cross["num_layers"], width, 2 * (heads + 1) * head + 10 * width, tokens),)
        return towers
    return PUBLISHED.get(spec.name)
