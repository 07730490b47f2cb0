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
Write a trained model in the format of another tool, and read it back.

# A full model for ComfyUI, AUTOMATIC1111 and others that want a single file
```bash
craft export --model runs/sdxl/model --format single-file --output runs/sdxl/model.safetensors --dtype float16
```

# An adapter for the same tools, and for peft
```bash
craft export --model runs/sdxl/lora --format kohya --output runs/sdxl/lora.safetensors
craft export --model runs/sdxl/lora --format peft --output runs/sdxl/lora_peft
```
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import diffusers
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_kohya, convert_unet_state_dict_to_peft
from peft import LoraConfig
from peft.utils import load_peft_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UsageError
from ..families import get_family
from ..families.single_file import single_file_state_dict
from ..parser import CraftParser
from ..sources import check_model, first_line
from ..stages import check_writable
from ..trainer.checkpoints import ADAPTER, PEFT_PREFIX
from .launch import run_script, say


# Formats of a full model and of an adapter, with whether they are one file.
PIPELINE_FORMATS = {"diffusers": False, "single-file": True}
ADAPTER_FORMATS = {"diffusers": False, "peft": False, "kohya": True}


@dataclass
class ExportArguments:
    """
    What is written, and how.

    Args:
        model (`str`):
            Folder that `craft train` wrote: a pipeline or an adapter.
        format (`"diffusers"`, `"single-file"`, `"peft"` or `"kohya"`):
            A pipeline can be written as `diffusers` or `single-file`, an adapter as `diffusers`, `peft` or `kohya`.
        output (`str`):
            File to write for `single-file` and `kohya`, folder for the others. Must not exist.
        dtype (`"float32"`, `"float16"` or `"bfloat16"`, *optional*):
            Precision of the weights. Defaults to that of the model.
    """

    model: str = field(default=None, metadata={"help": "Folder that `craft train` wrote: a pipeline or an adapter."})
    format: Literal["diffusers", "single-file", "peft", "kohya"] = field(
        default=None,
        metadata={"help": "diffusers or single-file for a pipeline; diffusers, peft or kohya for an adapter."},
    )
    output: str = field(default=None, metadata={"help": "File or folder to write. Must not exist."})
    dtype: Literal["float32", "float16", "bfloat16"] | None = field(
        default=None, metadata={"help": "Precision of the weights. Defaults to that of the model."}
    )

    def __post_init__(self):
        for name in ("model", "format", "output"):
            if not getattr(self, name):
                raise UsageError(f"{name} is missing: give it as --{name}.")


def check(args: ExportArguments) -> bool:
    """Find what is wrong before anything is loaded. Returns whether the model is an adapter."""
    folder, output = Path(args.model), Path(args.output)
    adapter = (folder / ADAPTER).is_file()
    if not adapter and not (folder / "model_index.json").is_file():
        raise UsageError(
            f"Model {folder} is no folder of a pipeline or an adapter: it has no model_index.json or {ADAPTER}."
        )
    if adapter:
        try:
            with safe_open(folder / ADAPTER, "pt"):
                pass
        except SafetensorError as error:
            raise UsageError(f"{folder / ADAPTER} is damaged: {first_line(error)}.") from error
    else:
        check_model(args.model)
    formats = ADAPTER_FORMATS if adapter else PIPELINE_FORMATS
    if args.format not in formats:
        what = "an adapter" if adapter else "a pipeline"
        raise UsageError(f"format must be one of {', '.join(formats)} for {what}, got {args.format!r}.")
    if output.exists():
        raise UsageError(f"{output} exists: choose another output.")
    if formats[args.format] != (output.suffix == ".safetensors"):
        kind = "a file that ends in .safetensors" if formats[args.format] else "a folder"
        raise UsageError(f"The output of {args.format} is {kind}, got {output}.")
    check_writable(output)
    return adapter


def main(args: ExportArguments) -> None:
    """Write the model, read it back, and only then give it its name."""
    adapter = check(args)
    with complete_or_nothing(Path(args.output)) as output:
        if adapter:
            export_adapter(args, output)
        else:
            export_pipeline(args, output)
    files = [p for p in (Path(args.output), *Path(args.output).rglob("*")) if p.is_file()]
    say(
        f"[export] {args.output}: {args.format}, {sum(p.stat().st_size for p in files) / 1e6:.1f} MB, read back and equal"
    )


@contextlib.contextmanager
def complete_or_nothing(output: Path) -> Iterator[Path]:
    """A path beside `output` to write to, which is renamed to it at the end and removed after an error."""
    output.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: by it diffusers tells a file of safetensors from others.
    temporary = output.with_name(f".new.{output.name}")
    _remove(temporary)
    try:
        yield temporary
        temporary.rename(output)
    finally:
        _remove(temporary)


