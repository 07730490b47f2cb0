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

"""Models as people have them, of links to the tiny pipeline and small edits."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def linked(source: Path, folder: Path) -> Path:
    """A folder of links to the files of a pipeline."""
    for file in source.glob("*/*"):
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / file.name).symlink_to(file)
    (folder / "model_index.json").symlink_to(source / "model_index.json")
    return folder


def edit(folder: Path, name: str, **changes) -> None:
    """Replace the link to a configuration by a copy with other values; `...` removes a key."""
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).unlink()
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def renamed(folder: Path, old: str, new: str) -> None:
    """Give every file the name that has `new` in the place of `old`."""
    for file in list(folder.glob(f"*/*{old}*")):
        file.rename(file.with_name(file.name.replace(old, new)))


def sharded(folder: Path, component: str, stem: str, variant: str = "") -> list[Path]:
    """Put a component's weights into two shards with an index."""
    from safetensors.torch import load_file

    file = folder / component / f"{stem}.safetensors"
    weights = load_file(file)
    file.unlink()
    names = [f"{stem}{variant}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {name: names[i % 2] for i, name in enumerate(weights)}
    for shard in names:
        save_file(
            {name: weights[name] for name, there in weight_map.items() if there == shard}, folder / component / shard
        )
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / component / f"{stem}.safetensors.index{variant}.json").write_text(json.dumps(index))
    return [folder / component / name for name in names]


def tuned(source: Path, folder: Path, amount: float = 0.25) -> Path:
    """A model as a trainer leaves it: its UNet's weights moved a little, and the word of what it was trained from."""
    from safetensors.torch import load_file

    from craft_trl.sources import model_hash

    linked(source, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    file.unlink()
    moved = {name: value + amount * value.abs().mean() * (-1) ** i for i, (name, value) in enumerate(weights.items())}
    save_file(moved, file)
    facts = {"base_model": None, "base_name": source.name, "base_revision": None, "base_hash": model_hash(str(source))}
    (folder / "training.json").write_text(json.dumps(facts))
    return folder


def checkpoint(path: Path, without: str = "none", **more: torch.Tensor) -> Path:
    """
    A single file with a tensor of each part of SDXL, which is all that its header is looked at for. It cannot be loaded.
    Other tensors by name, with `/` for a dot.
    """
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        "model.diffusion_model.time_embed.0.weight": (8, 8),
        "model.diffusion_model.label_emb.0.0.weight": (8, 8),
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight": (8, 8),
        "model.diffusion_model.output_blocks.0.0.in_layers.0.bias": (8,),
        "model.diffusion_model.out.2.weight": (4, 8, 3, 3),
        "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (8, 8),
        "conditioner.embedders.1.model.text_projection": (8, 8),
    }
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items() if not name.startswith(without)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors | {name.replace("/", "."): value for name, value in more.items()}, path)
    return path
