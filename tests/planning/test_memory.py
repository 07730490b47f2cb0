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


"""What fits where: counted networks against their real classes, and the stages of the recipes on cards of several sizes."""

import functools
import json
import shutil

import pytest
import torch
import yaml
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from craft_trl.candidates.config import CandidatesConfig, SamplingConfig
from craft_trl.cli.main import main
from craft_trl.evaluation.config import EvaluationConfig
from craft_trl.parser import CraftParser
from craft_trl.planning import placement
from craft_trl.planning.gpus import GPUS, find_gpu, is_named
from craft_trl.planning.images import Counts, Drawing, Watching, flops
from craft_trl.planning.memory import CONTEXT, Profile, SamplingMemory
from craft_trl.planning.operations import MetaPipeline
from craft_trl.planning.planner import Planner, Rates
from craft_trl.planning.rates import DISK
from craft_trl.planning.recipes import RunRecipes
from craft_trl.planning.towers import MASK2FORMER, reward_towers
from craft_trl.rewards import RewardSpec, parse_rewards
from craft_trl.rewards.image_reward import CONFIG as IMAGE_REWARD
from craft_trl.rewards.image_reward import ImageRewardModel
from craft_trl.rewards.mps_network import CONFIG as MPS
from craft_trl.rewards.mps_network import MPSNetwork
from craft_trl.scripts.plan import training_profile

from ..conftest import ROOT


def size(make):
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


class TestRewards:
    @pytest.mark.parametrize(
        ("name", "make", "published"),
        [
            ("mps", lambda: MPSNetwork(MPS), 986_109_441 + 118_500_000),
            ("imagereward", lambda: ImageRewardModel(IMAGE_REWARD), 446_000_000),
        ],
    )
    def test_all_their_layers_are_counted(self, name, make, published, tmp_path):
        real = size(make)
        assert real == pytest.approx(published, rel=0.01)
        towers = reward_towers(RewardSpec(name))
        assert sum(tower.parameters for tower in towers) == pytest.approx(real, rel=0.01)
        # From a folder of the same sizes, the same.
        config = {"mps": MPS, "imagereward": IMAGE_REWARD}[name]
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert reward_towers(RewardSpec(name, str(tmp_path))) == towers

    def test_geneval(self):
        swin = SwinConfig(embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], window_size=7)
        swin.out_features = ["stage1", "stage2", "stage3", "stage4"]
        detector = size(
            lambda: Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, num_labels=80))
        )
        assert MASK2FORMER.parameters == detector
        parts = [part for part in reward_towers(RewardSpec("geneval")) if part]
        # With open_clip's ViT-L-14, which names colours
        assert sum(part.parameters for part in parts) == pytest.approx(detector + 427_616_513, rel=0.01)


def test_who_is_there_by_hand():
    memory = SamplingMemory(pipeline=7, drawing=3, redrawing=11, rewards={"a": 4, "b": 5}, scoring=1)
    assert (memory.alone, memory.beside, memory.in_turns) == (11, 21, 11)
    assert [memory.offloads("auto", available) for available in (20, 21)] == [True, False]
    assert memory.offloads("offload", 100) and not memory.offloads("cuda", 1) and not memory.offloads("cpu", 1)
    assert [memory.peak(how, 15) for how in ("auto", "cuda", "cpu", "offload")] == [11, 21, 11, 11]
    assert SamplingMemory(7, 3, 0, {"a": 30}, 2).in_turns == 32 and SamplingMemory(7, 3, 0, {}, 0).beside == 10


SOURCES = {"sdxl": "stabilityai/stable-diffusion-xl-base-1.0", "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5"}


@functools.cache
def counted(model) -> tuple[MetaPipeline, Counts]:
    """A model in float16, and its work for an image of its own size."""
    meta = MetaPipeline(model, None, torch.float16)
    return meta, Counts.of(meta, *meta.size(SamplingConfig()))


