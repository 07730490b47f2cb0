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

"""Folders that hold a model: checkpoints on the way, and the whole pipeline at the end."""

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.training_utils import EMAModel
from huggingface_hub import save_torch_state_dict
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor.experimental import implicit_replication

from ..candidates.loading import load_pipeline, pipeline_folder
from ..errors import UsageError
from ..families.adapters import lora_loader, set_layers
from ..families.files import find_files
from ..sources import ADAPTER, content_hash


if TYPE_CHECKING:
    from .diffusion_trainer import DiffusionTrainer

AVERAGE = "ema.safetensors"
PEFT_PREFIX = "base_model.model."


def copy_frozen(trainer: "DiffusionTrainer", folder: Path) -> None:
    """Copy the parts that were not trained as they are in the source: nothing is loaded and no weight changes."""
    files = find_files(trainer.source, trainer.revision)
    source = pipeline_folder(trainer.source, trainer.revision)
    dtype = str(next(trainer.model.parameters()).dtype).removeprefix("torch.")
    for name, value in trainer.model_index.items():
        if not isinstance(value, (list, tuple)) or not (source / name).is_dir() or name == trainer.family.denoiser:
            continue
        ignore = shutil.ignore_patterns("*.bin", "*.onnx*")
        shutil.copytree(source / name, folder / name, ignore=ignore, dirs_exist_ok=True)
        if name in files.networks:
            drop_variant(folder / name, files.variant)
        config = folder / name / "config.json"
        if value[0] == "transformers" and config.exists():
            # transformers loads a model in the dtype that its config names, diffusers in float32. A pipeline of
            # both, loaded without a dtype, could not run.
            content = json.loads(config.read_text(encoding="utf-8"))
            content = {key: dtype if key in ("dtype", "torch_dtype") else item for key, item in content.items()}
            config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.copy(source / "model_index.json", folder)


def drop_variant(folder: Path, variant: str | None) -> None:
    """Give the weights of a variant, such as fp16, the names under which they are looked for without one."""
    for file in folder.glob(f"*.{variant}*") if variant else ():
        name = re.sub(rf"\.{variant}(?=[.-])", "", file.name)
        if name.endswith(".json"):
            text = file.read_text(encoding="utf-8")
            file.write_text(re.sub(rf"\.{variant}(?=[.-])", "", text), encoding="utf-8")
        file.replace(folder / name)


