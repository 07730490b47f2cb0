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


import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from craft_trl.errors import UsageError
from craft_trl.rewards import REWARDS, RewardSpec, parse_rewards, score
from craft_trl.rewards.aesthetic import LinearHead
from craft_trl.rewards.preprocessing import Letterbox, TorchvisionCrop, TransformersCrop
from craft_trl.rewards.reward_model import RewardModel


def picture(width, height, seed=0):
    """A ramp with noise."""
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    ramp = np.linspace(0, 190, width)[None, :, None]
    return Image.fromarray((ramp + noise).astype(np.uint8))


@pytest.fixture(scope="module")
def scenes(tiny):
    """A few images of the tiny model, and the prompts that they were drawn from."""
    from craft_trl.candidates.config import SamplingConfig
    from craft_trl.candidates.generation import ImageGenerator

    rows = [json.loads(line) for line in (tiny / "prompts" / "tiny-hpd-test.jsonl").read_text().splitlines()[::50]]
    prompts = [row["prompt"] for row in rows]
    config = SamplingConfig(num_inference_steps=10, guidance_scale=5.0, height=64, width=64, batch_size=8)
    return ImageGenerator(str(tiny / "pipeline"), config)(prompts, range(len(prompts))), prompts


def specs(tiny):
    folders = {"hpsv2": "rewards/hps", "pickscore": "rewards/pick", "aesthetic": "rewards/aesthetic"}
    folders["imagereward"] = "evaluators/imagereward"
    named = {name: RewardSpec.parse(f"{name}={tiny / folder}") for name, folder in folders.items()}
    for name in ("alignment", "quality", "defects", "all_atoms"):
        named[name] = RewardSpec.parse(f"{name}={tiny / 'inspector.py'}:{name}")
    return named


@pytest.fixture(scope="module")
def rewards(tiny):
    return {name: spec.load() for name, spec in specs(tiny).items()}


