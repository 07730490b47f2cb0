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

"""Models that are not drawn, trained and judged rightly: each command says the same of them, before any work."""

import dataclasses
import inspect
import json
import shutil
import subprocess
import sys

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from craft_trl.candidates.config import SamplingConfig
from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.families.checks import check_model
from craft_trl.families.files import find_files
from craft_trl.families.schedulers import SCHEDULERS
from craft_trl.planning.gpus import find_gpu
from craft_trl.planning.planner import Planner
from craft_trl.planning.recipes import RunRecipes
from craft_trl.scripts import evaluate, generate, train
from craft_trl.scripts.export import ExportArguments
from craft_trl.scripts.export import check as check_export
from craft_trl.scripts.plan import training_profile
from craft_trl.trainer.arguments import TrainArguments

from ..models import checkpoint, edit, linked, renamed, sharded


SCHEDULER = "scheduler/scheduler_config.json"
UNET = "unet/diffusion_pytorch_model.safetensors"
EDM = {
    "_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002,
    "prediction_type": "epsilon", "beta_start": ..., "beta_end": ..., "beta_schedule": ...,
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.5, "beta_start": ..., "beta_schedule": ...}


def rewrite(folder, name, change):
    """Change a file of weights, of which the folder has a link."""
    weights = load_file(folder / name)
    (folder / name).unlink()
    save_file(change(weights), folder / name)


def without_shard(folder):
    sharded(folder, "vae", "diffusion_pytorch_model")[1].unlink()


def without_index(folder):
    sharded(folder, "vae", "diffusion_pytorch_model")
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").unlink()


def two_variants(folder):
    renamed(folder, "diffusion_pytorch_model.safe", "diffusion_pytorch_model.bf16.safe")
    renamed(folder, "model.safe", "model.fp16.safe")
    for name in ("unet", "vae"):
        renamed(folder / name, "x", "x")


def cut(folder):
    (folder / UNET).unlink()
    (folder / UNET).write_bytes(b"\x10" * 100)


