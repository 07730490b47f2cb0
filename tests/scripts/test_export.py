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

"""`craft export`: every format is read back by the library it is for."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from craft_trl import CraftTrainer
from craft_trl.candidates.loading import load_pipeline
from craft_trl.cli.main import main as craft
from craft_trl.errors import UsageError
from craft_trl.evaluation.models import Model
from craft_trl.scripts.export import ExportArguments, main
from craft_trl.trainer.checkpoints import unpack_single_file
from craft_trl.trainer.export import assert_equal

from ..families.random_pipelines import CASES
from ..helpers import config, make_dataset, warnings_of
from ..models import edit, linked, renamed, tuned
from ..pipelines import make_pipeline


CLASSES = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module")
def pipelines(tiny, tmp_path_factory):
    """A small pipeline of each family, with several layers and a block without attention on each side."""
    folder = tmp_path_factory.mktemp("pipelines")
    for family in CLASSES:
        make_pipeline(family, "epsilon", tiny).save_pretrained(folder / family)
    return folder


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "generator": generator, "output_type": "np"}
    return pipeline("a fox", **options).images


@pytest.fixture(scope="module")
def adapter(pipelines, tmp_path_factory):
    """An adapter of the small SDXL, trained for a step, whose scale is not 1."""
    folder = tmp_path_factory.mktemp("adapter")
    targets = ["to_q", "to_out.0", "proj_in", "conv1", "ff.net.0.proj"]
    args = config(folder, "lora", max_steps=1, learning_rate=0.1)
    lora = LoraConfig(r=2, lora_alpha=6, target_modules=targets)
    trainer = CraftTrainer(str(pipelines / "sdxl"), args, make_dataset(), peft_config=lora)
    trainer.train()
    trainer.save_model()
    pipeline = StableDiffusionXLPipeline.from_pretrained(pipelines / "sdxl")
    pipeline.unet = trainer.model.merge_and_unload()
    return folder / "lora", draw(pipeline)


@pytest.mark.parametrize("family", CLASSES)
def test_single_file(pipelines, tmp_path, family):
    main(ExportArguments(model=str(pipelines / family), format="single-file", output="model.safetensors"))
    names = set(load_file(tmp_path / "model.safetensors"))
    # Names as the published files of these models have them.
    assert {"model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.mid.attn_1.q.weight"} <= names
    text = {
        "sd": "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "sdxl": "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
    }
    assert text[family] in names
    pipeline = CLASSES[family].from_single_file(
        "model.safetensors", config=str(pipelines / family), local_files_only=True
    )
    source = CLASSES[family].from_pretrained(pipelines / family)
    for part in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if family == "sdxl" else [])):
        assert_equal(getattr(source, part).state_dict(), getattr(pipeline, part).state_dict(), part)
    np.testing.assert_allclose(draw(source), draw(pipeline), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, set()),
        ({"prediction_type": "v_prediction"}, {"v_pred"}),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {"v_pred", "ztsnr"}),
    ],
)
def test_a_single_file_says_what_it_predicts(pipelines, tmp_path, settings, expected):
    """As empty tensors, by which other tools know it, and we do: the pipeline beside it agrees, or there is an error."""
    folder = linked(pipelines / "sd", tmp_path / "source")
    edit(folder, "scheduler/scheduler_config.json", **settings)
    main(ExportArguments(model="source", format="single-file", output="source/model.safetensors"))
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    assert {name for name in tensors if not name.count(".")} == expected
    assert all(tensors[name].numel() == 0 for name in expected)
    scheduler = load_pipeline("source/model.safetensors").scheduler
    assert settings.items() <= dict(scheduler.config).items()
    edit(folder, "scheduler/scheduler_config.json", prediction_type="epsilon", rescale_betas_zero_snr=False)
    if expected:
        with pytest.raises(UsageError, match="its v_pred says that prediction_type is v_prediction"):
            load_pipeline("source/model.safetensors")


@pytest.mark.parametrize("family", CLASSES)
def test_nothing_is_said_of_precision(pipelines, tmp_path, family):
    """Of half precision, written, read back and loaded to be drawn from."""
    with warnings_of("diffusers") as said:
        for format, output in (("single-file", "model.safetensors"), ("diffusers", "folder")):
            main(ExportArguments(model=str(pipelines / family), format=format, output=output, dtype="bfloat16"))
        linked(pipelines / family, tmp_path / "beside")
        (tmp_path / "model.safetensors").rename(tmp_path / "beside" / "model.safetensors")
        load_pipeline("beside/model.safetensors", torch.bfloat16)
    assert said == []


def test_half_precision_only(pipelines, tmp_path):
    """Of a variant, the other formats have what they have of a folder without."""
    folder = linked(pipelines / "sd", tmp_path / "source")
    renamed(folder, "model.safetensors", "model.fp16.safetensors")
    for format, output in (("diffusers", "again"), ("single-file", "model.safetensors")):
        main(ExportArguments(model="source", format=format, output=output))
    assert (tmp_path / "again" / "text_encoder" / "model.safetensors").is_file()
    pipeline = StableDiffusionPipeline.from_pretrained(pipelines / "sd")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "again")
    assert_equal(pipeline.unet.state_dict(), again.unet.state_dict(), "unet")
    assert "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight" in load_file(
        "model.safetensors"
    )


def test_single_file_of_the_full_unets(benchmark_train):
    """The names of all parameters at full size, through diffusers' converter and back."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    from craft_trl.families.single_file import unet_name

    for name in ("sdxl", "sd15"):
        with torch.device("meta"):
            unet = benchmark_train.make_denoiser(name)
        state_dict = unet.state_dict()
        layers = unet.config.layers_per_block
        original = {f"model.diffusion_model.{unet_name(n, layers, state_dict)}": n for n in state_dict}
        assert len(original) == len(state_dict)
        assert convert_ldm_unet_checkpoint(original, unet.config) == {n: n for n in state_dict}