class TestBuiltIn:
    def test_shape_and_type(self, rewards, scenes):
        for name, reward in rewards.items():
            scores = reward(*scenes)
            assert isinstance(scores, torch.Tensor) and scores.shape == (8,) and scores.dtype == torch.float32, name
            assert scores.isfinite().all() and not scores.requires_grad, name

    def test_a_score_depends_on_its_own_image_and_prompt(self, rewards, scenes):
        images, prompts = scenes
        order = [3, 0, 7, 1, 6, 2, 5, 4]
        for name, reward in rewards.items():
            together = reward(images, prompts)
            shuffled = reward([images[i] for i in order], [prompts[i] for i in order])
            assert torch.equal(together[order], shuffled), name
            alone = torch.cat([reward([image], [prompt]) for image, prompt in zip(images, prompts, strict=True)])
            torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5, msg=name)

    def test_the_right_prompt_scores_higher(self, rewards, scenes):
        images, prompts = scenes
        for name in ("hpsv2", "pickscore", "imagereward", "alignment"):
            right, wrong = rewards[name](images, prompts), rewards[name](images, prompts[1:] + prompts[:1])
            assert right.mean() > wrong.mean(), name

    def test_a_ruined_image_scores_lower(self, rewards, scenes):
        images, prompts = scenes
        ruined = [image.resize((6, 6)).resize((64, 64)) for image in images]
        for name in ("hpsv2", "pickscore", "aesthetic", "imagereward", "quality"):
            assert (rewards[name](images, prompts) > rewards[name](ruined, prompts)).float().mean() > 0.8, name
        assert rewards["defects"](ruined, prompts).mean() > rewards["defects"](images, prompts).mean()

    def test_aesthetic_ignores_the_prompt(self, rewards, scenes):
        images, prompts = scenes
        assert torch.equal(rewards["aesthetic"](images, prompts), rewards["aesthetic"](images, prompts[::-1]))

    def test_modes_and_sizes(self, rewards, scenes):
        images, prompts = scenes
        image, prompt = images[0], prompts[:1]
        for name in ("hpsv2", "pickscore", "aesthetic", "imagereward"):
            expected = rewards[name]([image], prompt)
            assert torch.equal(rewards[name]([image.convert("RGBA")], prompt), expected), name
            for other in (image.convert("L"), image.resize((128, 96)), image.resize((30, 100))):
                assert rewards[name]([other], prompt).isfinite().all(), name

    def test_hpsv2_letterboxes(self, rewards):
        """The longest side fits and the rest is black, where the other scorers crop the centre."""
        letterbox = rewards["hpsv2"].preprocess
        wide = letterbox(Image.new("RGB", (128, 64), "white"))
        black = -torch.tensor(letterbox.mean) / torch.tensor(letterbox.std)
        assert wide.shape == (3, 64, 64)
        torch.testing.assert_close(wide[:, :16], black[:, None, None].expand(3, 16, 64))
        assert (wide[:, 16:48] > 1).all()
        torch.testing.assert_close(wide[:, 48:], black[:, None, None].expand(3, 16, 64))

    def test_text_is_encoded_once_per_prompt(self, tiny, scenes):
        images, prompts = scenes
        for name in ("hpsv2", "pickscore"):
            reward = specs(tiny)[name].load()
            encode, calls = reward.encode_prompt, []
            reward.encode_prompt = lambda prompt, encode=encode, calls=calls: calls.append(prompt) or encode(prompt)
            first = reward(images, [prompts[0]] * 8)
            reward(images, prompts)
            assert sorted(calls) == sorted(set(prompts)), name
            # The oldest are forgotten first; a score is the same whether its prompt was remembered or not.
            reward.num_prompts = 2
            assert torch.equal(reward(images, [prompts[0]] * 8), first) and len(reward.prompts) == len(set(prompts))
            reward.prompts.clear()
            assert torch.equal(reward(images, prompts)[:1], first[:1]) and list(reward.prompts) == prompts[-2:], name

    def test_lower_precision(self, tiny, rewards, scenes):
        """bfloat16 is near float32, and not the same: it is really used; scores are float32 in any case."""
        for name in ("hpsv2", "pickscore", "aesthetic", "imagereward"):
            reward = specs(tiny)[name].load(dtype=torch.bfloat16)
            parameters = list(reward.model.parameters())
            assert any(parameter.dtype == torch.bfloat16 for parameter in parameters), name
            scores, exact = reward(*scenes), rewards[name](*scenes)
            assert scores.dtype == torch.float32 and not torch.equal(scores, exact), name
            assert (scores - exact).abs().max() < 0.2 * (exact.max() - exact.min()), name

    def test_image_features_are_unit_vectors(self, rewards, scenes):
        for name in ("hpsv2", "pickscore", "aesthetic"):
            features = rewards[name].image_features(scenes[0])
            torch.testing.assert_close(features.norm(dim=-1), torch.ones(8), atol=1e-5, rtol=0)

    def test_linear_head_reads_the_published_names(self):
        head = LinearHead(768)
        assert sorted(head.state_dict()) == [
            f"layers.{i}.{kind}" for i in (0, 2, 4, 6, 7) for kind in ("bias", "weight")
        ]
        assert [p.shape[0] for n, p in head.named_parameters() if n.endswith("bias")] == [1024, 128, 64, 16, 1]


class Brightness(RewardModel):
    """A network that needs no weights: the mean of the pixels, plus the length of the prompt."""

    preprocess = TorchvisionCrop(8)

    def __init__(self, fits=64):
        super().__init__("cpu", torch.float32)
        self.fits, self.sizes = fits, []

    def forward(self, pixel_values, prompts):
        self.sizes.append(len(prompts))
        if len(prompts) > self.fits:
            raise torch.OutOfMemoryError(f"{len(prompts)} images do not fit")
        return pixel_values.mean((1, 2, 3)) + torch.tensor([float(len(prompt)) for prompt in prompts])


def colours(n):
    return [Image.new("RGB", (16, 16), (i * 7 % 256, i * 11 % 256, i * 13 % 256)) for i in range(n)]


