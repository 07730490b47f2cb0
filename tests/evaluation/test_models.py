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

"""Models of every kind in which people publish them, as real files and as a real cache of the Hub."""

import pickle
import shutil

import huggingface_hub.constants
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from craft_trl.errors import UsageError
from craft_trl.evaluation.models import Model
from craft_trl.prompts.benchmarks import BENCHMARKS
from craft_trl.rewards import parse_rewards
from craft_trl.scripts.evaluate import make_parser

from ..models import tuned


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_lora(unet: UNet2DConditionModel, folder, alpha=8) -> None:
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["to_q", "to_v"])
    torch.manual_seed(0)
    unet.add_adapter(config)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    metadata = {"unet_lora_adapter_metadata": unet.peft_config["default"].to_dict()}
    StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=layers, **metadata)


@pytest.fixture(scope="module")
def published(tiny, tmp_path_factory):
    """A tuned UNet as a folder and as state dicts, an adapter, and the same for a smaller base."""
    folder = tmp_path_factory.mktemp("published")
    unet = UNet2DConditionModel.from_pretrained(tiny / "pipeline", subfolder="unet")
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.9)
    unet.save_pretrained(folder / "repository" / "unet")
    for name in ("unet.pth", "unet.bin"):
        torch.save(unet.state_dict(), folder / name)
    save_file(unet.state_dict(), folder / "unet.safetensors")
    save_lora(UNet2DConditionModel.from_pretrained(tiny / "pipeline", subfolder="unet"), folder / "lora")
    config = {**UNet2DConditionModel.load_config(tiny / "pipeline", subfolder="unet"), "cross_attention_dim": 24}
    other = UNet2DConditionModel.from_config(config)
    other.save_pretrained(folder / "other" / "unet")
    save_lora(other, folder / "other_lora")
    return folder


def spec(tiny, source: str, name: str = "model") -> Model:
    return Model.parse_all([f"base={tiny / 'pipeline'}", f"{name}={source}"])[name]


class TestParse:
    def test_kinds(self):
        specs = Model.parse_all(["sd-1.5=org/name", "dpo=unet:org/other/unet", "l=lora:./l", "r=results:runs/r"])
        assert [s.kind for s in specs.values()] == ["pipeline", "unet", "lora", "results"]
        assert specs["dpo"].source == "org/other/unet" and {s.base for s in specs.values()} == {"org/name"}

    @pytest.mark.parametrize(
        ("models", "message"),
        [
            (["pipeline"], "models must be NAME=FOLDER or NAME=HUB_ID, got 'pipeline'"),
            (["a b=x/y"], "models must be NAME=FOLDER"),
            (["a=x/y", "a=x/z"], "Every model needs a name of its own, got a twice"),
            (["a=unet:x/y"], "the first is the base, a whole pipeline; got 'a=unet:x/y'"),
            (["a=x/y", "b=lra:x/z"], "'lra' before the colon. Did you mean lora"),
        ],
    )
    def test_mistakes(self, models, message):
        with pytest.raises(UsageError, match=message):
            Model.parse_all(models)


