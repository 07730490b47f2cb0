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


import dataclasses
import json
import math
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from ..processes import Program


ROOT = Path(__file__).parents[2]
TINY = ROOT / "recipes" / "tiny"
sys.path.insert(0, str(ROOT))  # `recipes` is not installed under its own name

from recipes.tiny.build import annotators, data, evaluation, networks, reward_networks, training  # noqa: E402
from recipes.tiny.build.__main__ import SHIPPED_OUTPUTS, main  # noqa: E402
from recipes.tiny.build.drawing import draw_pair, render  # noqa: E402
from recipes.tiny.build.prompts import write_prompt_sets  # noqa: E402
from recipes.tiny.build.sampling import Sampler, seeded_noise  # noqa: E402
from recipes.tiny.build.scenes import (  # noqa: E402
    Ask,
    Item,
    Scene,
    ask_ids,
    caption,
    choose_ask,
    hard_negative,
    labels,
    mentioned_atoms,
    sample_scene,
    violate,
    write,
)
from recipes.tiny.build.settings import SHIPPED, SMOKE, Run, claim  # noqa: E402
from recipes.tiny.build.train_tokenizers import write_tokenizers  # noqa: E402
from recipes.tiny.build.vocabulary import HEADS, NOUN_ID, OBJECT_COLORS, PAIR_ART_SETS, held_out  # noqa: E402
from recipes.tiny.inspector import Inspector  # noqa: E402