class TestScore:
    def test_the_same_as_each_reward_alone(self, rewards, scenes):
        together = score(rewards, *scenes)
        assert list(together) == list(rewards)
        for name, reward in rewards.items():
            assert together[name].dtype == np.float32 and together[name].shape == (8,)
            assert np.array_equal(together[name], np.asarray(reward(*scenes))), name

    def test_each_kind_of_preprocessing_once(self, rewards, scenes, monkeypatch):
        """Aesthetic and ImageReward see the same pixels; an image that stands twice is prepared once."""
        calls = []
        for kind in (Letterbox, TorchvisionCrop, TransformersCrop):
            prepare = kind.__call__
            monkeypatch.setattr(
                kind,
                "__call__",
                lambda self, image, prepare=prepare: (
                    calls.append((type(self).__name__, id(image))) or prepare(self, image)
                ),
            )
        images, prompts = scenes
        built_in = {name: rewards[name] for name in ("hpsv2", "pickscore", "aesthetic", "imagereward")}
        score(built_in, [*images, *images], [*prompts, *prompts])
        kinds = ("Letterbox", "TransformersCrop", "TorchvisionCrop")
        assert sorted(calls) == sorted((kind, id(image)) for kind in kinds for image in images)

    def test_more_than_a_batch(self):
        reward, images = Brightness(), colours(150)
        prompts = ["x" * (i % 5) for i in range(150)]
        scores = score({"a": reward}, images, prompts)["a"]
        assert reward.sizes == [64, 64, 22]
        expected = [reward.preprocess(image).mean() + len(p) for image, p in zip(images, prompts, strict=True)]
        np.testing.assert_allclose(scores, expected, rtol=1e-6)

    def test_out_of_memory(self):
        """The batch is halved until it fits, no image is lost or doubled, and the size is remembered."""
        images, prompts = colours(70), ["x" * i for i in range(70)]
        expected = Brightness()(images, prompts)
        reward = Brightness(fits=5)
        torch.testing.assert_close(reward(images, prompts), expected, atol=1e-6, rtol=1e-6)
        assert reward.sizes[:6] == [64, 32, 16, 8, 4, 4] and reward.batch_size == 4
        reward.sizes.clear()
        reward(images, prompts)
        assert set(reward.sizes) == {4, 2}
        with pytest.raises(torch.OutOfMemoryError, match="1 images do not fit"):
            Brightness(fits=0)(images, prompts)

    def test_nothing(self):
        assert score({"a": Brightness()}, [], [])["a"].shape == (0,)
        assert Brightness()([], []).shape == (0,)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([1.0], "returned shape \\(1,\\) for 2 images"),
            ([[1.0], [2.0]], "returned shape \\(2, 1\\)"),
            ([1.0, float("nan")], "is nan for the prompt 'second'"),
            ([float("-inf"), 1.0], "is -inf for the prompt 'first'"),
            (None, "returned shape \\(\\) for 2 images"),
            (torch.tensor(1.0), "returned shape \\(\\) for 2 images"),
            (torch.ones(2, 1, dtype=torch.bfloat16), "returned shape \\(2, 1\\) for 2 images; it must be \\(2,\\)"),
            (torch.tensor([1.0, float("nan")], dtype=torch.bfloat16), "is nan for the prompt 'second'"),
            (["1.0", "2.0"], r"returned \['1.0', '2.0'\]; a score must be a number"),
            ([1.0, None], r"returned \[1.0, None\]; a score must be a number"),
            (torch.ones(2, dtype=torch.complex64), "returned tensor.*; a score must be a number"),
            ([[1.0], [2.0, 3.0]], "returned no list of numbers: setting an array element"),
            ([1e39, 1.0], "is inf for the prompt 'first'"),  # as float32
        ],
    )
    def test_a_broken_scorer(self, values, message):
        with pytest.raises(UsageError, match=f"Reward mine {message}"):
            score({"mine": lambda images, prompts: values}, colours(2), ["first", "second"])

    @pytest.mark.parametrize(
        "values",
        [
            torch.tensor([0.5, 2.0], dtype=torch.bfloat16),
            torch.tensor([0.5, 2.0], dtype=torch.float16),
            torch.tensor([0.5, 2.0], requires_grad=True) * 1,
            [torch.tensor(0.5, dtype=torch.bfloat16), torch.tensor(2.0, requires_grad=True)],
            (0.5, 2),
            np.array([0.5, 2.0], dtype=np.float16),
        ],
    )
    def test_whatever_numbers_come_as(self, values):
        values = score({"mine": lambda images, prompts: values}, colours(2), ["a", "b"])["mine"]
        assert values.dtype == np.float32 and values.tolist() == [0.5, 2.0]

    def test_whole_numbers(self):
        for values in (torch.tensor([3, -4]), [3, -4], np.array([3, -4])):
            assert score({"mine": lambda *_, v=values: v}, colours(2), ["a", "b"])["mine"].tolist() == [3, -4]

    def test_a_scorer_that_raises_is_named_with_its_line(self, tmp_path):
        file = tmp_path / "mine.py"
        file.write_text(
            "import torch\n\n\nclass Bad:\n    def __init__(self):\n        raise KeyError('weights')\n\n\n"
            "def far(images, prompts):\n    return near(prompts)\n\n\n"
            "def near(prompts):\n    return torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 5))\n"
        )
        far = RewardSpec.parse(f"mine={file}:far").load()
        with pytest.raises(UsageError, match=rf"^Reward mine failed: RuntimeError: mat1 and .*\({file}, line 14\)\.$"):
            score({"mine": far}, colours(2), ["a", "b"])
        with pytest.raises(UsageError, match=rf"Bad' failed: KeyError: 'weights' \({file}, line 6\)\.$"):
            RewardSpec.parse(f"mine={file}:Bad").load()

        def full(images, prompts):
            raise torch.OutOfMemoryError("no room")

        with pytest.raises(torch.OutOfMemoryError):  # not the reward's fault
            score({"mine": full}, colours(2), ["a", "b"])

    def test_float32_is_exact_while_scoring(self):
        seen = []

        class Reward(Brightness):
            def forward(self, pixel_values, prompts):
                seen.append(torch.backends.cudnn.conv.fp32_precision)
                return super().forward(pixel_values, prompts)

        def mine(images, prompts):
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            return [0.0] * len(images)

        score({"a": Reward(), "b": mine}, colours(2), ["a", "b"])
        Reward()(colours(2), ["a", "b"])
        assert seen == ["ieee"] * 3 and torch.backends.cudnn.conv.fp32_precision == "tf32"