class TestUNet:
    @pytest.mark.parametrize("file", ["repository/unet", "unet.pth", "unet.bin", "unet.safetensors"])
    def test_replaces_the_denoiser(self, tiny, published, file):
        model = spec(tiny, f"unet:{published / file}")
        model.check()
        expected = load_file(published / "unet.safetensors")
        loaded = model.load(torch.float16).unet.state_dict()
        assert all((loaded[key] == value.half()).all() for key, value in expected.items())
        assert loaded.keys() == expected.keys()

    def test_hash_is_of_base_and_part(self, tiny, published):
        whole = Model.parse_all([f"base={tiny / 'pipeline'}"])["base"].hash()
        hashes = {spec(tiny, f"unet:{published / file}").hash() for file in ("repository/unet", "unet.pth")}
        assert len(hashes) == 2 and all(h.startswith(f"{whole}+unet:") for h in hashes)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("unet:{}/other/unet", "is not for .*pipeline: .* has shape .*, expected"),
            ("unet:{}/repository", "has no config.json, so it is not the folder of a unet"),
            ("unet:{}/lora/pytorch_lora_weights.safetensors", "is not for .*: it lacks"),
            ("unet:{}/nothing/at/all", "there is no .*nothing/at/all"),
            ("unet:org/missing/unet", "Model model: there is no org/missing/unet here, and the Hub says:"),
        ],
    )
    def test_mistakes(self, tiny, published, source, message):
        with pytest.raises(UsageError, match=message) as error:
            spec(tiny, source.format(published)).check()
        assert "\n" not in str(error.value)

    def test_a_pickle_is_not_executed(self, tiny, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "executed"), "w"))

        (tmp_path / "unet.pth").write_bytes(pickle.dumps({"conv_in.weight": Evil()}))
        torch.save({"conv_in.weight": Evil()}, tmp_path / "unet.bin")
        for name in ("unet.pth", "unet.bin"):
            with pytest.raises(UsageError, match="cannot be read as weights"):
                spec(tiny, f"unet:{tmp_path / name}").check()
        assert not (tmp_path / "executed").exists()