def export_pipeline(args: ExportArguments, output: Path) -> None:
    """Write a pipeline as a folder or a single file."""
    dtype = getattr(torch, args.dtype) if args.dtype else None
    pipeline_class = DiffusionPipeline.load_config(args.model)["_class_name"]
    family = get_family(pipeline_class)
    # Without a dtype diffusers loads everything in float32, whatever is in the files.
    dtype = dtype or stored_dtype(Path(args.model) / family.DENOISER)
    pipeline = DiffusionPipeline.from_pretrained(args.model, dtype=dtype, use_safetensors=True)
    if args.format == "diffusers":
        pipeline.save_pretrained(output, max_shard_size="10GB")
        again = DiffusionPipeline.from_pretrained(output, dtype=dtype, use_safetensors=True)
    else:
        state_dict = single_file_state_dict(pipeline)
        save_file({name: value.contiguous() for name, value in state_dict.items()}, output, metadata={"format": "pt"})
        again = getattr(diffusers, pipeline_class).from_single_file(
            str(output), config=args.model, local_files_only=True, dtype=dtype
        )
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            assert_equal(part.state_dict(), getattr(again, name).state_dict(), f"{name} of {output}")


def export_adapter(args: ExportArguments, output: Path) -> None:
    """Write an adapter of a denoiser in the layout of diffusers, peft or kohya's scripts."""
    # The layout of an adapter does not depend on the class, and its folder does not name one.
    layers, _, metadata = StableDiffusionXLPipeline.lora_state_dict(args.model, return_lora_metadata=True)
    if not metadata:
        raise UsageError(f"The adapter in {args.model} does not say its scale, as those of `craft train` do.")
    (prefix,) = {name.split(".")[0] for name in layers}
    config = {key.removeprefix(f"{prefix}."): value for key, value in metadata.items()}
    if args.dtype:
        layers = {name: value.to(getattr(torch, args.dtype)) for name, value in layers.items()}
    if args.format == "kohya":
        converted = convert_state_dict_to_kohya(layers)
        # The converter takes the rank for alpha, which would change the adapter's scale, alpha / rank, to 1.
        alphas = {name: torch.tensor(float(config["lora_alpha"])) for name in converted if name.endswith(".alpha")}
        save_file({**converted, **alphas}, output)
        again, network_alphas = StableDiffusionXLPipeline.lora_state_dict(str(output))
        again = convert_unet_state_dict_to_peft(again)
        if set(network_alphas.values()) != {float(config["lora_alpha"])}:
            raise RuntimeError(f"The scale in {output} is not that of the adapter.")
    elif args.format == "peft":
        layers = {f"{PEFT_PREFIX}{name.removeprefix(f'{prefix}.')}": value for name, value in layers.items()}
        output.mkdir()
        save_file(layers, output / "adapter_model.safetensors", metadata={"format": "pt"})
        LoraConfig(**config).save_pretrained(output)
        again = load_peft_weights(str(output), device="cpu")
        if LoraConfig.from_pretrained(output).to_dict() != LoraConfig(**config).to_dict():
            raise RuntimeError(f"The configuration in {output} is not that of the adapter.")
    else:
        shutil.copytree(args.model, output, ignore=lambda folder, names: [name for name in names if name != ADAPTER])
        if args.dtype:
            unprefixed = {name.removeprefix(f"{prefix}."): value for name, value in layers.items()}
            parts = {f"{prefix}_lora_layers": unprefixed, f"{prefix}_lora_adapter_metadata": config}
            StableDiffusionXLPipeline.save_lora_weights(output, **parts)
        again, _ = StableDiffusionXLPipeline.lora_state_dict(str(output))
    assert_equal(layers, again, str(output))


def stored_dtype(folder: Path) -> torch.dtype:
    """Precision of the weights in a component's folder."""
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        return file.get_tensor(next(iter(file.keys()))).dtype


def assert_equal(written: dict[str, torch.Tensor], read: dict[str, torch.Tensor], what: str) -> None:
    """Raise a `RuntimeError` unless what was read back is what was written, to the last bit."""
    different = sorted(written.keys() ^ read.keys()) or [
        # What a file lacks stays without data, on the device `meta`.
        name
        for name, value in written.items()
        if read[name].is_meta or not torch.equal(value, read[name])
    ]
    if different:
        raise RuntimeError(f"{what} was read back with other weights than were written, the first is {different[0]}.")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([ExportArguments], prog=prog)


if __name__ == "__main__":
    raise SystemExit(run_script(main, make_parser))