def drawing(recipe, model, **settings) -> Drawing:
    """The stage of a recipe with a model of full size."""
    config_class = CandidatesConfig if "candidates" in recipe else EvaluationConfig
    argv = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    (config,) = CraftParser([config_class]).parse_args_and_config(["--config", str(ROOT / "recipes" / recipe), *argv])
    specs = parse_rewards([*config.rewards, *getattr(config, "held_out_rewards", [])])
    meta, counts = counted(str(model))
    if config.dtype != "float16":  # whose activations are not those of float16
        meta = MetaPipeline(str(model), None, getattr(torch, config.dtype))
    return Drawing.of(config, meta, specs, counts)


class TestFullSize:
    def test_sdxl(self, sdxl):
        """Gigabytes, worked out by hand: of parameters, and of what denoising and decoding keep."""
        memory = drawing("sdxl/candidates.yaml", sdxl).memory
        unet, vae, text = 2_567_463_684, 83_653_863, 123_060_480 + 694_659_840
        assert memory.pipeline == 2 * (unet + text) + 4 * vae  # in float16, of which the VAE is kept in float32
        # A call for 8 images with guidance, 0.33 GB each, or one image decoded: 3.2 GB in float32.
        assert memory.drawing == pytest.approx(max(8 * 2 * 0.1655e9, 3.22e9), rel=0.01)
        assert memory.redrawing == pytest.approx(4 * unet + 4 * vae + 2 * 2 * 0.1655e9, rel=0.01)
        clip_h, vision_l = 986_109_441, 303_966_208
        expected = {"hpsv2": 4 * clip_h, "pickscore": 4 * clip_h, "aesthetic": 4 * vision_l}
        assert memory.rewards == pytest.approx(expected, rel=0.01)
        assert memory.beside + CONTEXT == pytest.approx(21.9e9, rel=0.01)
        assert memory.in_turns + CONTEXT == pytest.approx(12.8e9, rel=0.01)
        rounded = drawing("sdxl/candidates.yaml", sdxl, dtype="bfloat16", reward_dtype="bfloat16").memory
        assert rounded.pipeline == 2 * (unet + vae + text)
        assert rounded.rewards == {name: value / 2 for name, value in memory.rewards.items()}
        full = drawing("sdxl/candidates.yaml", sdxl, dtype="float32").memory
        assert full.pipeline == 4 * (unet + vae + text) and full.redrawing == 0
        _, counts = counted(str(sdxl))
        meta = MetaPipeline(str(sdxl), None, torch.bfloat16)
        assert 2 * meta.count_decoding(1024, 1024).activations == pytest.approx(counts.decoding.activations, rel=1e-3)

    @pytest.mark.parametrize(
        ("recipe", "gpu", "offloads", "fits"),
        [
            ("sdxl/candidates.yaml", "rtx4090:24", False, True),
            ("sdxl/candidates.yaml", "rtx4080:16", True, True),
            ("sdxl/candidates.yaml", "rtx3060:12", True, False),  # where an image is broken in float16
            ("sdxl/evaluate.yaml", "h100:80", False, True),
            ("sdxl/evaluate.yaml", "rtx4090:24", True, True),
            ("sdxl/evaluate.yaml", "t4:16", True, True),
            ("published/sdxl.yaml", "rtx4090:24", True, True),  # as its comment says
            ("published/sdxl.yaml", "rtx4080:16", True, True),
            ("published/sdxl_geneval.yaml", "rtx4080:16", False, True),
            ("sd15/candidates.yaml", "rtx3060:12", True, True),
            ("sd15/evaluate.yaml", "rtx3060:12", True, True),
            ("sd15/candidates.yaml", "rtx4090:24", False, True),
            ("published/sd15.yaml", "rtx3060:12", True, True),
        ],
    )
    def test_where_the_recipes_fit(self, request, recipe, gpu, offloads, fits):
        model = request.getfixturevalue("sd15" if "sd15" in recipe else "sdxl")
        memory, available = drawing(recipe, model).memory, GPUS[gpu].memory * 1e9 - CONTEXT
        assert memory.offloads("auto", available) == offloads
        assert (memory.peak("auto", available) <= available) == fits

    def test_another_vae(self, sdxl, tmp_path):
        """One that does not overflow stays in float16."""
        shutil.copytree(sdxl / "vae", tmp_path / "vae")
        config = json.loads((tmp_path / "vae" / "config.json").read_text()) | {"force_upcast": False}
        (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
        meta = MetaPipeline(str(sdxl), None, torch.float16, str(tmp_path / "vae"))
        assert meta.weights("vae") == 2 * meta.parameters("vae")
        assert MetaPipeline(str(sdxl), None, torch.float16).weights("vae") == 4 * meta.parameters("vae")


def test_this_machine_decides(tiny, monkeypatch):
    """As the plan does, of the memory that is free."""
    (config,) = CraftParser([CandidatesConfig]).parse_args_and_config(["--config", str(tiny / "candidates.yaml")])
    specs, model = parse_rewards(config.rewards), str(tiny / "pipeline")

    def decided(**settings):
        for name, value in settings.items():
            monkeypatch.setattr(config, name, value)
        return placement.offloads(config, model, None, specs)

    assert not decided() and decided(reward_device="offload")  # on a CPU nothing gives way by itself
    monkeypatch.setattr(placement, "default_device", lambda: torch.device("cuda", 0))
    memory = Drawing.of(config, MetaPipeline(model), specs).memory
    for free, wanted in ((memory.beside, False), (memory.beside - 1, True)):
        monkeypatch.setattr(placement, "free_memory", lambda _, free=free: free + CONTEXT)
        assert decided(reward_device="auto") == wanted
    assert not decided(reward_device="cpu") and not decided(reward_device="cuda")


def test_names_of_devices():
    for device, name in (
        ("NVIDIA GeForce RTX 4090", "rtx4090:24"),
        ("NVIDIA H100 80GB HBM3", "h100:80"),
        ("NVIDIA A100-SXM4-40GB", "a100:40"),
        ("NVIDIA L40S", "l40s:48"),
        ("Tesla T4", "t4:16"),
        ("Tesla V100-SXM2-16GB", "v100:16"),
        ("NVIDIA GeForce RTX 3060", "rtx3060:12"),
    ):
        assert {gpu.name.split(":")[0] for gpu in GPUS.values() if is_named(device, gpu)} == {name.split(":")[0]}
    for device in ("NVIDIA T400 4GB", "NVIDIA A10", "NVIDIA RTX A4000"):
        assert not any(is_named(device, gpu) for gpu in GPUS.values())


def test_cards_without_bfloat16():
    t4 = find_gpu("t4")
    assert t4.computes_in("float16") and not t4.computes_in("bfloat16") and not find_gpu("cpu").computes_in("float16")
    # A frozen model under an adapter is in float16 too; in bfloat16 under autocast it stays in float32.
    assert Profile(1, 0, "float16", autocast=True).static_bytes(10, 1000) == 180 + 2 * 1000


def planner(folder, model, gpu, **settings) -> Planner:
    output_dir = yaml.safe_load((folder / "craft.yaml").read_text())["output_dir"]
    (folder.parent / "prompts.txt").write_text("".join(f"prompt {i}\n" for i in range(400)))
    argv = ["--candidates.model_name_or_path", str(model), "--train.model_name_or_path", str(model)]
    argv += [
        "--models",
        f"base={model}",
        f"craft={output_dir}",
        "--evaluate.prompts",
        str(folder.parent / "prompts.txt"),
    ]
    argv += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    recipes, gpu = RunRecipes.load(folder, argv), find_gpu(gpu)
    return Planner(recipes, training_profile(recipes, gpu), gpu)


@pytest.mark.parametrize(("family", "recipe"), [("sdxl", "craft_lora_t4"), ("sd15", "craft_t4")])
def test_recipes_for_a_t4(request, tmp_path, family, recipe):
    folder = shutil.copytree(ROOT / "recipes" / family, tmp_path / "recipes")
    shutil.copy(folder / f"{recipe}.yaml", folder / "craft.yaml")
    planned = planner(folder, request.getfixturevalue(family), "t4:16")
    assert planned.profile == Profile(1, 0, "float16", autocast=True) and planned.adapter
    plan = planned.plan()
    assert plan.to_dict()["fits"] and {stage.name for stage in plan.stages if stage.memory} == {
        "generate",
        "train",
        "evaluate",
    }
    said = " ".join(plan.assumptions)
    assert "generate: pipeline and rewards take turns (offload), with" in said
    assert "evaluate: the images of all models are drawn first, then one judge at a time is loaded (offload)" in said
    if family == "sd15":  # as it says of itself
        assert Profile(1, 0, "float16", autocast=True).static_bytes(planned.denoiser_parameters, 0) > 15.4e9


class TestTraining:
    def test_guard_and_checkpoints_by_hand(self, recipes, tiny):
        guard = {"held_out_rewards": [f"imagereward={tiny / 'evaluators/imagereward'}"], "guard_num_prompts": 8}
        guard |= {
            "guard_prompts": str(tiny / "prompts/tiny-parti.jsonl"),
            "guard_steps": 2,
            "guard_num_inference_steps": 3,
        }
        guard |= {"validation_prompts": ["a fox", "a car"], "validation_steps": 2, "validation_num_inference_steps": 4}
        recipes("craft", max_steps=5, save_steps=2, guard_guidance_scale=1.0, **guard)
        loaded, gpu = RunRecipes.load(recipes.folder), find_gpu("a100:40")
        planned = Planner(loaded, Profile(2, 2, "bfloat16"), gpu, pass_rate=0.5)
        watching, counts = planned.watching, planned.drawing.counts
        # Before training, after steps 2 and 4, and at its end; 8 prompts twice. Validation: at 0, 2, 4 and 5.
        assert (watching.looks, watching.images, planned.num_saves) == (4, 16, 3)
        guarded = 3 * counts.denoising.flops + counts.text.flops + counts.decoding.flops
        shown = 2 * (4 * counts.denoising.flops + counts.text.flops) + counts.decoding.flops
        assert watching.flops == pytest.approx(64 * guarded + 8 * shown)
        judge = RewardSpec("imagereward", str(tiny / "evaluators/imagereward"))
        assert watching.judge_flops == pytest.approx(64 * flops(judge)) and flops(judge) > 0
        trained, frozen = planned.denoiser_parameters, planned.pipeline_parameters - planned.denoiser_parameters
        judges = sum(tower.parameters for tower in reward_towers(judge) if tower)
        assert watching.read == 4 * (8 * frozen + 4 * judges)
        # Weights, two moments and DeepSpeed's master weights; and the best weights after each look but the first
        assert planned.checkpoint_bytes == 16 * trained and planned.best_bytes == 3 * 4 * trained
        rates = Rates(planned.image_flops, 0, 0, 0, float("inf"), saving=10.0, watching=7.0, loading={"filter": 0.0})
        written = planned.model_bytes + 3 * planned.checkpoint_bytes + planned.best_bytes
        alone = 7 + written / 10 + watching.read / DISK  # while the other process waits
        assert planned.seconds(rates)["train"] == pytest.approx(watching.flops / planned.image_flops + 2 * alone)
        assert "4 looks of the guard" in planned.plan().stages[3].work
        assert any(line.startswith("The guard looks 4 times at 16 images") for line in planned.assumptions(None))

    def test_without(self, recipes):
        loaded = RunRecipes.load(recipes.folder)
        planned = Planner(loaded, Profile(1, 0, "bfloat16"), find_gpu("a100:40"))
        assert planned.watching == Watching(0, 0, 0, 0, 0, 0) and planned.best_bytes == 0


def test_turns_take_time(recipes):
    loaded = RunRecipes.load(recipes.folder)
    planned = Planner(loaded, Profile(1, 0, "float32"), find_gpu("a100:40"), pass_rate=0.5)
    rates = Rates(1e12, 0, 0, 0, float("inf"))
    before = planned.seconds(rates)["generate"]
    loaded.candidates.reward_device = "offload"
    memory = planned.drawing.memory
    # 16 places in batches of 4: one turn of 8 batches
    moved = (memory.pipeline + sum(memory.rewards.values())) / 6e9
    assert planned.seconds(rates)["generate"] == pytest.approx(before + moved)
    assert any("take turns (offload)" in line for line in planned.assumptions(None))
    loaded.candidates.reward_device = "cpu"
    assert any("score on the CPU, whose time is not counted" in line for line in planned.assumptions(None))


def test_said_in_the_table(capsys, recipes):
    assert main(["plan", str(recipes.folder), "--gpu", "rtx3060"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("Every stage fits into its memory.\n")
    assert "- generate: the rewards lie beside the pipeline; in turns with it (offload), it would take " in out