class TestLoRA:
    def test_changes_the_output(self, tiny, published):
        model = spec(tiny, f"lora:{published / 'lora'}")
        model.check()
        pipeline = model.load()
        assert len(pipeline.get_active_adapters()) == 1
        options = {"num_inference_steps": 1, "height": 64, "width": 64, "output_type": "np"}
        images = {}
        for scale in (0.0, 1.0):
            pipeline.set_adapters(pipeline.get_active_adapters(), scale)
            images[scale] = pipeline("a fox", generator=torch.Generator().manual_seed(0), **options).images
        assert abs(images[0.0] - images[1.0]).max() > 0.01
        scaling = next(m.scaling for m in pipeline.unet.modules() if hasattr(m, "scaling"))
        assert set(scaling.values()) == {4.0}  # alpha 8 over rank 2, from the file's metadata

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("other_lora", "is not a LoRA for .*pipeline: size mismatch for .* 24.* 192"),
            ("text", "it has nothing for a unet"),
            ("misnamed", "is not a LoRA for .*nowhere.* not found in the base model"),
            ("repository", "must hold one .safetensors file, found none"),
            ("two", "found a.safetensors, b.safetensors. Name it"),
        ],
    )
    def test_mistakes(self, tiny, published, tmp_path, source, message):
        layers = load_file(published / "lora" / "pytorch_lora_weights.safetensors")
        key = next(iter(layers))
        folder = published / source if (published / source).exists() else tmp_path
        if source == "text":
            save_file({"text_encoder.layers.0.q_proj.lora_A.weight": layers[key]}, folder / "a.safetensors")
        if source == "misnamed":
            renamed = {}
            for i in range(2):
                renamed[f"unet.nowhere.{i}.to_q.lora_A.weight"] = torch.zeros(2, 32)
                renamed[f"unet.nowhere.{i}.to_q.lora_B.weight"] = torch.zeros(32, 2)
            save_file(renamed, folder / "a.safetensors")
        if source == "two":
            for name in ("a", "b"):
                save_file(layers, folder / f"{name}.safetensors")
        with pytest.raises(UsageError, match=message) as error:
            spec(tiny, f"lora:{folder}").check()
        assert "\n" not in str(error.value)

    def test_a_part_that_does_not_fit(self, tiny, published, tmp_path):
        layers = load_file(published / "lora" / "pytorch_lora_weights.safetensors")
        extra = {
            "unet.nowhere.to_q.lora_A.weight": torch.zeros(2, 32),
            "unet.nowhere.to_q.lora_B.weight": torch.zeros(32, 2),
        }
        save_file({**layers, **extra}, tmp_path / "a.safetensors")
        n = len(layers) // 2
        with pytest.raises(UsageError, match=f"{n} of its {n + 1} modules are there"):
            spec(tiny, f"lora:{tmp_path / 'a.safetensors'}").check()

    def kohya(self, path, *more, **changes):
        """An adapter in kohya's names, for a layer of the UNet and one of each text encoder."""
        torch.manual_seed(0)
        modules = {
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": 128,
            "lora_te1_text_model_encoder_layers_0_self_attn_out_proj": 64,
            "lora_te2_text_model_encoder_layers_0_self_attn_out_proj": 128,
        }
        layers = {}
        for name, size in modules.items():
            layers[f"{name}.lora_down.weight"] = torch.randn(2, size)
            layers[f"{name}.lora_up.weight"] = torch.randn(size, 2)
            layers[f"{name}.alpha"] = torch.tensor(1.0)
        layers |= {key: torch.ones(1) for key in more}
        save_file(
            {key: value for key, value in layers.items() if not key.startswith(changes.get("without", "-"))}, path
        )
        return f"lora:{path}"

    def test_text_encoders_get_their_part(self, tiny, tmp_path):
        whole = spec(tiny, self.kohya(tmp_path / "a.safetensors"))
        part = spec(tiny, self.kohya(tmp_path / "b.safetensors", without="lora_te"))
        base = Model.parse_all([f"base={tiny / 'pipeline'}"])["base"].load()
        embeds = {}
        for name, model in (("whole", whole), ("part", part)):
            model.check()
            pipeline = model.load()
            embeds[name] = pipeline.encode_prompt("a fox", device="cpu")[0].detach()
        embeds["base"] = base.encode_prompt("a fox", device="cpu")[0].detach()
        assert torch.equal(embeds["base"], embeds["part"])
        # Of the first 64 numbers of a token the one text encoder, of the others the other.
        changed = (embeds["whole"] != embeds["base"]).float()
        assert changed[..., :64].mean() > 0.5 and changed[..., 64:].mean() > 0.5

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            (
                "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.dora_scale",
                "6 of its 7 .*attn1_to_q.dora_scale",
            ),
            ("lora_te1_text_model_encoder_layers_0_self_attn_out_proj.dora_scale", "6 of its 7 tensors are read"),
            ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_mid.weight", "lora_mid.weight"),
            ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k.hada_w1_a", "hada_w1_a"),
            ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k.lokr_w1", "lokr_w1"),
            ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k.diff", "attn1_to_k.diff"),
            ("text_encoder_3.layers.0.q_proj.lora_B.weight", "is not a LoRA for|cannot be read as a LoRA"),
        ],
    )
    def test_nothing_of_a_file_is_dropped(self, tiny, tmp_path, key, message):
        with pytest.raises(UsageError, match=message) as error:
            spec(tiny, self.kohya(tmp_path / "a.safetensors", key)).check()
        assert "\n" not in str(error.value)

    def test_a_text_encoder_that_has_no_such_layer(self, tiny, tmp_path):
        layers = load_file(self.kohya(tmp_path / "a.safetensors").removeprefix("lora:"))
        layers = {
            key.replace("te2_text_model_encoder_layers_0", "te2_text_model_encoder_layers_7"): v
            for key, v in layers.items()
        }
        save_file(layers, tmp_path / "a.safetensors")
        with pytest.raises(UsageError, match="is not a LoRA for"):
            spec(tiny, f"lora:{tmp_path / 'a.safetensors'}").check()


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    return tuned(tiny / "pipeline", tmp_path_factory.mktemp("trained") / "model")


