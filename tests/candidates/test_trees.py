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

"""Trees of transitions: against diffusers' scheduler, whatever they are drawn beside, killed and resumed, and what comes of them."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from craft_trl.candidates.config import CandidatesConfig, SamplingConfig
from craft_trl.candidates.filter_config import FilterConfig
from craft_trl.candidates.generation import ImageGenerator
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.candidates.tree_config import TreeConfig, check_trees, tree_file, tree_settings
from craft_trl.candidates.trees import draw_tree, draw_trees, tree_passes
from craft_trl.errors import NothingToDoError, UsageError
from craft_trl.filtering.transitions import build_transitions, preferred, reward_scales

from ..conftest import TINY
from ..processes import Program


SMALL = TreeConfig(tree_steps=5, first_branch=2, num_branches=3)
PROMPTS = [("a fox", 3), ("a red car", 4), ("a star", 5)]


def brightness(images, prompts):
    return np.array([np.asarray(image).mean() for image in images], dtype=np.float32)


def darkness(images, prompts):
    return brightness(images, prompts)


darkness.higher_is_better = False


def make_generator(**settings):
    sampling = {"guidance_scale": 2.0, "height": 64, "width": 64, **settings}
    return ImageGenerator(str(TINY / "pipeline"), SamplingConfig(**sampling), device="cpu")


@pytest.fixture(scope="module")
def generator():
    return make_generator()


def draw(folder, prompts=PROMPTS, generator=None, config=SMALL, rewards=None):
    rewards = rewards or {"brightness": brightness}
    draw_trees(Path(folder), {"of": "a test"}, prompts, generator or make_generator(), rewards, config, batch_size=4)


def program():
    """Draws the trees of all prompts into the folder that is its argument."""
    draw(sys.argv[1], config=TreeConfig(tree_steps=3, first_branch=1, num_branches=2))


class TestDrawing:
    @pytest.mark.parametrize("guidance", [2.0, 1.0])
    def test_every_step_is_one_of_diffusers(self, guidance):
        """Of the scheduler with `eta = 1`, by the pipeline's own UNet, from the noise that belongs to seed and step."""
        generator = make_generator(guidance_scale=guidance)
        tree = draw_tree(generator, SMALL, "a fox", 3)
        calls = 2 if guidance > 1 else 1
        assert tree.evaluations == calls * SMALL.evaluations == calls * 9  # 1 + 1 + 1, then 3 of each of 2 steps
        assert tree.timesteps.tolist() == [401, 201, 1] and tree.next_timesteps.tolist() == [201, 1, 0]

        pipeline = generator.pipeline
        options = {"clip_sample": False, "set_alpha_to_one": False}
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **options)
        scheduler.set_timesteps(5)
        text, empty, pooled, empty_pooled = pipeline.encode_prompt("a fox", device="cpu")
        sizes = torch.tensor([[64, 64, 0, 0, 64, 64]])

        @torch.no_grad()
        def predict(latents, level):
            said = [
                pipeline.unet(
                    latents, level, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}
                ).sample
                for text, pooled in ((empty, empty_pooled), (text, pooled))
            ]
            return said[0] + guidance * (said[1] - said[0]) if guidance > 1 else said[1]

        # The two plain steps, from the noise that the pipeline would start from.
        latents = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(3))
        for step, level in enumerate(scheduler.timesteps):
            said = predict(latents, level)
            noise = np.random.default_rng((3, step)).standard_normal(
                (3 if step > 1 else 1, 4, 16, 16), dtype=np.float32
            )
            drawn = [
                scheduler.step(said, level, latents, eta=1.0, variance_noise=torch.from_numpy(one)[None]).prev_sample
                for one in noise
            ]
            if step < 2:
                latents = drawn[0].half().float()
                continue
            torch.testing.assert_close(tree.latents[[step - 2]].float(), latents, atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(tree.branches[step - 2].float(), torch.cat(drawn), atol=4e-3, rtol=4e-3)
            if step < 4:  # the walk goes on from one of them, as it is kept
                (taken,) = (
                    branch for branch in tree.branches[step - 2] if torch.equal(branch, tree.latents[step - 1])
                )
                latents = taken[None].float()
        assert [len(step) for step in tree.images] == [3, 3, 3] and tree.end in tree.images[-1]

    def test_depends_on_prompt_and_seed_alone(self, generator, tmp_path):
        draw("some", PROMPTS[2:], generator)
        draw("all", PROMPTS, generator)
        some, all_of = (tree_file(tmp_path / name, {"of": "a test"}, "a star", 5) for name in ("some", "all"))
        assert some.read_bytes() == all_of.read_bytes() and len(list((tmp_path / "all").iterdir())) == 3
        other = draw_tree(generator, SMALL, "a star", 6)
        mine = load_file(tree_file(tmp_path / "all", {"of": "a test"}, "a star", 5))
        assert not torch.equal(other.branches, mine["branches"])
        assert tree_passes(sorted((tmp_path / "all").iterdir())) == 3 * 18

    def test_killed_and_resumed(self, tmp_path):
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        Program(program, whole).finish()
        run = Program(program, killed)
        while not list(killed.glob("*.safetensors")):
            assert run.is_alive(), run.output
            time.sleep(0.0005)
        run.kill()
        run.finish(-9)
        done = {path: path.stat().st_mtime_ns for path in killed.glob("*.safetensors")}
        assert len(done) < len(PROMPTS)
        Program(program, killed).finish()
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
        files = sorted(whole.iterdir())
        assert [path.read_bytes() for path in files] == [(killed / path.name).read_bytes() for path in files]

        # So are the rows, and what they are known by.
        first, second = (
            build_transitions([folder / path.name for path in files], {"brightness": 1.0}, 0.0, tmp_path / folder.name)
            for folder in (whole, killed)
        )
        assert first._fingerprint == second._fingerprint and len(first) == 6
        assert first.with_format("arrow")[:].equals(second.with_format("arrow")[:])

    def test_settings(self, recipes):
        """A pool's scheduler and steps make no other trees, its guidance and the rewards do."""

        def settings(rewards=None, tree=SMALL, **changes):
            given = {"model_name_or_path": str(TINY / "pipeline"), "output_dir": "x", "rewards": ["hpsv2"], **changes}
            given = {"prompts": str(TINY / "prompts/tiny-hpd-train.jsonl"), "templates": ["{prompt}, sharp"], **given}
            return tree_settings(CandidatesConfig(**given), tree, rewards or {"hpsv2": "a"})

        assert settings() == settings(num_inference_steps=3, scheduler="DDIMScheduler")
        others = [settings(guidance_scale=3.0), settings({"hpsv2": "b"}), settings(tree=TreeConfig())]
        assert all(other != settings() for other in others)


class TestPairs:
    def test_threshold(self):
        """A preference of 0.3 is a gap of 0.619; equal scores make no pair."""
        totals = np.array([[0.0, 0.6191, 0.3], [0.0, 0.6189, 0.3], [1.0, 1.0, 1.0], [5.0, 2.0, -1.0]])
        assert preferred(totals) == [(0, 1, 0), (3, 0, 2)]
        assert preferred(totals, 0.0) == [(0, 1, 0), (1, 1, 0), (3, 0, 2)]

    def test_rows(self, generator, tmp_path):
        draw("trees", PROMPTS[:2], generator, rewards={"brightness": brightness, "darkness": darkness})
        files = [tree_file(tmp_path / "trees", {"of": "a test"}, *key) for key in PROMPTS[:2]]
        held = [load_file(path) for path in files]
        # Less darkness is better: turned, it takes away what brightness gives.
        assert torch.equal(held[0]["score/darkness"], -held[0]["score/brightness"])
        transitions = build_transitions(files, {"brightness": 3.0, "darkness": 1.0}, 0.0, tmp_path / "scratch")
        rows = transitions.with_format("numpy")
        assert isinstance(transitions, Dataset) and len(rows) == 6
        assert transitions["prompt"][:] == ["a fox"] * 3 + ["a red car"] * 3
        assert transitions["t"][:] == [401, 201, 1] * 2 and transitions["t_prev"][:] == [201, 1, 0] * 2
        assert set(transitions["guidance_scale"]) == {2.0}
        assert [image is not None for image in transitions["image"]] == [True, False, False] * 2
        assert transitions[0]["image"].size == (64, 64)
        for row, (tree, step) in enumerate((tree, step) for tree in held for step in range(3)):
            scores = tree["score/brightness"][step]
            best, worst = int(scores.argmax()), int(scores.argmin())
            assert np.array_equal(rows[row]["x_t"], tree["latents"][step].float())
            assert np.array_equal(rows[row]["x_w"], tree["branches"][step, best].float())
            assert np.array_equal(rows[row]["x_l"], tree["branches"][step, worst].float())
            assert rows[row]["margin"] == pytest.approx(2 * float(scores[best] - scores[worst]), rel=1e-5)
        with pytest.raises(
            NothingToDoError, match="In no step of 2 trees do the best branch and the worst differ enough"
        ):
            build_transitions(files, {"brightness": 1e-9}, scratch=tmp_path / "scratch")

    def test_scales(self, tmp_path):
        """The weight of a reward over its deviation among the originals, as for advantages."""
        from PIL import Image

        groups = make_groups(["a", "b"], [["a1"], ["b1"]])
        pool = CandidatePool(tmp_path / "pool", ["hpsv2", "aesthetic"])
        scores = {"hpsv2": np.float32([1, 9, 5, 9]), "aesthetic": np.float32([7, 9, 7, 9])}
        pool.append([key for group in groups for key in group.keys], [Image.new("RGB", (8, 8))] * 4, scores)
        assert reward_scales(groups, pool, FilterConfig()) == {"hpsv2": 0.5, "aesthetic": 1.0}
        weighted = FilterConfig(reward_weights=[3.0, 1.0])
        assert reward_scales(groups, pool, weighted) == {"hpsv2": 1.5, "aesthetic": 1.0}
        assert reward_scales(groups, pool, FilterConfig(scale_rewards="none")) == {"hpsv2": 1.0, "aesthetic": 1.0}
        # A prompt that the pool has no image of yet takes no part.
        more = make_groups(["a", "b", "c"], [["a1"], ["b1"], ["c1"]])
        assert reward_scales(more, pool, FilterConfig()) == {"hpsv2": 0.5, "aesthetic": 1.0}
        with pytest.raises(UsageError, match="has no image of these prompts: run `craft generate` first"):
            reward_scales(more[2:], pool, FilterConfig())


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_branches": 1}, "num_branches must be from 2 to 64, got 1"),
            ({"tree_steps": 1}, "tree_steps must be from 2 to 1000, got 1"),
            ({"first_branch": 20}, "first_branch is 20, and there are 20 steps: none would branch"),
        ],
    )
    def test_trees(self, settings, message):
        with pytest.raises(UsageError, match=message):
            TreeConfig(**settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"negative_prompt": "blurry"}, "negative_prompt is 'blurry', and SPO has no place for it"),
            ({"guidance_rescale": 0.5}, "guidance_rescale is 0.5, and SPO has no place for it"),
            ({"guidance_cutoff": 0.5}, "guidance_cutoff is 0.5, and SPO has no place for it"),
            ({"cache_interval": 2}, "cache_interval is 2, and SPO has no place for it"),
            (
                {"draft_adapter": "org/name/adapter.safetensors"},
                "draft_adapter is 'org/name/adapter.safetensors', and",
            ),
            (
                {"model_name_or_path": str(TINY.parent / "tiny_flow" / "pipeline")},
                "A StableDiffusion3Pipeline is of flow matching, whose steps have no chance in them",
            ),
        ],
    )
    def test_recipes(self, settings, message):
        given = {"model_name_or_path": str(TINY / "pipeline"), "output_dir": "x", "rewards": ["hpsv2"], **settings}
        with pytest.raises(UsageError, match=message):
            given |= {"prompts": str(TINY / "prompts/tiny-hpd-train.jsonl"), "templates": ["{prompt}, sharp"]}
            check_trees(CandidatesConfig(**given))
