"""Every recipe goes through the real parser and its checks."""

from pathlib import Path

import pytest
import yaml

from craft_trl.bakeoff.arms import PROXIMAL
from craft_trl.errors import UsageError
from craft_trl.planning.recipes import RunRecipes
from craft_trl.scripts import bakeoff, evaluate, expand, train
from craft_trl.scripts.launch import find_accelerate_config
from craft_trl.trainer import diffusion_config

from ..conftest import ROOT


RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
# Recipes of models that are published: all but those of the tiny ones, and of other people's results.
FULL_SIZE = sorted({path.parent.name for path in RECIPES} - {"tiny", "tiny_full", "tiny_flow", "published"})
PARSERS = {
    "candidates": expand.make_parser,
    "craft": train.make_parser,
    "evaluate": evaluate.make_parser,
    "bakeoff": bakeoff.make_parser,
}


def make_parser(path: Path):
    """Parser of a recipe, by the first word of its name: `craft_lora.yaml` is one for `craft train`."""
    return PARSERS["evaluate" if path.parent.name == "published" else path.stem.split("_")[0]]()


def recipe_id(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", RECIPES, ids=recipe_id)
def test_recipe(path):
    parser = make_parser(path)
    parsed = parser.parse_args_and_config(["--config", str(path)])
    content = yaml.safe_load(path.read_text())
    # What the recipe says has arrived, and everything it names beside itself is there.
    values = {name: value for part in parsed for name, value in vars(part).items()}
    for key, value in content.items():
        assert key in values
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert values[key] == value, key
        for item in value if isinstance(value, list) else [value]:
            source = str(item).rpartition("=")[2]
            if source.startswith("./"):
                assert (path.parent / source.partition(":")[0]).exists(), source


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem.startswith("craft")], ids=recipe_id)
@pytest.mark.parametrize("num_processes", [1, 8])
def test_batch_arithmetic(path, num_processes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    # Without a GPU this process would look for the others, which are not there.
    monkeypatch.setattr(diffusion_config, "accelerator", lambda: "cuda")
    content = yaml.safe_load(path.read_text())
    _, args, _ = train.make_parser().parse_args_and_config(["--config", str(path)])
    share = content["global_batch_size"] / num_processes
    assert share == int(share)
    micro = content["per_device_train_batch_size"]
    assert (args.gradient_accumulation_steps - 1) * micro < share <= args.gradient_accumulation_steps * micro


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parent.name in FULL_SIZE], ids=recipe_id)
def test_no_key_at_its_default(path):
    parser = make_parser(path)
    for key, value in yaml.safe_load(path.read_text()).items():
        assert parser.get_default(key) != value, key


def test_the_recipes_of_a_run_speak_of_one_revision(recipes):
    models = ["base=org/model", "craft=runs/tiny/model"]
    recipes("candidates", model_name_or_path="org/model", model_revision="v1")
    recipes("craft", model_name_or_path="org/model", model_revision="v1")
    recipes("evaluate", models=models, run_dir="DELETE")
    for changes, message in (
        ({}, "evaluate.yaml: model_revision of org/model is missing, and in candidates.yaml it is v1"),
        (
            {"model_revision": "v2"},
            "evaluate.yaml: model_revision of org/model is v2, and in candidates.yaml it is v1",
        ),
        ({"model_revision": "v1"}, None),
    ):
        recipes("evaluate", **changes)
        if message is None:
            specs = RunRecipes.load(recipes.folder).evaluation.model_specs
            assert specs["base"].whole == ("org/model", "v1") and specs["craft"].whole[1] is None
        else:
            with pytest.raises(UsageError, match=message):
                RunRecipes.load(recipes.folder)
    recipes("craft", model_revision="v2")
    with pytest.raises(UsageError, match="craft.yaml: model_revision of org/model is v2"):
        RunRecipes.load(recipes.folder)


def test_the_recipes_of_a_run_read_the_same_of_a_prompt():
    folder = ROOT / "recipes" / "sd35_medium"
    stages = ("candidates", "train", "evaluate")
    for changes, message in (
        (["256", "512", "256"], "craft.yaml: max_sequence_length is 512, and in candidates.yaml it is 256"),
        (["256", "256", "77"], "evaluate.yaml: max_sequence_length is 77, and in candidates.yaml it is 256"),
        (["512", "512", "512"], None),
    ):
        argv = [f"--{stage}.max_sequence_length={length}" for stage, length in zip(stages, changes, strict=True)]
        if message is None:
            assert RunRecipes.load(folder, argv).training.max_sequence_length == 512
        else:
            with pytest.raises(UsageError, match=message):
                RunRecipes.load(folder, argv)


@pytest.mark.parametrize(("family", "steps"), [("sdxl", 200), ("sd15", 120)])
def test_values_of_the_paper(family, steps):
    folder = ROOT / "recipes" / family
    recipes = RunRecipes.load(folder)  # the three speak of one run
    args, candidates = recipes.training, recipes.candidates
    assert (args.max_steps, args.global_batch_size, args.learning_rate) == (steps, 128, 5e-5)
    assert (args.train_prompt, args.negative_advantages, args.use_ema) == ("original", "zero", False)
    assert not recipes.train.use_peft and not args.activation_checkpointing
    assert (candidates.num_prompts, candidates.num_variants, candidates.filter_level) == (10_000, 8, "group")
    assert candidates.reject_on == ["hpsv2", "pickscore", "aesthetic"]
    assert set(recipes.evaluation.held_out_rewards).isdisjoint(candidates.rewards)
    sampling = recipes.evaluation.sampling()
    assert {key: getattr(candidates, key) for key in sampling} == sampling  # evaluated as the candidates were drawn
    assert candidates.model_name_or_path == recipes.train.model_name_or_path
    assert (candidates.expander_model, candidates.prompts) == ("qwen-plus", "ymhao/HPDv2")
    assert recipes.evaluation.prompts in candidates.exclude_prompts