class TestStrength:
    """`strength:0.7:MODEL`: the base at 0, the model at 1."""

    def ends(self, tiny, trained):
        name = "unet/diffusion_pytorch_model.safetensors"
        return load_file(tiny / "pipeline" / name), load_file(trained / name)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("kind", ["", "unet:"])
    def test_a_full_model(self, tiny, trained, kind, dtype):
        base, end = self.ends(tiny, trained)
        source = trained / "unet" if kind else trained
        for strength in (0, 0.5, 1, 1.5):
            model = spec(tiny, f"strength:{strength}:{kind}{source}")
            model.check()
            pipeline = model.load(dtype)
            for name, value in pipeline.unet.state_dict().items():
                expected = {0: base[name], 1: end[name]}.get(strength)
                if expected is None:
                    expected = torch.lerp(base[name].float(), end[name].float(), strength)
                assert torch.equal(value, expected.to(dtype))

    @pytest.mark.parametrize("name", ["lora", "lora/pytorch_lora_weights.safetensors"])
    @pytest.mark.parametrize("kind", ["", "lora:"])
    def test_an_adapter(self, tiny, published, kind, name):
        model = spec(tiny, f"strength:0.25:{kind}{published / name}")
        model.check()
        scales = {s for m in model.load().unet.modules() for s in getattr(m, "scaling", {}).values()}
        assert model.kind == "lora" and scales == {1.0}  # a quarter of 8 by 2
        nothing = spec(tiny, f"strength:0:{kind}{published / name}").load()
        assert not any(hasattr(module, "scaling") for module in nothing.unet.modules())

    def test_it_is_in_the_hash(self, tiny, trained, published):
        """At 0 it is the base's and at 1 the model's, whose images serve for it."""
        base = Model.parse_all([f"base={tiny / 'pipeline'}"])["base"].hash()
        for source in (f"{trained}", f"unet:{trained / 'unet'}", f"lora:{published / 'lora'}"):
            hashes = {s: spec(tiny, f"strength:{s}:{source}").hash() for s in (0, 0.5, 0.7, 1)}
            assert hashes[0] == base and hashes[1] == spec(tiny, source).hash()
            assert len({*hashes.values()}) == 4 and hashes[0.7].endswith("*0.7")

    def test_from_the_hub(self, tiny, trained, tmp_path, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        root = tmp_path / "models--org--craft"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(COMMIT)
        shutil.copytree(trained, root / "snapshots" / COMMIT)
        model = spec(tiny, "strength:0.5:org/craft")
        model.check()
        assert model.hash().endswith(f"+pipeline:org/craft@{COMMIT}*0.5")
        assert torch.equal(
            model.load().unet.conv_in.weight, spec(tiny, f"strength:0.5:{trained}").load().unet.conv_in.weight
        )
        # What is not in the cache need not be missing on the Hub.
        (root / "snapshots" / COMMIT / "training.json").unlink()
        with pytest.raises(
            UsageError, match="the training.json of org/craft, which says .*, cannot be had from the Hub: "
        ):
            spec(tiny, "strength:0.5:org/craft").check()

    def test_a_model_of_another_base(self, tiny, trained, tmp_path):
        other = tuned(trained, tmp_path / "other")
        for source in (other, f"unet:{other / 'unet'}"):
            with pytest.raises(
                UsageError, match="other.* was trained from another model than .*pipeline: from model"
            ) as error:
                spec(tiny, f"strength:0.5:{source}").check()
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("strength:2.5:{}", "the strength in .* must be from 0 to 2: 0 is the base, 1 the tuned model; got 2.5"),
            ("strength:-1:{}", "must be from 0 to 2"),
            ("strength:much:{}", "must be a finite number: .* got much"),
            ("strength:{}", "must be NAME=strength:NUMBER:MODEL, such as model=strength:0.7:"),
            ("strength:0.5:results:{}", "a strength is of a model, not of its results"),
            ("strength:0.5:strength:0.5:{}", "not of its results or of another strength"),
            ("strength:0.5:unte:{}", "'unte' before the colon"),
            ("strength:0.5:{}/nothing", "there is no such folder"),
            ("strength:0.5:{base}", "has no training.json .* denoiser alone: strength:0.5:unet:.*pipeline/unet"),
        ],
    )
    def test_mistakes(self, tiny, trained, source, message):
        with pytest.raises(UsageError, match=message) as error:
            spec(tiny, source.format(trained, base=f"{tiny}/./pipeline")).check()
        assert "\n" not in str(error.value)

    def test_the_base_has_none(self, trained):
        with pytest.raises(UsageError, match="the first is the base, a whole pipeline; got 'a=strength:0.5"):
            Model.parse_all([f"a=strength:0.5:{trained}"])

    def test_strengths_are_of_the_last(self, tiny, trained):
        models = [f"base={tiny / 'pipeline'}", f"a={trained}", f"b=unet:{trained / 'unet'}"]
        specs = Model.parse_all(models, None, [0.25, 1, 1.5])
        assert [*specs] == ["base", "a", "b-0.25", "b-1.5", "b"]
        assert specs["b-0.25"].kind == "unet" and specs["b-0.25"].strength == 0.25
        for wrong in (models[:1], [*models, "c=results:out"], [*models, f"c=strength:0.5:{trained}"]):
            with pytest.raises(UsageError, match="strengths are of the last of models"):
                Model.parse_all(wrong, None, [0.5])
        with pytest.raises(UsageError, match="a name of its own, got b-0.5 twice"):
            Model.parse_all(models, None, [0.5, 0.5])