def with_own_storage(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Weights as safetensors takes them: those that FSDP gathers from uneven shards are views of a tensor with room for even ones, and
    are copied.
    """
    whole = {name: value.untyped_storage().nbytes() == value.nbytes for name, value in state_dict.items()}
    return {name: value if whole[name] else value.clone() for name, value in state_dict.items()}


def save_weights(model: ModelMixin, state_dict: dict[str, torch.Tensor] | None, folder: Path) -> None:
    """
    Write a denoiser as diffusers loads it.

    Args:
        model ([`~diffusers.ModelMixin`]):
            The denoiser.
        state_dict (`dict[str, torch.Tensor]`, *optional*):
            Its weights where they had to be gathered from several processes, which diffusers' `save_pretrained` does not take.
        folder (`Path`):
            Folder of the component.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_dict = model.state_dict() if state_dict is None else with_own_storage(state_dict)
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    save_torch_state_dict(state_dict, folder, filename_pattern=pattern, max_shard_size="10GB")
    model.save_config(folder)
    check_saved(state_dict, *folder.glob("*.safetensors"))


# Under FSDP each process takes its shard of what it reads.
@implicit_replication()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Load what [`save_weights`] wrote."""
    files = sorted(folder.glob("*.safetensors"))
    model.load_state_dict({name: value for file in files for name, value in load_file(file).items()})


def save_adapter(
    model: PeftModel,
    state_dict: dict[str, torch.Tensor] | None,
    folder: Path,
    pipeline_class: type[DiffusionPipeline],
    component: str,
) -> None:
    """
    Write an adapter as `load_lora_weights` of diffusers loads it, or [`attach_adapter`] for pipelines that have none.

    Args:
        model ([`~peft.PeftModel`]):
            The denoiser with its adapter.
        state_dict (`dict[str, torch.Tensor]`, *optional*):
            Its weights where they had to be gathered from several processes.
        folder (`Path`):
            Folder to write to.
        pipeline_class (`type[DiffusionPipeline]`):
            Pipeline that the adapter is for.
        component (`str`):
            Name of the denoiser in the pipeline.
    """
    # The prefix belongs to peft's wrapper; `load_lora_weights` would find no module under it. Other than that peft's names
    # stay: diffusers' `convert_state_dict_to_diffusers` renames those of attention projections alone, and
    # `load_lora_weights` silently drops them from a file that has both kinds (diffusers 0.42).
    layers = get_peft_model_state_dict(model, state_dict=state_dict and with_own_storage(state_dict))
    layers = {name.removeprefix(PEFT_PREFIX): value for name, value in layers.items()}
    # With peft's configuration as metadata: without it the adapter's scale, alpha / r, is taken for 1.
    config = model.peft_config["default"].to_dict()
    parts = {f"{component}_lora_layers": layers, f"{component}_lora_adapter_metadata": config}
    lora_loader(pipeline_class).save_lora_weights(folder, **parts)
    order_metadata(folder / ADAPTER)
    check_saved({f"{component}.{name}": value for name, value in layers.items()}, folder / ADAPTER)


@implicit_replication()
def load_adapter(model: PeftModel, folder: Path, component: str) -> None:
    """Load what [`save_adapter`] wrote."""
    layers = load_file(folder / ADAPTER)
    layers = {f"{PEFT_PREFIX}{name.removeprefix(f'{component}.')}": value for name, value in layers.items()}
    set_layers(model, layers, str(folder))


def save_average(ema: EMAModel, folder: Path) -> None:
    """Write the moving average of the weights, in the order of the trained parameters, and its step."""
    average = {str(i): value.contiguous() for i, value in enumerate(ema.shadow_params)}
    save_file(average, folder / AVERAGE, metadata={"step": str(ema.optimization_step)})


def load_average(ema: EMAModel, folder: Path, device: torch.device) -> None:
    """Load what [`save_average`] wrote."""
    with safe_open(folder / AVERAGE, "pt", device=str(device)) as file:
        ema.optimization_step = int(file.metadata()["step"])
        ema.shadow_params = [file.get_tensor(str(i)) for i in range(len(ema.shadow_params))]


def order_metadata(file: Path) -> None:
    """
    Bring the metadata of a safetensors file into an order of its own, so that equal content makes equal bytes. safetensors (0.8)
    writes them in one that differs from process to process.
    """
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items(), reverse=True))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= length:
            stream.seek(8)
            stream.write(ordered.ljust(length))


def check_saved(state_dict: dict[str, torch.Tensor], *files: Path) -> None:
    """Read weights back that were just written, one tensor at a time, and raise an `OSError` unless all are the same bytes."""
    missing = dict(state_dict)
    for file in files:
        with safe_open(file, "pt") as saved:
            for name in saved.keys():
                value = missing.pop(name, torch.empty(0)).detach().cpu().contiguous().flatten()
                read = saved.get_tensor(name).flatten()
                # Bytes, because a number that is none does not equal itself.
                if value.dtype != read.dtype or not torch.equal(value.view(torch.uint8), read.view(torch.uint8)):
                    raise OSError(f"{name} in {file} was read back with other values than were written.")
    if missing:
        raise OSError(f"{next(iter(missing))} is missing in {', '.join(map(str, files))}, which were just written.")


def unpack_single_file(source: Path, output_dir: Path) -> Path:
    """
    The folder of a pipeline for a single-file checkpoint: everything here reads and copies folders.

    Args:
        source (`Path`):
            A `.safetensors` file, see [`~loading.load_pipeline`].
        output_dir (`Path`):
            Folder to unpack it in. What was unpacked there before, from a file of the same content, is used again.
    """
    folder = output_dir / f"source-{content_hash(source)[:8]}"
    if not folder.exists():
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        load_pipeline(str(source)).save_pretrained(temporary)
        temporary.rename(folder)
    return folder


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """
    Newest checkpoint that was written to its end, or `None`.

    The Trainer writes into the final folder, `trainer_state.json` last, so that a kill leaves folders that look like
    checkpoints: without that file, with a part of it, or with weights cut short.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    newest_first = sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True)
    return next(filter(is_complete, newest_first), None)


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint was written to its end, see [`last_complete_checkpoint`]."""
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        for file in folder.rglob("*.safetensors"):
            with safe_open(file, "pt"):  # reads the header and compares the file's length with it
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def has_training_state(folder: Path) -> bool:
    """Whether a checkpoint holds the state of optimizer and schedule. The Trainer goes on without, and both begin anew."""
    optimizer = any((folder / name).is_file() for name in ("optimizer.pt", "optimizer.bin"))  # the latter is FSDP's
    state = optimizer and (folder / "scheduler.pt").is_file()
    return state or any(folder.glob("global_step*/*optim_states.pt"))  # the latter is DeepSpeed's


def check_training_state(folder: Path) -> None:
    """Raise a [`UsageError`] unless training can go on from a checkpoint, see [`has_training_state`]."""
    if not has_training_state(folder):
        raise UsageError(
            f"{folder} has no state of optimizer and schedule, as under save_only_model: training cannot go on from it."
        )


def checkpoint_to_go_on_from(wish: str | bool | None, output_dir: str) -> str | None:
    """The checkpoint that is meant, where `True` stands for the last one: a [`UsageError`] if there is none to go on from."""
    if wish is True:
        wish = last_complete_checkpoint(output_dir)
        if wish is None:
            raise UsageError(f"There is no complete checkpoint in {output_dir} to go on from.")
    if not wish:
        return None
    check_training_state(Path(wish))
    return str(wish)