def pointer(folder):
    (folder / UNET).unlink()
    (folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def scaled(weights):
    return {**weights, "conv_in.scale_weight": torch.ones(1)}


def unlink(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def config(name, **changes):
    return lambda folder: edit(folder, f"{name}/config.json", **changes)


def scheduler(**changes):
    return lambda folder: edit(folder, SCHEDULER, **changes)


def index(**changes):
    return lambda folder: edit(folder, "model_index.json", **changes)


# What is done to a folder of the tiny pipeline, and what is said of it.
FOLDERS = {
    "edm": (scheduler(**EDM), "its scheduler is EDMDPMSolverMultistepScheduler, another noise process than DDPM's. Supp"),
    "flow": (scheduler(**FLOW), "its scheduler is FlowMatchEulerDiscreteScheduler, another noise process"),
    "shifted betas": (scheduler(_class_name="CogVideoXDDIMScheduler"), "its scheduler is CogVideoXDDIMScheduler, anoth"),
    "flow sigmas": (
        scheduler(_class_name="DPMSolverMultistepScheduler", use_flow_sigmas=True),
        "its scheduler is DPMSolverMultistepScheduler with continuous noise levels",
    ),
    "continuous": (scheduler(timestep_type="continuous"), "its scheduler is EulerDiscreteScheduler with continuous noise"),
    "sample": (scheduler(prediction_type="sample"), "prediction_type sample. Supported are epsilon and v_prediction"),
    "no betas": (scheduler(beta_start=..., beta_end=...), "does not give beta_start and beta_end"),
    "no scheduler": (unlink(SCHEDULER), f"{SCHEDULER} is missing"),
    "inpainting": (config("unet", in_channels=9), r"an inpainting model \(9 input channels, latents have 4\) is not"),
    "pix2pix": (config("unet", in_channels=8), r"an instruct-pix2pix model \(8 input channels"),
    "depth": (config("unet", in_channels=5), r"a depth-to-image model \(5 input channels"),
    "learned variance": (config("unet", out_channels=8), "a unet with 8 output channels is not supported"),
    "class labels": (config("unet", class_embed_type="timestep"), r"takes an input .* \(class_embed_type timestep\)"),
    "other text encoder": (config("text_encoder", hidden_size=96), r"texts of width 192, and its text .* make 96 \+ 128"),
    "refiner": (config("unet", projection_class_embeddings_input_dim=288), "takes 288 numbers .*, and there are 320. The r"),
    "not sdxl": (config("unet", addition_embed_type=None), "addition_embed_type None, expected text_time"),
    "other vae": (index(vae=["diffusers", "AutoencoderTiny"]), "VAE is of class AutoencoderTiny. Supported is AutoencoderKL"),
    "no vae": (index(vae=[None, None]), "it has no vae"),
    "no tokenizer": (index(tokenizer_2=[None, None]), "it has no tokenizer_2"),
    "no vocabulary": (unlink("tokenizer/tokenizer.json"), "tokenizer/tokenizer.json is missing, and so are vocab.json"),
    "own code": (index(unet=["my_unet", "MyUNet"]), "its unet is a MyUNet of my_unet, code of its own that is not run"),
    "own pipeline": (index(_class_name=["pipeline", "Mine"]), "model_index.json does not describe a diffusers pipeline"),
    "wan": (
        index(_class_name="WanPipeline"),
        "A WanPipeline is not supported. Supported are .*StableDiffusionPipeline, StableDiffusionXLPipeline",
    ),
    "quantised": (config("unet", quantization_config={"quant_method": "bitsandbytes"}), "its unet is quantised"),
    "scaled fp8": (lambda folder: rewrite(folder, UNET, scaled), r"weights are quantised \(conv_in.scale_weight\)"),
    "no file": (unlink("text_encoder/model.safetensors"), "text_encoder/model.safetensors is missing"),
    "no config": (unlink("text_encoder_2/config.json"), "text_encoder_2/config.json is missing"),
    "no json": (lambda folder: (folder / "vae/config.json").rename(folder / "x") and (folder / "vae/config.json").write_text("{"),
                "vae/config.json cannot be read"),
    "no shard": (without_shard, "vae/diffusion_pytorch_model-00002-of-00002.safetensors is missing, which vae/diffusion_p"),
    "no index": (without_index, "vae/diffusion_pytorch_model.safetensors.index.json is missing, without which the shards"),
    "pickles": (
        lambda folder: renamed(folder, "model.safetensors", "model.bin"),
        "text_encoder/model.safetensors is missing. There is model.bin, and only safetensors are read. To convert it: py",
    ),
    "other name": (
        lambda folder: renamed(folder, "diffusion_pytorch_model", "flax_model"),
        "unet/diffusion_pytorch_model.safetensors is missing. There is flax_model.safetensors",
    ),
    "two variants": (two_variants, "no variant is there of all its weights, but text_encoder as fp16"),
    "cut": (cut, f"{UNET} is not a safetensors file"),
    "pointer": (pointer, "It is a pointer of Git LFS: `git lfs pull` fetches the file"),
    "unet alone": (
        lambda folder: [(folder / "model_index.json").unlink(), (folder / "unet/config.json").rename(folder / "config.json")],
        "It is a UNet2DConditionModel alone. `craft evaluate` takes a denoiser as NAME=unet:.*/model",
    ),
    "adapter": (
        lambda folder: [(folder / "model_index.json").unlink(), (folder / "adapter_config.json").write_text("{}")],
        "It is an adapter, which goes onto a model: `craft evaluate` takes it as NAME=lora:.*/model",
    ),
}  # fmt: skip

BLOCK = "model/diffusion_model/input_blocks/0/0/"
FILES = {
    "scaled fp8": ({"model/diffusion_model/scaled_fp8": torch.zeros(2)}, r"quantised \(model.diffusion_model.scaled_fp8\)"),
    "scale": ({f"{BLOCK}scale_weight": torch.ones(1)}, r"quantised \(model.diffusion_model.*scale_weight\)"),
    "comfy": ({"conditioner/embedders/0/x/comfy_quant": torch.ones(1)}, r"quantised \(.*comfy_quant\)"),
    "nf4": ({f"{BLOCK}weight": torch.zeros(8, 4, 3, 3, dtype=torch.uint8)}, r"quantised \(U8\)"),
    "lcm": ({"model/diffusion_model/time_embed/cond_proj/weight": torch.ones(1)}, "cond_proj.weight is no part of a UNet"),
    "playground": ({"edm_mean": torch.ones(1)}, r"EDM's noise process \(edm_mean\), as Playground v2.5 is"),
    "cosxl": ({"edm_vpred/sigma_max": torch.ones(1)}, r"EDM's noise process \(edm_vpred.sigma_max\)"),
    "inpainting": ({f"{BLOCK}weight": torch.ones(8, 9, 3, 3)}, r"an inpainting model \(9 input channels, latents have 4\)"),
    "no vae": ("first_stage_model.", r"it has no VAE \(first_stage_model.\*\)"),
    "no text encoder": ("conditioner.", r"it has no first text encoder \(conditioner.embedders.0.\*\)"),
    "refiner": ("conditioner.embedders.0.", r"it has no first text encoder"),
    "no unet": ("model.", "no model.diffusion_model.input_blocks in it.* It is a VAE alone"),
}  # fmt: skip


@pytest.fixture(scope="module")
def recipes(tiny):
    recipes = RunRecipes.load(tiny)
    recipes.evaluation = dataclasses.replace(recipes.evaluation, models=recipes.evaluation.models[:1])
    return recipes, training_profile(recipes, find_gpu("h100"))


COMMANDS = ("generate", "train", "evaluate", "plan", "export")


def said_of(model, recipes, *names: str) -> dict[str, str | None]:
    """What commands say of a model, by their names; all of them by default."""
    recipes, profile = recipes
    candidates = dataclasses.replace(recipes.candidates, model_name_or_path=str(model))
    training = TrainArguments(model_name_or_path=str(model), dataset_name=recipes.train.dataset_name)
    evaluation = dataclasses.replace(recipes.evaluation, models=[f"base={model}"])
    planned = dataclasses.replace(recipes, candidates=candidates, train=training, evaluation=evaluation)
    commands = {
        "generate": lambda: generate.check(candidates),
        "train": lambda: train.check(training),
        "evaluate": lambda: evaluate.check(evaluation),
        "plan": lambda: Planner(planned, profile, find_gpu("h100")),
        "export": lambda: check_export(ExportArguments(model=str(model), format="diffusers", output="exported")),
    }
    said = {}
    for command in names or COMMANDS:
        try:
            commands[command]()
        except UsageError as error:
            said[command] = str(error)
        else:
            said[command] = None
    return said


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder(name, tiny, tmp_path, recipes):
    model = linked(tiny / "pipeline", tmp_path / "model")
    change, reason = FOLDERS[name]
    change(model)
    said = said_of(model, recipes)
    assert len(set(said.values())) == 1, said
    with pytest.raises(UsageError, match=reason) as error:
        check_model(str(model))
    assert set(said.values()) == {str(error.value)} and "\n" not in str(error.value)
    assert str(error.value).startswith(f"Model {model}: ")


@pytest.mark.parametrize("name", FILES)
def test_a_single_file(name, tmp_path, recipes):
    more, reason = FILES[name]
    more = {"without": more} if isinstance(more, str) else more
    model = checkpoint(tmp_path / "model.safetensors", **more)
    said = said_of(model, recipes, *COMMANDS[:-1])  # an export takes a folder
    with pytest.raises(UsageError, match=reason) as error:
        check_model(str(model))
    assert set(said.values()) == {str(error.value)} and "\n" not in str(error.value)


def test_parts_that_are_named_by_mistake(tmp_path):
    for tensor, said in (
        ("unet.down_blocks.0.to_q.lora_A.weight", "It is an adapter.*NAME=lora:"),
        ("down_blocks.0.resnets.0.conv1.weight", "It is a UNet alone: `craft evaluate` takes it as NAME=unet:"),
    ):
        save_file({tensor: torch.ones(1)}, tmp_path / "part.safetensors")
        with pytest.raises(UsageError, match=said):
            check_model(str(tmp_path / "part.safetensors"))
    with pytest.raises(UsageError, match=f"A single file is named itself, such as {tmp_path}/part.safetensors"):
        check_model(str(tmp_path))
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(UsageError, match="model.ckpt: a file, and no .safetensors"):
        check_model(str(tmp_path / "model.ckpt"))


def test_a_distilled_model_is_drawn_from_and_not_trained(tiny, tmp_path, recipes):
    model = linked(tiny / "pipeline", tmp_path / "model")
    edit(model, "unet/config.json", time_cond_proj_dim=32)
    said = said_of(model, recipes)
    assert said["generate"] is said["evaluate"] is said["export"] is None
    assert "takes the guidance scale" not in said["train"] and said["train"] == said["plan"]
    assert "to take the guidance scale as an input (time_cond_proj_dim 32), as those of LCM are" in said["train"]


@pytest.mark.parametrize(
    "change",
    [
        scheduler(beta_start=0.001, beta_end=0.03, beta_schedule="linear"),
        scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        scheduler(_class_name="PNDMScheduler", prediction_type=...),
        scheduler(beta_start=..., trained_betas=[0.1] * 1000),
        config("vae", latents_mean=[0.1] * 4, latents_std=[2.0] * 4),
        index(feature_extractor=["transformers", "Missing"], image_encoder=["transformers", "Missing"]),
        lambda folder: sharded(folder, "text_encoder", "model"),
        lambda folder: renamed(folder, "model.safetensors", "model.fp16.safetensors"),
        lambda folder: sharded(folder, "vae", "diffusion_pytorch_model", ".fp16"),
    ],
)
def test_good_models(change, tiny, tmp_path, recipes):
    model = linked(tiny / "pipeline", tmp_path / "model")
    change(model)
    said = said_of(model, recipes, "generate", "train", "evaluate", "export")
    assert set(said.values()) == {None}


def test_good_files(tmp_path):
    check_model(str(checkpoint(tmp_path / "a.safetensors", v_pred=torch.empty(0))))
    half = torch.zeros(8, 4, 3, 3, dtype=torch.float8_e4m3fn)
    check_model(
        str(checkpoint(tmp_path / "b.safetensors", **{f"{BLOCK}weight": half, "global_step": torch.tensor(1)}))
    )


def test_markers_against_the_configuration_beside(tiny, tmp_path):
    folder = linked(tiny / "pipeline", tmp_path / "model")
    names = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    file = str(checkpoint(folder / "m.safetensors", **names))
    with pytest.raises(
        UsageError, match="v_pred says that prediction_type is v_prediction, and .* beside it says epsilon"
    ):
        check_model(file)
    edit(folder, SCHEDULER, prediction_type="v_prediction")
    with pytest.raises(UsageError, match="ztsnr says that rescale_betas_zero_snr is True, and .* says False"):
        check_model(file)
    edit(folder, SCHEDULER, rescale_betas_zero_snr=True)
    check_model(file)
    edit(folder, SCHEDULER, **EDM)
    with pytest.raises(UsageError, match=f"Model {file}: its scheduler is EDMDPMSolverMultistepScheduler"):
        check_model(file)


def test_stable_diffusion_2_does_not_say_what_it_predicts(tmp_path):
    more = {"cond_stage_model/model/positional_embedding": torch.zeros(8, 8)}
    for marker, good in ({}, False), ({"v_pred": torch.empty(0)}, True):
        file = checkpoint(tmp_path / "model.safetensors", "model.diffusion_model.label_emb.", **more, **marker)
        if good:
            check_model(str(file))
        else:
            with pytest.raises(UsageError, match="does not say whether it predicts epsilon or v"):
                check_model(str(file))


def test_another_vae(tiny, tmp_path):
    model, vae = str(tiny / "pipeline"), tmp_path / "vae"
    shutil.copytree(tiny / "pipeline" / "vae", vae)
    check_model(model, drawing=SamplingConfig(vae_name_or_path=str(vae)))
    edit(tmp_path, "vae/config.json", latent_channels=16)
    with pytest.raises(UsageError, match="it is for latents of 16 channels, the model's have 4"):
        check_model(model, drawing=SamplingConfig(vae_name_or_path=str(vae)))
    edit(tmp_path, "vae/config.json", latent_channels=4)
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match="There is diffusion_pytorch_model.bin, and only safetensors are read"):
        check_model(model, drawing=SamplingConfig(vae_name_or_path=str(vae)))


def test_a_revision_of_what_is_here(tiny):
    with pytest.raises(UsageError, match="model_revision v1: .*pipeline is here and not on the Hub: leave it out"):
        check_model(str(tiny / "pipeline"), "v1")


def test_the_command_line(tiny, tmp_path, capsys):
    """Nothing is begun, so that the next command finds nothing in its way."""
    model = linked(tiny / "pipeline", tmp_path / "model")
    edit(model, SCHEDULER, **EDM)
    argv = ["--config", str(tiny / "candidates.yaml"), "--output_dir", "out", "--model_name_or_path"]
    for command in ("expand", "generate"):
        assert main([command, *argv, str(model)]) == 2
        assert "its scheduler is EDMDPMSolverMultistepScheduler" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_schedulers_are_those_of_ddpm():
    """By diffusers' own classes: betas, and no other noise process on top of them."""
    others = {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "RePaintScheduler"}
    others |= {"DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"}
    names = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    betas = {name for name in names if "beta_start" in inspect.signature(getattr(diffusers, name)).parameters}
    # Of torchsde, without which diffusers has but its name.
    assert betas - others == set(SCHEDULERS) - {"DPMSolverSDEScheduler"}
    with pytest.raises(UsageError, match="scheduler EDMEulerScheduler is of another noise process"):
        SamplingConfig(scheduler="EDMEulerScheduler")


def test_nothing_heavy_is_imported(tiny):
    code = f"""
import sys
from craft_trl.families.checks import check_model
check_model({str(tiny / "pipeline")!r}, train=True)
print([name for name in ("torch", "diffusers", "transformers", "datasets") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_files_that_are_read(tiny, tmp_path):
    model = linked(tiny / "pipeline", tmp_path / "model")
    assert find_files(str(model)).variant is None
    for name in ("unet", "vae"):
        shutil.copy(
            model / name / "diffusion_pytorch_model.safetensors",
            model / name / "diffusion_pytorch_model.fp16.safetensors",
        )
    assert find_files(str(model)).variant is None and find_files(str(model)).read_weights()["unet"] == [model / UNET]
    (model / UNET).unlink()
    files = find_files(str(model))
    assert files.variant == "fp16" and {name: [path.name for path in paths] for name, paths in files.read_weights().items()} == {
        "unet": ["diffusion_pytorch_model.fp16.safetensors"], "vae": ["diffusion_pytorch_model.fp16.safetensors"],
        "text_encoder": ["model.safetensors"], "text_encoder_2": ["model.safetensors"],
    }  # fmt: skip
    assert json.loads((model / "model_index.json").read_text()) == files.index


@pytest.mark.parametrize(
    ("content", "reason"),
    [('{"a": ', "cannot be read"), ("[]", "is no configuration"), ("3", "is no configuration")],
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_damaged_json_of_a_tokenizer(tiny, tmp_path, name, content, reason):
    shutil.copytree(tiny / "pipeline", tmp_path / "model")
    (tmp_path / "model" / "tokenizer_2" / name).write_text(content)
    with pytest.raises(UsageError, match=rf"model: its tokenizer_2/{name} {reason}"):
        check_model(str(tmp_path / "model"))