def test_a_single_file_is_unpacked_for_training(pipelines, tmp_path):
    shutil.copytree(pipelines / "sd", tmp_path / "folder")
    main(ExportArguments(model="folder", format="single-file", output="folder/model.safetensors"))
    folder = unpack_single_file(tmp_path / "folder" / "model.safetensors", tmp_path / "out")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert_equal(load_file(pipelines / "sd" / "unet" / file.name), load_file(file), "unet")
    assert (folder / "vae").is_dir() and (folder / "tokenizer").is_dir() and (folder / "model_index.json").is_file()
    written = file.stat().st_mtime_ns
    assert unpack_single_file(tmp_path / "folder" / "model.safetensors", tmp_path / "out") == folder
    assert file.stat().st_mtime_ns == written


def test_diffusers_in_half_precision(pipelines, tmp_path):
    main(ExportArguments(model=str(pipelines / "sdxl"), format="diffusers", output="half", dtype="float16"))
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "half", dtype=torch.float16)
    source = StableDiffusionXLPipeline.from_pretrained(pipelines / "sdxl", dtype=torch.float16)
    assert (
        load_file(tmp_path / "half/unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.float16
    )
    assert_equal(source.unet.state_dict(), pipeline.unet.state_dict(), "unet")


def test_each_part_keeps_its_precision(pipelines, tmp_path):
    """A text encoder of half precision beside a denoiser of full precision is not made twice as large."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(pipelines / "sdxl")
    pipeline.text_encoder_2.to(torch.bfloat16)
    pipeline.vae.to(torch.float16)
    pipeline.save_pretrained(tmp_path / "mixed")
    main(ExportArguments(model="mixed", format="diffusers", output="again"))
    expected = {"unet": "F32", "text_encoder": "F32", "text_encoder_2": "BF16", "vae": "F16"}
    for name, dtype in expected.items():
        (file,) = (tmp_path / "again" / name).glob("*.safetensors")
        with safe_open(file, "pt") as weights:
            assert {weights.get_slice(key).get_dtype() for key in weights.keys()} - {"I64"} == {dtype}, name


@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft"])
def test_adapter(pipelines, adapter, tmp_path, format):
    """Images drawn with the exported adapter are those drawn with the trained one, its scale of 3 included."""
    adapter, expected = adapter
    output = "lora.safetensors" if format == "kohya" else "exported"
    main(ExportArguments(model=str(adapter), format=format, output=output))
    pipeline = StableDiffusionXLPipeline.from_pretrained(pipelines / "sdxl")
    assert np.abs(draw(pipeline) - expected).max() > 1e-3
    if format == "peft":
        unet = UNet2DConditionModel.from_pretrained(pipelines / "sdxl", subfolder="unet")
        pipeline.unet = PeftModel.from_pretrained(unet, tmp_path / output).merge_and_unload()
    else:
        pipeline.load_lora_weights(tmp_path / output)
    np.testing.assert_allclose(draw(pipeline), expected, atol=1e-4)


class TestStrength:
    """The base at 0, the model at 1, to the byte; between them the mean of the weights, or a smaller scale."""

    @pytest.mark.parametrize("format", ["diffusers", "single-file"])
    def test_a_pipeline(self, pipelines, tmp_path, format):
        base, end = pipelines / "sd", tuned(pipelines / "sd", tmp_path / "model")

        def exported(name, model, **options):
            output = f"{name}.safetensors" if format == "single-file" else name
            main(ExportArguments(model=str(model), format=format, output=output, **options))
            return tmp_path / output

        def content(path):
            files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
            return [file.read_bytes() for file in files]

        files = {s: exported(f"at{s}", end, strength=s, base=str(base)) for s in (0.0, 0.5, 1.5)}
        assert content(files[0.0]) == content(exported("base", base))
        whole = exported("whole", end)
        assert content(exported("at1", end, strength=1.0)) == content(whole)

        def weights(path):
            return load_file(path if path.is_file() else path / "unet" / "diffusion_pytorch_model.safetensors")

        first, last = weights(files[0.0]), weights(whole)
        for strength in (0.5, 1.5):
            for name, value in weights(files[strength]).items():
                assert torch.equal(value, torch.lerp(first[name], last[name], strength))
        assert any(not torch.equal(first[name], value) for name, value in last.items())

    @pytest.mark.parametrize("format", ["diffusers", "kohya", "peft"])
    def test_an_adapter(self, pipelines, adapter, tmp_path, format):
        """Half of the scale is half of what is added to the weights."""
        output = "lora.safetensors" if format == "kohya" else "exported"
        main(ExportArguments(model=str(adapter[0]), format=format, output=output, strength=0.5))
        pipeline = StableDiffusionXLPipeline.from_pretrained(pipelines / "sdxl")
        if format == "peft":
            pipeline.unet = PeftModel.from_pretrained(pipeline.unet, tmp_path / output)
        else:
            pipeline.load_lora_weights(tmp_path / output)
        scales = {s for module in pipeline.unet.modules() for s in getattr(module, "scaling", {}).values()}
        assert scales == {1.5}  # half of 6 by 2

    def test_an_adapter_at_1_is_itself(self, adapter, tmp_path):
        main(ExportArguments(model=str(adapter[0]), format="diffusers", output="exported", strength=1.0))
        name = "pytorch_lora_weights.safetensors"
        assert (tmp_path / "exported" / name).read_bytes() == (adapter[0] / name).read_bytes()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"strength": 2.1}, "strength must be from 0 to 2, got 2.1"),
            ({"strength": 0.5}, "base is missing: .* trained from. It was trained from a folder of the name sd"),
            ({"base": "x/y"}, "base x/y: without a strength it has no effect"),
            ({"strength": 0.5, "base": "nothing"}, "Model nothing: there is no such folder"),
            (
                {"strength": 0.5, "base": "{}/sdxl"},
                "strength 0.5: model was trained from another model than .*sdxl: from sd",
            ),
        ],
    )
    def test_mistakes(self, pipelines, tmp_path, options, message):
        tuned(pipelines / "sd", tmp_path / "model")
        options = {
            name: value.format(pipelines) if isinstance(value, str) else value for name, value in options.items()
        }
        with pytest.raises(UsageError, match=message) as error:
            main(ExportArguments(model="model", format="diffusers", output="x", **options))
        assert "\n" not in str(error.value) and not (tmp_path / "x").exists()

    def test_an_adapter_needs_no_base(self, adapter):
        with pytest.raises(UsageError, match="base x/y: the strength of an adapter needs none"):
            main(ExportArguments(model=str(adapter[0]), format="peft", output="x", strength=0.5, base="x/y"))


class TestAverage:
    """The mean of the denoisers, and the rest of the first."""

    @pytest.fixture
    def models(self, pipelines, tmp_path):
        """Two models of one base, in float32, and one of another."""
        one, other = tuned(pipelines / "sd", tmp_path / "one"), tuned(pipelines / "sd", tmp_path / "other")
        weights = other / "unet" / "diffusion_pytorch_model.safetensors"
        save_file({name: 3 * value for name, value in load_file(weights).items()}, weights)
        tuned(pipelines / "sdxl", tmp_path / "of_sdxl")
        return one, other

    def weights(self, path):
        return load_file(path / "unet" / "diffusion_pytorch_model.safetensors")

    def test_a_pipeline(self, pipelines, models, tmp_path):
        (one, other), base = models, pipelines / "sd"
        main(ExportArguments(model="one", average=["other"], format="diffusers", output="mean"))
        first, second, mean = (self.weights(path) for path in (one, other, tmp_path / "mean"))
        assert first.keys() == mean.keys()
        assert all(torch.equal(value, (first[name] + second[name]) / 2) for name, value in mean.items())
        assert any(not torch.equal(first[name], value) for name, value in mean.items())
        main(ExportArguments(model="other", average=["one"], format="diffusers", output="turned"))
        assert all(torch.equal(value, mean[name]) for name, value in self.weights(tmp_path / "turned").items())
        for part in ("text_encoder", "vae"):
            files = [next((path / part).glob("*.safetensors")).read_bytes() for path in (one, tmp_path / "mean")]
            assert files[0] == files[1]

        options = {"strength": 0.5, "base": str(base), "format": "diffusers", "output": "half"}
        main(ExportArguments(model="one", average=["other"], **options))
        start, half = self.weights(base), self.weights(tmp_path / "half")
        assert all(torch.equal(value, torch.lerp(start[name], mean[name], 0.5)) for name, value in half.items())

    @pytest.mark.parametrize(
        ("model", "average", "message"),
        [
            ("one", ["nothing"], "average: there is no pipeline in nothing."),
            ("one", ["other", "one"], "average: one is there twice."),
            ("one", ["other", "./other/"], "average: other is there twice."),
            ("one", ["{}/sd"], r"average: .*sd has no training.json that says what it was trained from."),
            ("one", ["other", "of_sdxl"], "average: one and of_sdxl were trained from different models"),
            ("one", ["lora"], "average: lora is an adapter, and the mean of two adapters' factors"),
            ("lora", ["one"], "average: lora is an adapter"),
        ],
    )
    def test_mistakes(self, pipelines, adapter, models, tmp_path, model, average, message):
        shutil.copytree(adapter[0], tmp_path / "lora")
        average = [folder.format(pipelines) for folder in average]
        with pytest.raises(UsageError, match=message) as error:
            main(ExportArguments(model=model, average=average, format="diffusers", output="x"))
        assert "\n" not in str(error.value) and not (tmp_path / "x").exists()

    def test_other_shapes(self, models, tmp_path):
        """Models that say that they are of one base, and are not."""
        file = models[1] / "unet" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        save_file({name: value for name, value in weights.items() if name != "conv_in.bias"}, file)
        with pytest.raises(UsageError, match="average of one, other: conv_in.bias is not in all of them"):
            main(ExportArguments(model="one", average=["other"], format="diffusers", output="x"))
        save_file(weights | {"conv_in.bias": torch.zeros(3)}, file)
        with pytest.raises(UsageError, match="average of one, other: conv_in.bias is not in all of them"):
            main(ExportArguments(model="one", average=["other"], format="diffusers", output="x"))
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("source", "format", "output", "message"),
    [
        ("sdxl", "kohya", "x.safetensors", "one of diffusers, single-file for a pipeline, got 'kohya'"),
        ("sdxl", "single-file", "x", "The output of single-file is a file that ends in .safetensors, got x"),
        ("sdxl", "diffusers", "x.safetensors", "The output of diffusers is a folder, got x.safetensors"),
        ("nothing", "diffusers", "x", "it has no model_index.json or pytorch_lora_weights.safetensors"),
        ("sdxl", "diffusers", ".", "exists: choose another output"),
        ("sdxl", "diffusers", "/proc/nowhere", "Cannot write to /proc/nowhere"),
        ("sdxl", None, "x", "format is missing: give it as --format"),
    ],
)
def test_bad_input(pipelines, source, format, output, message):
    with pytest.raises(UsageError, match=message):
        main(ExportArguments(model=str(pipelines / source), format=format, output=output))


@pytest.mark.parametrize(
    ("name", "content", "format", "message"),
    [
        ("model_index.json", "{", "diffusers", "its model_index.json does not describe a diffusers pipeline"),
        ("model_index.json", "{}", "diffusers", "its model_index.json does not describe a diffusers pipeline"),
        ("pytorch_lora_weights.safetensors", "{}", "peft", "pytorch_lora_weights.safetensors is damaged"),
    ],
)
def test_a_damaged_model(tmp_path, name, content, format, message):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        main(ExportArguments(model=str(tmp_path / "model"), format=format, output="x"))


def test_an_error_leaves_nothing_behind(pipelines, tmp_path):
    """A text encoder that the single-file layout cannot say."""
    shutil.copytree(pipelines / "sd", tmp_path / "other")
    file = tmp_path / "other" / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_act": "gelu"}))
    with pytest.raises(UsageError, match="Only the text encoders of Stable Diffusion 1.x and SDXL"):
        main(ExportArguments(model="other", format="single-file", output="x.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    (tmp_path / "silent").mkdir()
    save_file({"unet.a.lora_A.weight": torch.ones(1, 1)}, tmp_path / "silent" / "pytorch_lora_weights.safetensors")
    with pytest.raises(UsageError, match="The adapter in silent does not say its scale"):
        main(ExportArguments(model="silent", format="peft", output="x"))
    with pytest.raises(RuntimeError, match="read back with other weights than were written, the first is b"):
        assert_equal({"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.ones(1), "b": torch.zeros(1)}, "x")


def test_command(pipelines, capsys):
    assert craft(["export", "--model", str(pipelines / "sd"), "--format", "peft", "--output", "x"]) == 2
    assert "format must be one of diffusers, single-file for a pipeline" in capsys.readouterr().err


class TestTransformers:
    @pytest.fixture(scope="class")
    def transformer(self, tmp_path_factory):
        """A small Stable Diffusion 3 without T5, an adapter of it with scales of 3 and 5, and its transformer with the adapter."""
        folder = tmp_path_factory.mktemp("transformer")
        CASES["stable_diffusion_3_without_t5"]().save_pretrained(folder / "sd3")
        args = config(folder, "lora", max_steps=1, learning_rate=0.1, max_sequence_length=20)
        targets = ["attn.to_q", "attn.add_k_proj", "attn.to_out.0", "ff.net.0.proj"]
        lora = LoraConfig(r=2, lora_alpha=6, target_modules=targets, alpha_pattern={"attn.to_q": 10})
        trainer = CraftTrainer(str(folder / "sd3"), args, make_dataset(size=32), peft_config=lora)
        trainer.train()
        trainer.save_model()
        return folder, trainer.model.merge_and_unload().state_dict()

    def merged(self, folder, load):
        pipeline = load_pipeline(str(folder / "sd3"))
        load(pipeline)
        pipeline.fuse_lora(components=["transformer"])
        pipeline.unload_lora_weights()
        return pipeline.transformer.state_dict()

    def test_a_pipeline_with_a_part_that_is_not_there(self, transformer, tmp_path):
        folder, _ = transformer
        main(ExportArguments(model=str(folder / "sd3"), format="diffusers", output="again", dtype="bfloat16"))
        expected = load_pipeline(str(folder / "sd3"), torch.bfloat16).transformer.state_dict()
        assert_equal(load_pipeline("again", torch.bfloat16).transformer.state_dict(), expected, "transformer")
        assert json.loads((tmp_path / "again" / "model_index.json").read_text())["text_encoder_3"] == [None, None]

    @pytest.mark.parametrize("format", ["diffusers", "peft", "comfyui"])
    def test_adapter(self, transformer, tmp_path, format):
        folder, expected = transformer
        output = "lora.safetensors" if format == "comfyui" else "exported"
        main(ExportArguments(model=str(folder / "lora"), format=format, output=output))
        if format == "peft":
            base = SD3Transformer2DModel.from_pretrained(folder / "sd3", subfolder="transformer")
            got = PeftModel.from_pretrained(base, tmp_path / output).merge_and_unload().state_dict()
        else:
            got = self.merged(folder, lambda pipeline: pipeline.load_lora_weights(tmp_path / output))
        assert got.keys() == expected.keys()
        base = load_pipeline(str(folder / "sd3")).transformer.state_dict()
        changed = {name for name in expected if not torch.allclose(expected[name], base[name], atol=1e-4)}
        assert {name.split(".", 2)[2] for name in changed} >= {"attn.to_q.weight", "ff.net.0.proj.weight"}
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-4)

    def test_as_comfyui_computes_it(self, transformer, tmp_path):
        """Its names after `transformer.` are the module's, and where there is no alpha, it adds the product of the layers."""
        folder, expected = transformer
        main(ExportArguments(model=str(folder / "lora"), format="comfyui", output="lora.safetensors"))
        layers = load_file(tmp_path / "lora.safetensors")
        base = load_pipeline(str(folder / "sd3")).transformer.state_dict()
        modules = {name.removeprefix("transformer.").partition(".lora_")[0] for name in layers}
        assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in layers)
        for module in modules:
            up, down = (layers[f"transformer.{module}.lora_{part}.weight"] for part in "BA")
            torch.testing.assert_close(
                base[f"{module}.weight"] + up @ down, expected[f"{module}.weight"], atol=1e-5, rtol=1e-4
            )
        assert len(modules) == 8

    @pytest.mark.parametrize(
        ("source", "format", "message"),
        [
            ("lora", "kohya", "format kohya is not for the adapters of transformers: those ComfyUI reads as comfyui"),
            ("sd3", "single-file", "format single-file is for Stable Diffusion 1.x and SDXL, and diffusers writes none of a "
             "StableDiffusion3Pipeline. Use diffusers"),
            ("sd3", "comfyui", "one of diffusers, single-file for a pipeline, got 'comfyui'"),
        ],
    )  # fmt: skip
    def test_formats_of_others(self, transformer, source, format, message):
        with pytest.raises(UsageError, match=message):
            main(ExportArguments(model=str(transformer[0] / source), format=format, output="x.safetensors"))


