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


"""Models of a comparison whose denoiser is a transformer: whole, in part, and with adapters."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from craft_trl import ImageGenerator, SamplingConfig
from craft_trl.errors import UsageError
from craft_trl.evaluation.models import Model
from craft_trl.families import get_family
from craft_trl.sources import ADAPTER
from craft_trl.trainer.checkpoints import save_adapter
from craft_trl.trainer.denoiser import add_adapter, lora_config

from ..families.random_pipelines import CASES


SIZE = 32


@pytest.fixture(scope="module", params=["stable_diffusion_3_without_t5", "flux_dev"])
def published(request, tmp_path_factory):
    """A pipeline, its transformer changed, as a folder and as state dicts, and an adapter whose scale is not 1."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = CASES[request.param]()
    pipeline.save_pretrained(folder / "base")
    with torch.no_grad():
        pipeline.transformer.proj_out.weight.mul_(2)
    pipeline.transformer.save_pretrained(folder / "transformer")
    torch.save(pipeline.transformer.state_dict(), folder / "transformer.pth")
    save_file(pipeline.transformer.state_dict(), folder / "transformer.safetensors")
    family = get_family(type(pipeline).__name__)
    adapter = add_adapter(pipeline.transformer, lora_config(family.lora_target_modules, rank=2, alpha=6))
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(adapter, None, folder / "lora", type(pipeline), "transformer")
    return folder


def spec(folder, source: str) -> Model:
    return Model.parse_all([f"base={folder / 'base'}", f"model={source}"])["model"]


def scales(network: torch.nn.Module) -> set[float]:
    return {float(scale) for module in network.modules() for scale in getattr(module, "scaling", {}).values()}


def draw(pipeline: diffusers.DiffusionPipeline) -> bytes:
    sampling = SamplingConfig(
        num_inference_steps=2, height=SIZE, width=SIZE, guidance_scale=2.0, max_sequence_length=20
    )
    (image,) = ImageGenerator(pipeline, sampling)(["a fox"], [0])
    return image.tobytes()


def test_a_whole_pipeline_and_its_parts(published):
    base, again = spec(published, str(published / "base")), spec(published, str(published / "base"))
    sources = [
        f"transformer:{published / name}" for name in ("transformer", "transformer.pth", "transformer.safetensors")
    ]
    parts = [spec(published, source) for source in sources]
    for model in (base, *parts):
        model.check(SamplingConfig(height=SIZE, width=SIZE))
    images = [draw(model.load()) for model in (base, again, *parts)]
    assert images[0] == images[1] and images[2] == images[3] == images[4] != images[0]
    assert parts[0].hash().startswith(f"{base.hash()}+transformer:")


def test_an_adapter(published):
    model = spec(published, f"lora:{published / 'lora'}")
    model.check()
    pipeline = model.load()
    assert scales(pipeline.transformer) == {3.0}
    assert draw(pipeline) != draw(spec(published, str(published / "base")).load())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: {n.replace("transformer.", "unet."): v for n, v in layers.items()}, "it has nothing for a transformer"),
        (lambda layers: {n.replace("to_q", "to_nothing"): v for n, v in layers.items()}, r"\d+ of its \d+ modules are there"),
        (lambda layers: {n.replace("attn", "other"): v for n, v in layers.items()}, r"Target modules '.*other.*' and others not found|\d+ of its \d+ modules are there"),
        (lambda layers: layers | {"transformer.x.diff": torch.ones(1)}, r"\d+ of its \d+ tensors are read.* transformer.x.diff"),
        (
            lambda layers: layers | {f"{next(iter(layers)).split('.lora')[0]}.dora_scale": torch.ones(1)},
            "Not read are those such as .*dora_scale",
        ),
        (lambda layers: {n: v.repeat(*([1, 2] if "lora_A" in n else [2, 1])) for n, v in layers.items()}, "of other sizes|size mismatch"),
        (lambda layers: {n: v[:, :2] if "lora_A" in n else v[:2] for n, v in layers.items()}, "of other sizes|size mismatch"),
        (
            lambda layers: layers | {n.replace("transformer.", "embedder."): v.clone() for n, v in layers.items() if "to_q" in n},
            "Not read are those such as embedder",
        ),
    ],
    ids=["unet", "some elsewhere", "all elsewhere", "difference", "dora", "larger", "smaller", "another part"],
)  # fmt: skip
def test_nothing_of_an_adapter_is_dropped(published, tmp_path, change, message):
    layers = change(load_file(published / "lora" / ADAPTER))
    save_file({name: value.contiguous() for name, value in layers.items()}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=message) as error:
        spec(published, f"lora:{tmp_path / 'a.safetensors'}").check()
    assert "\n" not in str(error.value)


def test_scales_that_diffusers_does_not_read(published, tmp_path):
    """As ComfyUI and others write them: of a Stable Diffusion 3 they would be taken for 1, of a FLUX they are read."""
    layers = load_file(published / "lora" / ADAPTER)
    layers |= {f"{name.split('.lora')[0]}.alpha": torch.tensor(6.0) for name in layers}
    save_file(layers, tmp_path / "a.safetensors")
    model = spec(published, f"lora:{tmp_path / 'a.safetensors'}")
    if "Flux" in json.loads((published / "base" / "model_index.json").read_text())["_class_name"]:
        model.check()
        assert scales(model.load().transformer) == {3.0}
        return
    with pytest.raises(
        UsageError, match="diffusers does not read the scales of its layers, such as transformer.*alpha"
    ):
        model.check()


def test_a_part_of_another_family(published, tiny):
    with pytest.raises(UsageError, match="Model model: a .*Pipeline has no unet"):
        spec(published, f"unet:{tiny / 'pipeline' / 'unet'}").check()
    with pytest.raises(UsageError, match="is not for .*: it lacks"):
        spec(published, f"transformer:{tiny / 'pipeline' / 'unet' / 'diffusion_pytorch_model.safetensors'}").check()


def test_what_a_converter_drops(tmp_path):
    """Of a file in kohya's names for FLUX, whose query, key and value are one: diffusers splits them, and drops a T5's layers."""
    pipeline = CASES["flux_dev"]()
    pipeline.save_pretrained(tmp_path / "base")
    width = pipeline.transformer.inner_dim

    def module(name: str, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
        shapes = {"lora_down.weight": (2, inputs), "lora_up.weight": (outputs, 2), "alpha": ()}
        return {f"{name}.{end}": torch.ones(shape) for end, shape in shapes.items()}

    layers = module("lora_unet_double_blocks_0_img_attn_qkv", width, 3 * width)
    layers |= module("lora_te1_text_model_encoder_layers_0_self_attn_out_proj", 32, 32)
    model = spec(tmp_path, f"lora:{tmp_path / 'a.safetensors'}")
    save_file(layers, tmp_path / "a.safetensors")
    model.check()
    assert len(scales(model.load().transformer)) == 1
    for dropped, said in (
        (module("lora_te2_encoder_block_0_layer_0_SelfAttention_q", 32, 32), "4 of its 6 tensors are read.*lora_te2"),
        (module("lora_unet_img_in", pipeline.transformer.config.in_channels, width), "8 of its 10.*x_embedder.lora_A"),
    ):
        save_file(layers | dropped, tmp_path / "a.safetensors")
        with pytest.raises(UsageError, match=said):
            model.check()
