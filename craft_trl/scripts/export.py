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

# An adapter for the same tools, of a UNet and of a transformer, and for peft
```bash
craft export --model runs/sdxl/lora --format kohya --output runs/sdxl/lora.safetensors
craft export --model runs/sd3/lora --format comfyui --output runs/sd3/lora.safetensors
craft export --model runs/sdxl/lora --format peft --output runs/sdxl/lora_peft
```
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from ..errors import UsageError
from ..families import get_family
from ..families.checks import check_model
from ..families.files import find_files
from ..parser import CraftParser
from ..sources import ADAPTER, first_line
from ..stages import check_writable
from .launch import run_script, say


# Formats of a full model and of an adapter, with whether they are one file.
PIPELINE_FORMATS = {"diffusers": False, "single-file": True}
ADAPTER_FORMATS = {"diffusers": False, "peft": False, "kohya": True, "comfyui": True}


@dataclass
class ExportArguments:
    """
    What is written, and how.

    Args:
        model (`str`):
            Folder that `craft train` wrote: a pipeline or an adapter.
        format (`"diffusers"`, `"single-file"`, `"peft"`, `"kohya"` or `"comfyui"`):
            A pipeline can be written as `diffusers` or, if its denoiser is a UNet, `single-file`; an adapter as `diffusers`,
            `peft` or, for ComfyUI and others, `kohya` of a UNet and `comfyui` of a transformer.
        output (`str`):
            File to write for `single-file`, `kohya` and `comfyui`, folder for the others. Must not exist.
        dtype (`"float32"`, `"float16"` or `"bfloat16"`, *optional*):
            Precision of the weights. Defaults to that of the model.
    """

    model: str = field(default=None, metadata={"help": "Folder that `craft train` wrote: a pipeline or an adapter."})
    format: Literal["diffusers", "single-file", "peft", "kohya", "comfyui"] = field(
        default=None,
        metadata={
            "help": "diffusers or single-file for a pipeline; diffusers, peft, kohya (of a UNet) or comfyui (of a transformer) "
            "for an adapter."
        },
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
    if not adapter and not folder.is_dir():
        raise UsageError(
            f"Model {folder} is no folder of a pipeline or an adapter: it has no model_index.json or {ADAPTER}."
        )
    if adapter:
        try:
            with safe_open(folder / ADAPTER, "np") as file:
                of_unet = any(name.startswith("unet.") for name in file.keys())
        except SafetensorError as error:
            raise UsageError(f"{folder / ADAPTER} is damaged: {first_line(error)}.") from error
    else:
        check_model(args.model)
    formats = ADAPTER_FORMATS if adapter else PIPELINE_FORMATS
    if args.format not in formats:
        what = "an adapter" if adapter else "a pipeline"
        raise UsageError(f"format must be one of {', '.join(formats)} for {what}, got {args.format!r}.")
    if adapter and args.format == ("comfyui" if of_unet else "kohya"):
        other, what = ("kohya", "UNets") if of_unet else ("comfyui", "transformers")
        raise UsageError(f"format {args.format} is not for the adapters of {what}: those ComfyUI reads as {other}.")
    if args.format == "single-file":
        class_name = find_files(args.model).index["_class_name"]
        if get_family(class_name).denoiser != "unet":
            raise UsageError(
                f"format single-file is for Stable Diffusion 1.x and SDXL, and diffusers writes none of a {class_name}. Use "
                "diffusers: ComfyUI reads the file in its folder transformer as a diffusion model, of the classes that it knows."
            )
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
    from ..trainer.export import export_adapter, export_pipeline

    with complete_or_nothing(Path(args.output)) as output:
        if adapter:
            export_adapter(args.model, output, args.format, args.dtype)
        else:
            export_pipeline(args.model, output, args.format, args.dtype)
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


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([ExportArguments], prog=prog)


if __name__ == "__main__":
    raise SystemExit(run_script(main, make_parser))
