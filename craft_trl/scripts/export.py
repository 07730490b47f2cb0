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

# A model between the base and the tuned one: less of what training gained, and of what it cost. In this format it can be put on the Hub
```bash
craft export --model runs/sdxl/model --strength 0.7 --format diffusers --output runs/sdxl/model_0.7
craft push runs/sdxl --repo_id org/name --what model --model_dir runs/sdxl/model_0.7
```

# The mean of models that were trained from one base, with different losses or seeds
```bash
craft export --model runs/sdxl/model --average runs/sdxl_proximal/model --format diffusers --output runs/sdxl/model_average
```
"""

import contextlib
import json
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
from ..families.strength import Strength, check_average, check_base, facts_of
from ..parser import CraftParser
from ..ranges import check_ranges
from ..sources import ADAPTER, FACTS, first_line
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
            Precision of the weights. Defaults to that which each part of the model has, and in a single file to the denoiser's.
        strength (`float`, *optional*, defaults to `1.0`):
            How far the way from the base to the model is gone: 0 is the base, 1 the model, and up to 2 it is led on. Of an
            adapter it is a factor of its scale.
        base (`str`, *optional*):
            Folder or Hub id of the model that the training of a pipeline began with, which a strength needs. Defaults to
            what the model's `training.json` names, which is a Hub id or nothing.
        average (`list[str]`, *optional*):
            Folders of more pipelines that were trained from the base of the model. The mean of their denoisers' weights and the model's
            is written, in float32 and rounded once; a strength is then of the way to that mean.
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
        default=None, metadata={"help": "Precision of the weights. Defaults to that of each part."}
    )
    strength: Strength = field(
        default=1.0,
        metadata={"help": "How far the way from the base, 0, to the model, 1, is gone; from 0 to 2."},
    )
    base: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id that the model was trained from, for a strength. Defaults to what it says."
        },
    )
    average: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders of more pipelines from the same base: the mean of their weights is written."},
    )

    def __post_init__(self):
        check_ranges(self)
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
    if args.base is not None and (adapter or args.strength == 1):
        why = "the strength of an adapter needs none" if adapter else "without a strength it has no effect"
        raise UsageError(f"base {args.base}: {why}, leave it out.")
    if args.average:
        check_average("average", [args.model, *args.average])
        for folder in args.average:
            check_model(folder)
    if not adapter and args.strength != 1:
        check_model(*base_of(args))
        check_base(f"strength {args.strength:g}", args.model, facts_of(args.model), *base_of(args))
    check_writable(output)
    return adapter


def base_of(args: ExportArguments) -> tuple[str, str | None]:
    """Folder or Hub id, and revision, of the model that a pipeline was trained from."""
    facts = facts_of(args.model)
    if (base := args.base or facts.get("base_model")) is None:
        name = f" It was trained from a folder of the name {facts['base_name']}." if facts.get("base_name") else ""
        raise UsageError(
            f"base is missing: strength {args.strength:g} is of the way from the model that {args.model} was trained from.{name}"
        )
    return base, None if Path(base).exists() or base != facts.get("base_model") else facts.get("base_revision")


def main(args: ExportArguments) -> None:
    """Write the model, read it back, and only then give it its name."""
    adapter = check(args)
    from ..trainer.export import export_adapter, export_pipeline

    with complete_or_nothing(Path(args.output)) as output:
        if adapter:
            export_adapter(args.model, output, args.format, args.dtype, args.strength)
        else:
            base = base_of(args) if args.strength != 1 else None
            export_pipeline(args.model, output, args.format, args.dtype, args.strength, base, args.average)
        if args.format == "diffusers" and (Path(args.model) / FACTS).is_file():
            write_facts(args, output)
    files = [p for p in (Path(args.output), *Path(args.output).rglob("*")) if p.is_file()]
    say(
        f"[export] {args.output}: {args.format}, {sum(p.stat().st_size for p in files) / 1e6:.1f} MB, read back and equal"
    )


def write_facts(args: ExportArguments, output: Path) -> None:
    """What the trainer left beside the model, and what was made of it since: `craft push` puts it in the card."""
    facts = facts_of(args.model)
    made = [{"average": [Path(model).name for model in args.average]}] if args.average else []
    if args.strength != 1:
        made.append({"strength": args.strength})
    facts["exported"] = [*facts.get("exported", []), *made]
    if args.dtype and "settings" in facts:
        facts["settings"]["weights"] = args.dtype
    (output / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


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