@pytest.mark.parametrize("folder", [name for name in FULL_SIZE if name not in ("sdxl", "sd15")])
def test_recipes_of_transformers(folder):
    recipes = RunRecipes.load(ROOT / "recipes" / folder)  # the three speak of one run
    args, candidates, evaluation = recipes.training, recipes.candidates, recipes.evaluation
    # What of the paper's settings is not about a UNet.
    assert (args.max_steps, args.global_batch_size) == (200, 128)
    assert (args.train_prompt, args.negative_advantages, args.use_ema) == ("original", "zero", False)
    assert (candidates.num_prompts, candidates.num_variants, candidates.filter_level) == (10_000, 8, "group")
    assert candidates.reject_on == ["hpsv2", "pickscore", "aesthetic"] == evaluation.rewards
    assert set(evaluation.held_out_rewards).isdisjoint(candidates.rewards)
    assert evaluation.prompts in candidates.exclude_prompts
    # Evaluated, trained and looked at as the candidates were drawn.
    sampling = evaluation.sampling()
    assert {key: getattr(candidates, key) for key in sampling} == sampling and candidates.dtype == "bfloat16"
    assert candidates.model_name_or_path == recipes.train.model_name_or_path
    others = (ROOT / "recipes" / folder).glob("craft*.yaml")
    for asked, args, _ in (make_parser(path).parse_args_and_config(["--config", str(path)]) for path in others):
        assert asked.dataset_name == recipes.train.dataset_name
        assert args.max_sequence_length == candidates.max_sequence_length is not None
        assert asked.guard_guidance_scale == candidates.guidance_scale
        assert args.validation_prompts is None or args.validation_guidance_scale == candidates.guidance_scale
        assert args.train_guidance_scale == (candidates.guidance_scale if folder == "flux_dev" else None)
        # What the loss is a bound for, docs/source/theory.md.
        assert args.timestep_sampling is None and args.timestep_shift is None


def test_memory_is_computed_for_what_the_recipes_say(benchmark_memory):
    for family, profiles in benchmark_memory.PROFILES.items():
        for name, micro_batch, mode, checkpointing in profiles:
            content = yaml.safe_load((ROOT / "recipes" / family / name).read_text())
            assert content["per_device_train_batch_size"] == micro_batch
            assert content.get("activation_checkpointing", False) == checkpointing
            assert (content.get("use_peft", False), "accelerate_config" in content) == (
                mode == "lora",
                mode == "offload",
            )
            assert mode != "lora" or content["lora_r"] == 64


@pytest.mark.parametrize("name", ["craft_24gb", "craft_lora"])
def test_memory_profiles_train_the_same(name):
    """Only what the memory of the GPU is about differs from the full recipe."""
    full, profile = (yaml.safe_load((ROOT / "recipes/sdxl" / f"{n}.yaml").read_text()) for n in ("craft", name))
    allowed = {"per_device_train_batch_size", "activation_checkpointing", "output_dir", "guard_rewards"}
    allowed |= {
        "craft_24gb": {"accelerate_config", "num_processes"},
        "craft_lora": {"use_peft", "lora_r", "learning_rate", "validation_prompts", "validation_guidance_scale"},
    }[name]
    assert {key for key in full.keys() | profile.keys() if full.get(key) != profile.get(key)} <= allowed
    if "accelerate_config" in profile:
        launch = yaml.safe_load(find_accelerate_config(profile["accelerate_config"]).read_text())
        assert launch["deepspeed_config"]["offload_optimizer_device"] == "cpu"


@pytest.mark.parametrize(("name", "changed"), [("sdxl", {"per_device_train_batch_size": 2}), ("tiny_full", {})])
def test_proximal_differs_by_its_loss(name, changed):
    """
    `craft_proximal.yaml` trains as `craft.yaml` does but for the loss, and on all images, none of which is left undrawn. And
    `craft_best.yaml` is its mean with the model of that.
    """
    full, proximal, best, images = (
        yaml.safe_load((ROOT / "recipes" / name / file).read_text())
        for file in ("craft.yaml", "craft_proximal.yaml", "craft_best.yaml", "candidates_proximal.yaml")
    )
    run = f"runs/{name}_proximal"
    changed = changed | {"dataset_name": f"{run}/dataset", "output_dir": f"{run}/model"}
    assert proximal == full | {"negative_advantages": "proximal", "proximal_tau": 0.2} | changed
    assert best == proximal | {"average_with": [full["output_dir"]], "output_dir": f"{run}/best"}
    assert images["train_images"] == "all" and images["generate_all"] is True
    assert proximal["proximal_tau"] == float(PROXIMAL["proximal_tau"])  # the arm of the bake-off that speaks for it


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parent.name == "sdxl"], ids=recipe_id)
def test_an_unknown_key_fails(path, tmp_path):
    copy = tmp_path / path.name
    copy.write_text(path.read_text() + "\nlearning_rat: 1\n")
    with pytest.raises(UsageError, match="unknown key 'learning_rat'"):
        make_parser(path).parse_args_and_config(["--config", str(copy)])
