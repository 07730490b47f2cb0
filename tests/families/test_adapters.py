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

"""An adapter of a pipeline for which diffusers has no loader is written and put on as others are."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from craft_trl.errors import UsageError
from craft_trl.families.adapters import attach_adapter
from craft_trl.sources import ADAPTER
from craft_trl.trainer.checkpoints import save_adapter

from .random_pipelines import pixart, sana
from .test_files import publish, server  # noqa: F401


LAYERS = {"pixart": (pixart, "attn1.to_q"), "sana": (sana, "attn2.to_q")}


@pytest.fixture(params=LAYERS)
def adapter(request, tmp_path):
    """A pipeline, the folder of an adapter with a scale of 3, and the denoiser that has it."""
    make, module = LAYERS[request.param]
    torch.manual_seed(0)
    settings = LoraConfig(r=2, lora_alpha=6, target_modules=[module], init_lora_weights=False)
    trained = get_peft_model(make().transformer, settings)
    save_adapter(trained, None, tmp_path, type(make()), "transformer")
    return make(), tmp_path, trained.base_model.model


def test_files_are_alike(adapter):
    _, folder, trained = adapter
    with safe_open(folder / ADAPTER, "pt") as file:
        names, metadata = set(file.keys()), json.loads(file.metadata()["lora_adapter_metadata"])
    named = {name.removesuffix(".default.weight") for name, _ in trained.named_parameters() if "lora_" in name}
    assert names == {f"transformer.{name}.weight" for name in named} and len(names) == 4
    assert (metadata["transformer.r"], metadata["transformer.lora_alpha"]) == (2, 6)


@pytest.mark.parametrize("named", ["folder", "file"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_put_on(adapter, named, dtype):
    pipeline, folder, _ = adapter
    torch.nn.Module.to(pipeline.transformer, dtype)
    attach_adapter(pipeline, folder / ADAPTER if named == "file" else str(folder))
    (name,) = pipeline.transformer.peft_config
    layers = get_peft_model_state_dict(pipeline.transformer, adapter_name=name)
    written = load_file(folder / ADAPTER)
    assert written.keys() == {f"transformer.{layer}" for layer in layers}
    for layer, value in layers.items():
        assert value.dtype == dtype and torch.equal(value, written[f"transformer.{layer}"].to(dtype))
    scales = [module.scaling for module in pipeline.transformer.modules() if hasattr(module, "lora_A")]
    assert scales == [{name: 3.0}] * 2


def test_put_on_without_weights(adapter):
    """As an evaluation looks at an adapter before any weight is loaded."""
    pipeline, folder, _ = adapter
    pipeline.transformer.to("meta")
    attach_adapter(pipeline, folder)
    assert all(parameter.is_meta for parameter in pipeline.transformer.parameters())
    assert len(pipeline.transformer.peft_config) == 1


def test_put_on_from_the_hub(adapter, server):  # noqa: F811
    pipeline, folder, _ = adapter
    publish(server, folder, "org/adapter")
    attach_adapter(pipeline, "org/adapter")
    assert len(pipeline.transformer.peft_config) == 1


def test_what_is_no_adapter_of_it(tmp_path):
    pipeline = pixart()
    trained = get_peft_model(pixart().transformer, LoraConfig(r=2, target_modules=["to_q"]))
    save_adapter(trained, None, tmp_path, type(pipeline), "transformer")
    layers = load_file(tmp_path / ADAPTER)
    with safe_open(tmp_path / ADAPTER, "pt") as file:
        metadata = file.metadata()
    name = next(iter(layers))
    for changed, kept, reason in (
        (layers, {"format": "pt"}, "does not say its scale"),
        ({other: value for other, value in layers.items() if other != name}, metadata, "is not of this model"),
        (
            layers | {name.replace("to_q", "to_z"): layers[name].clone()},
            metadata,
            "is not of this model and configuration",
        ),
    ):
        save_file(changed, tmp_path / ADAPTER, kept)
        with pytest.raises(UsageError, match=f"The adapter .*{reason}"):
            attach_adapter(pixart(), tmp_path)