CPU = torch.device("cpu")
seeds = st.integers(0, 10**9)
NO_DEFECT = [0] * 10


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose more time in waiting for threads than the threads save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class TestScenes:
    # Seed, caption, labels (layout, noun, colour, noun, colour, background, its colour, style, defects) and ask, checked
    # by eye against the drawings: an elephant above a green tulip, four tinted lemons on dots, a sneaker left of a
    # spoon, a blurred sketch of an ice cream left of a monkey, a blue drop on pink, four pixelated bags of popcorn.
    TABLE = [
        (
            2,
            "an elephant above a tulip",
            [5, 14, 0, 43, 4, 6, 9, 0, *NO_DEFECT],
            [2, 1, 14, -1, 43, -1, 2, -1, -1, -1],
        ),
        (
            3,
            "four cartoon lemons",
            [3, 60, 0, 170, 0, 5, 9, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1],
            [1, 4, 60, -1, -1, -1, -1, -1, -1, 2],
        ),
        (
            5,
            "a shiny 3d render of a pink sneaker and a spoon, high quality, sharp",
            [4, 159, 8, 166, 0, 7, 3, 0, *NO_DEFECT],
            [2, 1, 159, 8, 166, -1, -1, -1, -1, 0],
        ),
        (
            7,
            "an ice cream to the left of a monkey",
            [4, 82, 0, 12, 0, 7, -100, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [2, 1, 82, -1, 12, -1, 0, -1, -1, -1],
        ),
        (
            11,
            "a pixel art water drop on a pink background",
            [0, 115, 0, 170, 0, 7, 7, 4, *NO_DEFECT],
            [0, 1, 115, -1, -1, -1, -1, 7, 7, 4],
        ),
        (
            23,
            "four popcorn in the snow, blurry",
            [3, 74, 0, 170, 0, 3, -100, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            [1, 4, 74, -1, -1, -1, -1, 3, -1, -1],
        ),
    ]

    @pytest.mark.parametrize("seed, text, expected_labels, expected_ask", TABLE)
    def test_seeds_stay_what_they_are(self, seed, text, expected_labels, expected_ask):
        rng = random.Random(seed)
        scene = sample_scene(rng)
        render(scene, rng)
        written, ask = caption(scene, rng)
        assert (written, labels(scene), ask_ids(ask)) == (text, expected_labels, expected_ask)

    def test_labels_name_the_left_object_first(self):
        scene = Scene(
            [Item("cat"), Item("car", "red")],
            "two",
            relation="right",
            style="flat",
            background="beach",
            defects=["jpeg"],
        )
        with pytest.raises(ValueError, match="before they are drawn"):
            labels(scene)
        render(scene, random.Random(0))  # the cat is to the right of the car
        car, cat, red = NOUN_ID["car"], NOUN_ID["cat"], OBJECT_COLORS.index("red")
        assert labels(scene) == [4, car, red, cat, 0, 2, -100, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]

    @pytest.mark.parametrize(
        "ask, text",
        [
            (Ask([Item("wolf")], "count", 2), "two wolves"),
            (Ask([Item("cherry")], "count", 3), "three cherries"),
            (Ask([Item("car", "red")], "count", 4, style="flat"), "four flat vector red cars"),
            (Ask([Item("owl")], style="sketch"), "a pencil sketch of an owl"),
            (Ask([Item("owl")], style="retro", background="snow"), "a retro owl in the snow"),
            (
                Ask([Item("cat"), Item("rose", "blue")], "two", relation="below", background="stripes"),
                "a cat below a blue rose on white stripes",
            ),
        ],
    )
    def test_captions(self, ask, text):
        assert write(ask, random.Random(0)) == text

    @settings(max_examples=300)
    @given(seeds)
    def test_held_out_combinations_are_not_in_the_scenes_of_the_base_model(self, seed):
        scene = sample_scene(random.Random(seed), combos="seen")
        assert not any(item.color and held_out(item.noun, item.color) for item in scene.items)
        if scene.kind == "two":
            assert not held_out(*sorted(item.noun for item in scene.items))

    def test_held_out_combinations_are_in_the_other_scenes(self):
        scenes = [sample_scene(random.Random(seed), combos="any") for seed in range(2000)]
        colored = [item for scene in scenes for item in scene.items if item.color]
        held = sum(held_out(item.noun, item.color) for item in colored) / len(colored)
        assert 0.1 < held < 0.2
        with pytest.raises(ValueError, match="combos"):
            sample_scene(random.Random(0), combos="unseen")

    @settings(max_examples=40)
    @given(seeds)
    def test_drawings(self, seed):
        scene = sample_scene(random.Random(seed), combos="any")
        image, framing = render(scene, random.Random(seed))
        again, _ = render(scene, random.Random(seed))
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        np.testing.assert_array_equal(image, again)
        assert framing.original_size in (12, 14, 16, 64) and min(framing.crop_top, framing.crop_left) >= 0

    @settings(max_examples=40)
    @given(seeds)
    def test_a_clean_drawing_has_all_its_caption_asks_and_a_hard_negative_does_not(self, seed):
        rng = random.Random(seed)
        scene = sample_scene(rng, combos="any")
        scene.defects = []
        ask = choose_ask(scene, rng)
        render(scene, rng)
        truth = annotators.label_probabilities(torch.tensor([labels(scene)]))
        assert annotators.grade(truth, torch.tensor([ask_ids(ask)])).alignment.item() == 1
        wrong = violate(ask, rng, mentioned_atoms(ask))
        assert annotators.grade(truth, torch.tensor([ask_ids(wrong)])).alignment.item() < 1
        assert write(wrong, random.Random(0)) != write(ask, random.Random(0))
        assert hard_negative(ask, rng) != write(ask, rng)

    @settings(max_examples=20)
    @given(seeds, st.sampled_from(PAIR_ART_SETS))
    def test_the_drawings_of_a_pair_share_the_caption(self, seed, art_sets):
        pair = draw_pair(seed, art_sets)
        assert pair.caption and ask_ids(pair.ask)[0] in (0, 1, 2)
        assert [image.shape for image in pair.images] == [(64, 64, 3)] * 2
        grades = annotators.grade_pairs(torch.tensor([pair.labels]), torch.tensor([ask_ids(pair.ask)]))
        assert grades.quality.shape == (1, 2) and (grades.quality <= 1.08).all()
        assert (grades.alignment >= 0).all() and (grades.alignment <= 1).all()


class TestData:
    def test_prompt_sets_are_the_published_ones(self, tmp_path):
        write_prompt_sets(tmp_path / "prompts")
        assert content(tmp_path / "prompts") == content(TINY / "prompts")

    def test_tokenizers_are_the_published_ones(self, tmp_path):
        write_tokenizers(tmp_path)
        for name in ("tokenizer", "tokenizer_2"):
            published = TINY / "pipeline" / name / "tokenizer.json"
            assert (tmp_path / name / "tokenizer.json").read_bytes() == published.read_bytes()
        ours = json.loads((tmp_path / "wordpiece" / "tokenizer.json").read_text())
        published = json.loads((TINY / "evaluators" / "imagereward" / "tokenizer.json").read_text())
        assert ours["model"] == published["model"]

    def test_rows_do_not_depend_on_the_number_of_workers(self, tmp_path, monkeypatch):
        monkeypatch.setattr(data, "ROWS_PER_JOB", 4)
        tokenizers = tmp_path / "tokenizers"
        tokenizers.mkdir()
        (tokenizers / "tokenizer").symlink_to(TINY / "pipeline" / "tokenizer")
        (tokenizers / "wordpiece").symlink_to(TINY / "evaluators" / "imagereward")
        data.render_pairs(tmp_path / "one", tokenizers, 10, num_workers=1)
        data.render_pairs(tmp_path / "two", tokenizers, 10, num_workers=2)
        assert content(tmp_path / "one") == content(tmp_path / "two")
        row, stored = data.pair_row(9), data.read_column(tmp_path / "two", "images")[9]
        np.testing.assert_array_equal(stored, row["images"])
        assert data.read_column(tmp_path / "two", "captions")[9] == row["captions"]
        assert (data.read_column(tmp_path / "two", "tokens") == networks.EOS).any(-1).all()


class TestNetworks:
    def shapes(self, network):
        return {name: tuple(value.shape) for name, value in network.state_dict().items()}

    def published(self, file):
        with safe_open(TINY / file, "pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}

    def test_parameters_are_those_of_the_published_files(self):
        sizes = SHIPPED.networks
        with torch.device("meta"):
            text_1, text_2 = networks.text_encoders(sizes)
            aesthetic = reward_networks.aesthetic(sizes)
            built = {
                "pipeline/text_encoder/model.safetensors": text_1,
                "pipeline/text_encoder_2/model.safetensors": text_2,
                "pipeline/vae/diffusion_pytorch_model.safetensors": networks.vae(sizes),
                "pipeline/unet/diffusion_pytorch_model.safetensors": networks.unet(sizes),
                "rewards/hps/open_clip_model.safetensors": reward_networks.hps(reward_networks.hps_config(sizes)),
                "rewards/pick/model.safetensors": reward_networks.pick(sizes),
                "rewards/aesthetic/model.safetensors": aesthetic.vision,
                "rewards/aesthetic/aesthetic_head.safetensors": aesthetic.head,
                "evaluators/imagereward/model.safetensors": reward_networks.ImageReward(
                    reward_networks.imagereward_config(sizes)
                ),
                "evaluators/inspector/model.safetensors": Inspector(reward_networks.inspector_config(sizes)),
            }
        for file, network in built.items():
            assert self.shapes(network) == self.published(file), file
        assert set(built) == {str(file.relative_to(TINY)) for file in TINY.rglob("*.safetensors")}

    def test_configs_are_the_published_ones(self, tmp_path):
        sizes = SHIPPED.networks
        assert reward_networks.hps_config(sizes) == json.loads(
            (TINY / "rewards/hps/open_clip_config.json").read_text()
        )
        published = json.loads((TINY / "evaluators/inspector/config.json").read_text())
        assert reward_networks.inspector_config(sizes) == published
        published = json.loads((TINY / "evaluators/imagereward/config.json").read_text())
        measured = {"mean": published["mean"], "std": published["std"]}
        assert reward_networks.imagereward_config(sizes) | measured == published
        reward_networks.write_preprocessor_config(tmp_path)
        assert content(tmp_path).items() <= content(TINY / "rewards" / "pick").items()

    def test_padding(self):
        ids = torch.tensor([[1022, 5, 1023, 1023, 1023], [1022, 5, 6, 7, 1023], [1022, 5, 1023, 0, 0]])
        padded = torch.tensor([[1022, 5, 1023, 0, 0], [1022, 5, 6, 7, 1023], [1022, 5, 1023, 0, 0]])
        assert torch.equal(networks.pad_with_zero(ids), padded)


class TestAnnotators:
    def test_grades_of_a_blurred_cat_on_a_beach(self):
        scene = Scene([Item("cat")], style="cartoon", background="beach", defects=["blur"])
        asks = [Ask([Item("cat")], background="beach"), Ask([Item("dog")], style="cartoon", background="snow")]
        truth = annotators.label_probabilities(torch.tensor([labels(scene)] * 2))
        grades = annotators.grade(truth, torch.tensor([ask_ids(ask) for ask in asks]))
        torch.testing.assert_close(grades.quality, torch.tensor([0.58, 0.58]))  # 1 - 0.5 + 0.08
        torch.testing.assert_close(grades.alignment, torch.tensor([1.0, 0.25]))  # the style holds, weight 1 of 4
        torch.testing.assert_close(annotators.ratings(grades.quality, grades.style_bonus), torch.tensor([6.1, 6.1]))

    def test_preferences_follow_the_utility(self):
        torch.manual_seed(0)
        annotator = annotators.ANNOTATORS["hps"]
        quality = torch.tensor([[0.86, 0.74]]).expand(4000, 2)  # utilities 0.06 apart
        prefers_first = annotator.prefer_first(quality, torch.zeros(4000, 2)).mean().item()
        assert abs(prefers_first - 1 / (1 + math.exp(-1))) < 0.03

    def test_rank_correlation_shares_the_ranks_of_equal_values(self):
        rated, predicted = torch.tensor([1.0, 10, 10, 2]), torch.tensor([0.1, 0.7, 0.9, 0.3])
        # Ranks 1, 3.5, 3.5, 2 against 1, 3, 4, 2.
        assert evaluation.spearman(rated, predicted) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


class TestTraining:
    def test_learning_rate(self):
        recipe = training.Recipe(learning_rate=1.0, weight_decay=0, beta2=0.9, warmup_steps=10, floor=0.002)
        assert recipe.learning_rate_at(0, 100) == pytest.approx(0.1 * 1.002)
        assert recipe.learning_rate_at(50, 100) == pytest.approx(0.502)
        assert recipe.learning_rate_at(99, 100) == pytest.approx(0.002, abs=3e-4)

    def test_parameters_end_as_their_average(self):
        parameter = torch.nn.Parameter(torch.zeros(1))
        seen = []

        def loss_function(progress):
            seen.append((progress, parameter.item()))
            return parameter.sum(), {"value": parameter.sum()}

        averaging = training.Averaging(lag=1, max_decay=0.6)
        recipe = training.Recipe(0.1, weight_decay=0, beta2=0.9, warmup_steps=1, averaging=averaging)
        log = training.fit("toy", [parameter], loss_function, Run(3, 1), recipe, CPU)
        first, second = seen[1][1], seen[2][1]  # after the first and the second update
        third = second - recipe.learning_rate_at(2, 3)  # Adam's updates are of the size of the learning rate
        average = 0.5 * first  # decays 1/2, then 0.6 instead of 2/3 and 3/4
        average = 0.6 * average + 0.4 * second
        average = 0.6 * average + 0.4 * third
        assert parameter.item() == pytest.approx(average, rel=1e-4)
        assert [progress for progress, _ in seen] == pytest.approx([1 / 3, 2 / 3, 1])
        assert log["steps"] == 3 and log["value"] == pytest.approx(second, abs=1e-4)

    def test_a_loss_that_is_not_finite_stops_the_build(self):
        parameter = torch.nn.Parameter(torch.zeros(1))
        recipe = training.Recipe(0.1, weight_decay=0, beta2=0.9, warmup_steps=1)
        with pytest.raises(FloatingPointError, match="toy is nan at step 2 of 2"):
            training.fit("toy", [parameter], lambda progress: (parameter.sum() * math.nan, {}), Run(2, 1), recipe, CPU)


class TestCommandLine:
    def test_settings_of_a_folder_cannot_change(self, tmp_path):
        assert claim(tmp_path, SMOKE, SHIPPED_OUTPUTS) is None
        assert claim(tmp_path, SMOKE, SHIPPED_OUTPUTS) is None
        assert "other settings (seed)" in claim(tmp_path, dataclasses.replace(SMOKE, seed=1), SHIPPED_OUTPUTS)
        other_networks = dataclasses.replace(SMOKE, networks=SHIPPED.networks)
        assert "other settings (networks)" in claim(tmp_path, other_networks, SHIPPED_OUTPUTS)
        assert "not how they were made" in claim(TINY, SHIPPED, SHIPPED_OUTPUTS)

    def test_scale(self):
        assert SHIPPED.scaled(0.1).unet == Run(1045, 1024)
        assert SHIPPED.scaled(1e-9).unet == Run(1, 1024)
        with pytest.raises(SystemExit):
            main(["--output_dir", "x", "--scale", "0"])


@pytest.fixture(scope="module")
def smoke_build(tmp_path_factory):
    """A smoke build that was killed on its way and started again; its folder and what the second start printed."""
    folder = tmp_path_factory.mktemp("build") / "smoke"
    killed = Program(main, "--output_dir", folder, "--smoke")
    deadline = time.monotonic() + 120
    while not (folder / "work" / "scenes").exists():
        assert killed.is_alive() and time.monotonic() < deadline, killed.output
        time.sleep(0.02)
    killed.kill()
    killed.finish(-9)
    assert not (folder / "pipeline").exists()
    # What a kill in the middle of two later stages would have left.
    for output in ("pipeline", "rewards/hps"):
        (folder / f"{output}.unfinished").mkdir(parents=True)
        (folder / f"{output}.unfinished" / "half.safetensors").write_bytes(b"half")
    return folder, Program(main, "--output_dir", folder, "--smoke").finish()


class TestSmokeBuild:
    def test_a_killed_build_goes_on(self, smoke_build):
        folder, printed = smoke_build
        for name in ("prompts", "work/tokenizers", "work/scenes"):
            assert f"{name} exists, skipped" in printed
        assert "wrote pipeline in" in printed and "wrote rewards/hps in" in printed
        assert "wrote prompts in" not in printed
        assert not list(folder.rglob("*.unfinished"))
        again = Program(main, "--output_dir", folder, "--smoke").finish()
        assert "complete, nothing to do" in again

    def test_only_what_is_missing_is_built(self, smoke_build):
        folder, _ = smoke_build
        before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
        shutil.rmtree(folder / "evaluators" / "inspector")
        printed = Program(main, "--output_dir", folder, "--smoke").finish()
        assert printed.count("skipped") == 16 and "wrote evaluators/inspector in" in printed, printed
        changed = {file for file, time_ns in before.items() if file.exists() and file.stat().st_mtime_ns != time_ns}
        allowed = (folder / "evaluators" / "inspector", folder / "work" / "logs")
        assert all(any(parent in file.parents for parent in allowed) for file in changed)

    def test_the_layout_is_the_published_one(self, smoke_build):
        folder, _ = smoke_build
        parts = ("pipeline", "rewards", "evaluators", "prompts")

        def files(root):
            return {
                str(file.relative_to(root)) for part in parts for file in (root / part).rglob("*") if file.is_file()
            }

        assert files(folder) == files(TINY)
        size_independent = ("tokenizer.json", "preprocessor_config.json", "scheduler_config.json", "model_index.json")
        for file in sorted(files(TINY)):
            if file.endswith(size_independent):
                assert (folder / file).read_bytes() == (TINY / file).read_bytes(), file
            if file.endswith(".json"):
                ours, published = json.loads((folder / file).read_text()), json.loads((TINY / file).read_text())
                assert ours.keys() == published.keys(), file
                if file.endswith("tokenizer_config.json"):
                    # transformers notes whether it was offline, as it is in this test.
                    assert ours | {"local_files_only": False} == published, file
                assert str(folder) not in (folder / file).read_text(), file
        suffixes = {file.suffix for file in folder.rglob("*") if file.is_file()}
        assert suffixes == {".json", ".jsonl", ".npy", ".safetensors"}

    def test_weights_are_in_half_precision(self, smoke_build):
        folder, _ = smoke_build
        for file in [
            file for part in ("pipeline", "rewards", "evaluators") for file in folder.glob(f"{part}/**/*.safetensors")
        ]:
            with safe_open(file, "pt") as weights:
                types = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}
            assert {dtype for name, dtype in types.items() if "num_batches_tracked" not in name} == {"F16"}, file

    def test_the_report(self, smoke_build):
        folder, _ = smoke_build
        report = json.loads((folder / "metrics.json").read_text())
        assert report["settings"]["seed"] == 0
        trained = {"text", "vae", "unet", "oracle", "inspector", "hps", "pick", "aesthetic", "imagereward"}
        assert report["training"].keys() == trained
        assert report["base_on_tiny_hpd_test"]["images"] == 24
        assert len(report["base_benchmarks"]["tiny-geneval"]) == 6 and len(report["gates"]) == 11

    def test_the_pipeline_draws_and_the_sampler_draws_the_same(self, smoke_build):
        from diffusers import StableDiffusionXLPipeline

        folder, _ = smoke_build
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder / "pipeline", dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        prompts, noise = ["a fox on the beach", "two red cars"], seeded_noise(0, 2)
        drawn = pipeline(
            prompts, height=64, width=64, num_inference_steps=4, guidance_scale=3.0, latents=noise, output_type="np"
        ).images
        sampler = Sampler(folder / "pipeline", CPU, steps=4, batch_size=1)
        ids = pipeline.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
        sampled = sampler.from_noise(ids, noise, torch.full((2,), 3.0), "test")
        assert sampled.shape == (2, 64, 64, 3) and sampled.dtype == torch.uint8
        assert np.abs(drawn * 255 - sampled.numpy()).max() <= 0.51  # rounding

    def test_the_rewards_and_evaluators_load(self, smoke_build):
        import open_clip
        from transformers import BertTokenizer, CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

        folder, _ = smoke_build
        pixels = torch.zeros(1, 3, 64, 64)
        clip = open_clip.create_model(f"local-dir:{folder / 'rewards' / 'hps'}")
        assert clip.encode_image(pixels).shape == (1, SMOKE.networks.hps_text.projection)
        clip, info = CLIPModel.from_pretrained(folder / "rewards" / "pick", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        vision, info = CLIPVisionModelWithProjection.from_pretrained(
            folder / "rewards" / "aesthetic", output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        for name in ("hps", "pick"):
            assert CLIPTokenizer.from_pretrained(folder / "rewards" / name)("a fox").input_ids[-1] == networks.EOS
        imagereward = folder / "evaluators" / "imagereward"
        network = reward_networks.ImageReward(json.loads((imagereward / "config.json").read_text()))
        training.load_half(network, imagereward / "model.safetensors")
        words = BertTokenizer.from_pretrained(imagereward)(["a fox"], padding="max_length", return_tensors="pt")
        assert torch.isfinite(network(pixels, words.input_ids)).all()
        inspector = folder / "evaluators" / "inspector"
        network = Inspector(json.loads((inspector / "config.json").read_text()))
        training.load_half(network, inspector / "model.safetensors")
        probabilities = network.probabilities(pixels)
        assert {name: value.shape[1] for name, value in probabilities.items()} == {**HEADS, "defects": 10}