def test_a_unet_of_half_precision_only(tiny, published, tmp_path, monkeypatch):
    """A folder, and a repository in the cache."""
    (tmp_path / "repo" / "unet").mkdir(parents=True)
    source = published / "repository" / "unet"
    shutil.copy(source / "config.json", tmp_path / "repo" / "unet")
    weights = {name: value.half() for name, value in load_file(source / "diffusion_pytorch_model.safetensors").items()}
    save_file(weights, tmp_path / "repo" / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    root = tmp_path / "hub" / "models--org--half"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "snapshots").mkdir()
    (root / "snapshots" / COMMIT).symlink_to(tmp_path / "repo")
    for where in (f"unet:{tmp_path / 'repo' / 'unet'}", "unet:org/half/unet"):
        model = spec(tiny, where)
        model.check()
        assert torch.equal(model.load().unet.conv_out.weight, weights["conv_out.weight"].float())
    (tmp_path / "repo" / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        '{"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00001.safetensors"}}'
    )
    with pytest.raises(UsageError, match="diffusion_pytorch_model-00001-of-00001.safetensors is missing, which"):
        spec(tiny, f"unet:{tmp_path / 'repo' / 'unet'}").check()


def test_a_part_for_a_single_file(published, tmp_path):
    file = shutil.copy(published / "unet.safetensors", tmp_path / "base.safetensors")
    model = Model.parse_all([f"base={file}", f"model=lora:{published / 'lora'}"])["model"]
    with pytest.raises(UsageError, match="a lora goes into a base that is a folder or on the Hub, and .* is a file"):
        model.check()


def test_from_the_hub(tiny, published, tmp_path, monkeypatch):
    """A denoiser in a repository, a state dict and an adapter deep in others, all from the Hub's cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for repository, source, inside in (
        ("org/dpo", published / "repository" / "unet", "unet"),
        ("org/sdpo", published / "unet.pth", "sdxl/dpo/unet.pth"),
        ("org/adapter", published / "lora", ""),
    ):
        root = tmp_path / f"models--{repository.replace('/', '--')}"
        target = root / "snapshots" / COMMIT / inside
        target.parent.mkdir(parents=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(COMMIT)
    folder, file = spec(tiny, "unet:org/dpo/unet"), spec(tiny, "unet:org/sdpo/sdxl/dpo/unet.pth")
    for model in (folder, file):
        model.check()
        assert model.hash().endswith(f"+unet:{model.source}@{COMMIT}")
    expected = load_file(published / "unet.safetensors")["conv_out.weight"]
    assert (folder.load().unet.conv_out.weight == expected).all()
    assert (file.state_dict()["conv_out.weight"] == expected).all()
    spec(tiny, "lora:org/adapter").check()


@pytest.mark.parametrize("name", ["sdxl", "sd15", "sdxl_geneval"])
def test_recipes_of_published_models(tiny, name):
    config, _ = make_parser().parse_args_and_config(["--config", str(tiny.parent / "published" / f"{name}.yaml")])
    specs = list(config.model_specs.values())
    assert specs[0].kind == "pipeline" and {"unet", "pipeline"} <= {spec.kind for spec in specs}
    assert config.prompts in BENCHMARKS
    assert parse_rewards([*config.rewards, *config.held_out_rewards])
    assert config.num_inference_steps == 50