class TestBadInput:
    """A clear error that names the item, or the documented behaviour; never scores of other images in its place."""

    @pytest.fixture
    def files(self, tmp_path):
        """Images as they lie on a disk: opened, not decoded."""
        good = picture(64, 64)
        good.save(tmp_path / "good.png")
        good.save(tmp_path / "good.jpg", quality=95)
        for name in ("good.png", "good.jpg"):
            data = (tmp_path / name).read_bytes()
            (tmp_path / f"truncated_{name}").write_bytes(data[: len(data) // 2])
        data = bytearray((tmp_path / "good.png").read_bytes())
        data[len(data) // 2] ^= 0xFF
        (tmp_path / "flipped.png").write_bytes(data)
        return tmp_path

    @pytest.mark.parametrize("name", ["truncated_good.png", "truncated_good.jpg", "flipped.png"])
    def test_damaged_files(self, files, rewards, name):
        images = [Image.open(files / file) for file in ("good.png", "good.jpg", name, "good.png")]
        with pytest.raises(UsageError, match=rf"Image 2 of 4 \(.*{name}\) cannot be decoded: "):
            score(rewards, images, ["a fox"] * 4)
        with pytest.raises(UsageError, match="Image 2 of 4"):
            rewards["aesthetic"](images, ["a fox"] * 4)

    def test_files_are_decoded(self, files, rewards):
        built_in = {name: rewards[name] for name in ("hpsv2", "pickscore", "aesthetic", "imagereward")}
        opened = [Image.open(files / "good.png")] * 3
        scores = score(built_in, opened, ["a fox"] * 3)
        for name, reward in built_in.items():
            assert np.array_equal(scores[name], np.asarray(reward([picture(64, 64)] * 3, ["a fox"] * 3))), name

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (Image.new("RGB", (0, 0)), "Image 1 of 3 is 0x0 pixels: there is nothing to score"),
            (Image.new("RGB", (0, 64)), "Image 1 of 3 is 0x64 pixels"),
            (Image.new("RGB", (20_000, 10)), "Image 1 of 3 is 20000x10 pixels; one side may be at most 100 times"),
            (np.zeros((64, 64, 3), dtype=np.uint8), "Image 1 of 3 is a ndarray, not a PIL.Image.Image"),
            ("fox.png", "Image 1 of 3 is a str, not a PIL.Image.Image"),
            (None, "Image 1 of 3 is a NoneType"),
        ],
    )
    def test_what_cannot_be_scored(self, rewards, image, message):
        images = [picture(64, 64), image, picture(64, 64)]
        with pytest.raises(UsageError, match=message):
            score(rewards, images, ["a fox"] * 3)
        for name in ("hpsv2", "pickscore", "aesthetic", "imagereward"):
            with pytest.raises(UsageError, match=message):
                rewards[name](images, ["a fox"] * 3)

    def test_odd_but_sound(self, rewards):
        """One pixel, a panorama, CMYK, an animation (of which the frame it stands at counts): scored like their RGB."""
        frames = [picture(64, 64, seed=i) for i in range(3)]
        buffer = io.BytesIO()
        frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
        animated = Image.open(buffer)
        assert animated.n_frames == 3
        images = [Image.new("RGB", (1, 1), "red"), picture(20_000, 200), picture(64, 64).convert("CMYK"), animated]
        for name in ("hpsv2", "pickscore", "aesthetic", "imagereward"):
            scores = rewards[name](images, ["a fox"] * 4)
            assert scores.isfinite().all(), name
            alike = rewards[name]([images[0], images[1], images[2].convert("RGB"), frames[0]], ["a fox"] * 4)
            torch.testing.assert_close(scores, alike, atol=1e-2 * float(alike.abs().max()), rtol=0, msg=name)
            animated.seek(2)
            assert torch.equal(rewards[name]([animated], ["a fox"]), rewards[name]([frames[2]], ["a fox"])), name
            animated.seek(0)

    @pytest.mark.parametrize("prompt", ["", " ", "fox " * 1000, "秋天的山, 水墨画", "قطة سوداء", "🦊", "a\x00b\n\tc"])
    def test_odd_prompts(self, rewards, scenes, prompt):
        images, prompts = scenes
        for name in ("hpsv2", "pickscore", "aesthetic", "imagereward"):
            scores = rewards[name](images[:3], [prompts[0], prompt, prompts[2]])
            assert scores.isfinite().all(), name
            usual = rewards[name](images[:3], prompts[:3])
            assert torch.equal(scores[[0, 2]], usual[[0, 2]]), name

    def test_a_long_prompt_is_cut(self, rewards, scenes):
        images, _ = scenes
        for name in ("hpsv2", "pickscore", "imagereward"):
            long, longer = (rewards[name](images[:1], ["fox " * n]) for n in (200, 1000))
            assert torch.equal(long, longer), name

    @pytest.mark.parametrize(
        ("images", "prompts", "message"),
        [
            (1, ["a", "b"], "Got 1 images and 2 prompts; each image needs its prompt"),
            (2, ["a"], "Got 2 images and 1 prompts"),
            (2, ["a", None], "Prompt 1 of 2 is a NoneType, not a text: None"),
            (2, ["a", 3], "Prompt 1 of 2 is a int"),
        ],
    )
    def test_prompts_that_do_not_fit(self, rewards, images, prompts, message):
        with pytest.raises(UsageError, match=message):
            score(rewards, colours(images), prompts)
        with pytest.raises(UsageError, match=message):
            rewards["hpsv2"](colours(images), prompts)


class TestInspector:
    def test_unknown_prompt(self, rewards, scenes):
        with pytest.raises(ValueError, match="does not know what 'a spaceship' asks for"):
            rewards["alignment"](scenes[0][:1], ["a spaceship"])

    def test_size(self, rewards, scenes):
        with pytest.raises(ValueError, match="64x64 images only, got 128x64"):
            rewards["quality"]([Image.new("RGB", (128, 64))], scenes[1][:1])

    def test_direction(self, rewards):
        assert rewards["defects"].higher_is_better is False


class TestRewardSpec:
    def test_published_weights(self):
        spec = RewardSpec.parse("hpsv2")
        assert spec == RewardSpec("hpsv2", None) and not spec.custom

    def test_published_weights_are_pinned_in_the_fingerprint(self):
        fingerprint = RewardSpec.parse("aesthetic").fingerprint()
        assert (
            "openai/clip-vit-large-patch14@32bd642" in fingerprint
            and "ddpo-aesthetic-predictor@cf4bd10" in fingerprint
        )
        assert len({RewardSpec.parse(name).fingerprint() for name in REWARDS}) == len(REWARDS)

    def test_hub_id(self):
        assert RewardSpec.parse("pickscore=org/model").fingerprint() == "org/model@main"

    def test_own_callable_from_a_file(self, tmp_path):
        (tmp_path / "mine.py").write_text(
            "import numpy as np\n"
            "def width(images, prompts): return np.array([image.width for image in images])\n"
            "class Prompt:\n"
            "    def __call__(self, images, prompts): return [len(prompt) for prompt in prompts]\n"
        )
        named = {
            name: RewardSpec.parse(f"{name}={tmp_path}/mine.py:{what}").load()
            for name, what in (("a", "width"), ("b", "Prompt"))
        }
        scores = score(named, [Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8))], ["x", "yyy"])
        assert {name: values.tolist() for name, values in scores.items()} == {"a": [8.0, 16.0], "b": [1.0, 3.0]}
        assert scores["a"].dtype == np.float32

    def test_own_callable_from_a_module(self):
        assert RewardSpec.parse("mine=math:hypot").load()(3, 4) == 5

    def test_own_callable_from_a_module_in_this_folder(self, monkeypatch):
        """As the command finds it, whose own folder is that of the programs."""
        folder = os.getcwd()
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", folder)])
        before = list(sys.path)
        Path("my_rewards").mkdir()
        Path("my_rewards/brightness.py").write_text("def mean(images, prompts):\n    return [0.5] * len(images)\n")
        # What is installed wins: a file of the folder does not stand in for a library.
        Path("textwrap.py").write_text("raise RuntimeError")
        monkeypatch.delitem(sys.modules, "textwrap")
        assert RewardSpec.parse("mine=my_rewards.brightness:mean").load()([None], [""]) == [0.5]
        assert RewardSpec.parse("mine=textwrap:dedent").load()("  a") == "a" and sys.path == before
        with pytest.raises(UsageError, match="no module my_rewards.none, neither installed nor in this folder"):
            RewardSpec.parse("mine=my_rewards.none:mean").load()
        assert sys.path == before

    def test_own_module_that_fails_when_it_is_imported(self):
        Path("my_judge.py").write_text("import math\n\nscale = math.sqrt(-1)\n")
        for source in ("my_judge:mean", "./my_judge.py:mean"):
            with pytest.raises(UsageError, match=r"failed: ValueError: .*my_judge\.py, line 3\)\.$"):
                RewardSpec.parse(f"mine={source}").load()
        Path("my_other.py").write_text("import no_such_library\n")
        with pytest.raises(UsageError, match="there is no module no_such_library"):
            RewardSpec.parse("mine=my_other:mean").load()

    def test_fingerprint_follows_the_file(self, tmp_path):
        file = tmp_path / "mine.py"
        file.write_text("x = len")
        spec = RewardSpec.parse(f"mine={file}:x")
        before = spec.fingerprint()
        file.write_text("x = sum")
        assert spec.fingerprint() != before

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "hpsv3",
                f"no reward 'hpsv3'. Known are {', '.join(REWARDS)}; your own is named as `hpsv3=module:attribute`",
            ),
            ("hps-v2", "'hps-v2' cannot name a column"),
            ("=x:y", "'' cannot name a column"),
            ("hpsv2=./nowhere", "there is no folder ./nowhere"),
            ("hpsv2=nowhere", "there is no folder nowhere"),
            ("mine=./nowhere.py:x", "there is no file ./nowhere.py"),
            ("mine=./nowhere:x", "'./nowhere' is neither a file that ends in .py nor a module"),
            ("mine=http://", "a served reward is named like mine=http://host:8000"),
            ("mine=http://host:port", "a served reward is named like"),
            ("mine=http://host:99999", "a served reward is named like"),
            ("mine=http://host:1/?x=1", "a served reward is named like"),
            ("mine=https://me:secret@host:8000", "Reward 'mine': its URL must not carry a user name or password"),
            ("mine=https://me:secret@host:99999", "Reward 'mine': its URL must not carry a user name or password"),
            ("mine=http://me:secret@[host", "Reward 'mine': its URL must not carry a user name or password"),
        ],
    )
    def test_wrong_names(self, text, message):
        with pytest.raises(UsageError, match=message) as error:
            RewardSpec.parse(text)
        assert "secret" not in str(error.value)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("mine=no_such_module:x", "there is no module no_such_module"),
            ("mine=math:x", "math has no attribute 'x'"),
            ("mine=math:pi", "pi must be a function or a class, got float"),
        ],
    )
    def test_wrong_callables(self, text, message):
        with pytest.raises(UsageError, match=message):
            RewardSpec.parse(text).load()

    def test_repeated_names(self):
        with pytest.raises(UsageError, match="'hpsv2' is named twice"):
            parse_rewards(["hpsv2", "hpsv2=a/b"])