def test_scales_by_module_and_rank(pipelines, tmp_path):
    """Whatever alpha and rank a module has of its own, in kohya's format too."""
    lora = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_k"], rank_pattern={"to_k": 2}, alpha_pattern={"to_k": 3},
        use_rslora=True,
    )  # fmt: skip
    args = config(tmp_path, "lora", max_steps=1, learning_rate=0.1)
    trainer = CraftTrainer(str(pipelines / "sdxl"), args, make_dataset(), peft_config=lora)
    trainer.train()
    trainer.save_model()
    main(ExportArguments(model="lora", format="kohya", output="lora.safetensors"))
    alphas = {v.item() for n, v in load_file(tmp_path / "lora.safetensors").items() if n.endswith(".alpha")}
    assert sorted(alphas) == pytest.approx([3 * 2 / 2**0.5, 6 * 4 / 4**0.5])
    # diffusers itself reads one alpha for all, which a comparison is told.
    models = Model.parse_all([f"base={pipelines / 'sdxl'}", "lora=lora:lora", "kohya=lora:lora.safetensors"])
    models["lora"].check()
    with pytest.raises(
        UsageError, match="diffusers reads other scales than it says, which differ from module to module"
    ):
        models["kohya"].check()
    with pytest.raises(
        UsageError, match="format comfyui is not for the adapters of UNets: those ComfyUI reads as kohya"
    ):
        main(ExportArguments(model="lora", format="comfyui", output="x.safetensors"))
