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


"""The reward `ocr`: what a prompt asks for in quotes, against what rapidocr reads in pictures that Pillow draws."""

import importlib.metadata
import json
import subprocess
import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw, ImageFont

from craft_trl import score
from craft_trl.candidates.filter_config import FilterConfig
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.candidates.rejection import needed
from craft_trl.cli.main import main
from craft_trl.conditions import compared_on, describe, quoted_texts
from craft_trl.errors import UsageError
from craft_trl.evaluation.provenance import describe_scorer
from craft_trl.filtering.dataset import build_pairs
from craft_trl.filtering.filter import explain_nothing, filter_candidates
from craft_trl.rewards import RewardSpec, check_asked
from craft_trl.rewards.config import ScoringConfig
from craft_trl.rewards.ocr import OCR, FlowGRPO, distance, normalise
from craft_trl.rewards.remote import RemoteReward
from craft_trl.rewards.server import make_server


@pytest.fixture(scope="module")
def ocr():
    return RewardSpec.parse("ocr").load()


def picture(*lines, size=(320, 128), mode="RGB"):
    image = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=36)
    for number, line in enumerate(lines):
        draw.text((12, 12 + 52 * number), line, "black", font)
    return image.convert(mode)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign that says "OPEN"', ["OPEN"]),
        ('"Hello World" above "A1" and "B2"', ["Hello World", "A1", "B2"]),
        ("a mug with “good morning” and „Käse“ and «Thé»", ["good morning", "Käse", "Thé"]),
        ('写着"你好"的牌子、「東京」と『駅』', ["你好", "東京", "駅"]),
        ("the fox's den, the cats' house", []),
        ('a 12" pizza beside a 5" fork and a board "MENU"', ["MENU"]),
        ('an empty "" and "…" and " "', []),
        ('one that is not closed: "OPEN', []),
        ("a fox", []),
    ],
)
def test_what_is_asked_for(prompt, texts):
    assert quoted_texts(prompt) == texts


class TestComparison:
    @pytest.mark.parametrize(
        ("text", "read", "expected", "flow_grpo"),
        [
            ("Hello World", ["Hello World"], 1, 1),
            ("Hello World", ["hello wrld"], 0.9, 0.9),
            ("Hello World", [], 0, 0),
            ("Hello World", ["say Hello", "World now"], 1, 1),
            ("Hi", ["x" * 24], 0, 0),
            ("a", ["A cat"], 1, 1),
            ("Hello World", ["WORLD", "HELLO"], 0.5, 0.2),
            ("OPEN", ["OPEM 24 HOURS"], 0.75, 0),
            ("It’s 5 o’clock", ["It's 5 O'CLOCK"], 1, 1 - 2 / 12),
            ("E=mc²", ["E=mc2"], 1, 0.8),
        ],
    )
    def test_scores(self, text, read, expected, flow_grpo):
        assert OCR().compare([text], read) == pytest.approx(expected)
        assert FlowGRPO().compare([text], read) == pytest.approx(flow_grpo)

    def test_several_texts_are_averaged(self):
        assert OCR().compare(["OPEN", "Hi"], ["opem"]) == pytest.approx((0.75 + 0) / 2)
        assert FlowGRPO().compare(["OPEN", "Hi"], ["open"]) == 1  # the first alone

    def test_distances(self):
        assert distance("kitten", "sitting") == 3 and distance("", "abc") == 3 and distance("abc", "") == 3
        assert distance("kitten", "two sittens", somewhere=True) == 1 and distance("abc", "", somewhere=True) == 3
        assert normalise("Ｇrüße\n “A” – ½") == 'grüsse"a"-1⁄2'

    def test_rules(self):
        with pytest.raises(UsageError, match="rule must be somewhere or flow_grpo, got 'fast'"):
            OCR("fast")


class TestReading:
    def test_pictures(self, ocr):
        images = [picture("OPEN"), picture("Hello", "World"), picture("CLOSED"), picture(), picture("Menu", mode="P")]
        prompts = ['a door, "OPEN"', '"Hello World"', 'a door, "OPEN"', '"OPEN"', "ein Schild „MENU“"]
        assert ocr.read(images[1]) == ["Hello", "World"] and ocr.read(images[3]) == []
        scores = score({"ocr": ocr}, images, prompts)["ocr"]
        assert scores.dtype == np.float32 and scores.tolist() == [1, 1, 0.5, 0, 1]
        # Nothing beside an image changes its score; a picture in another mode is the same one.
        assert [
            ocr([image], [prompt]).item() for image, prompt in zip(images, prompts, strict=True)
        ] == scores.tolist()
        assert ocr([picture("OPEN", mode="L"), picture("OPEN", mode="RGBA")], ['"open"'] * 2).tolist() == [1, 1]

    def test_where_nothing_is_asked_nothing_is_read(self):
        reward = OCR()
        assert reward([picture("OPEN")] * 2, ["a fox", "the fox's den"]).tolist() == [1, 1]
        assert "reader" not in vars(reward)

    def test_colours_are_not_swapped(self, ocr):
        """Red on blue is read in an image; taken for BGR, a reader would see other pixels."""
        image = Image.new("RGB", (320, 96), (0, 0, 200))
        ImageDraw.Draw(image).text((12, 12), "SALE", (220, 30, 30), ImageFont.load_default(size=48))
        seen = []
        reader = ocr.reader

        class Seeing:
            def __call__(self, content):
                seen.append(content)
                return reader(content)

        watching = OCR()
        watching.reader = Seeing()
        assert watching([image], ['"SALE"']).item() == 1
        assert isinstance(seen[0], Image.Image) and seen[0].getpixel((0, 0)) == (0, 0, 200)

    def test_served(self, ocr):
        about = {"reward": "ocr", "fingerprint": RewardSpec.parse("ocr").fingerprint(), "higher_is_better": True}
        server = make_server(lambda images, prompts: ocr(images, prompts).tolist(), about, "127.0.0.1", 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with server:
            remote = RemoteReward(f"http://127.0.0.1:{server.server_address[1]}")
            assert remote([picture("OPEN"), picture("OPEN")], ['"open"', '"shut"']).tolist() == [1, 0.0]
            server.shutdown()


class TestNaming:
    def test_it_is_known_by_its_version(self):
        spec = RewardSpec.parse("ocr")
        assert spec.fingerprint() == f"rapidocr {importlib.metadata.version('rapidocr')}" and not spec.weighted
        assert describe_scorer(spec) == {"id": spec.fingerprint(), "sha256": None}
        assert RewardSpec.parse("text=craft_trl.rewards.ocr:FlowGRPO").load().rule == "flow_grpo"
        # It has no precision to choose.
        config = ScoringConfig(reward_dtype="bfloat16")
        assert config.fingerprint_of(spec) == spec.fingerprint()
        with pytest.raises(UsageError, match="reward_dtype is bfloat16, but ocr choose their precision themselves"):
            config.check_scoring([spec])

    def test_mistakes(self, tmp_path, capsys, monkeypatch):
        with pytest.raises(UsageError, match="Reward 'ocr=org/model': ocr has no weights to choose: name it ocr"):
            RewardSpec.parse("ocr=org/model")
        assert main(["serve-reward", "ocr", "--dtype", "bfloat16"]) == 2
        assert "dtype bfloat16: ocr is in the precision that it chooses itself" in capsys.readouterr().err
        check_asked([RewardSpec.parse("ocr")], ["a fox", '"A"'], "p.txt")
        Image.new("RGB", (64, 64)).save("a.png")
        words = ["score", "a.png", "--prompt", "a fox", "--rewards", "ocr", "--output_dir", "o"]
        assert main(words) == 2
        assert "and no prompt of a.png does: leave it out" in capsys.readouterr().err

        def missing(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr("craft_trl.rewards.ocr.version", missing)
        assert main(["score", "a.png", "--prompt", '"A"', *words[4:]]) == 2
        said = capsys.readouterr().err
        assert said == 'craft: error: The reward ocr needs rapidocr: pip install "craft_trl[ocr]".\n'

    def test_without_what_runs_its_models(self, monkeypatch):
        for name in [name for name in sys.modules if name.partition(".")[0] in ("rapidocr", "onnxruntime")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "rapidocr", None)
        with pytest.raises(UsageError, match=r'The reward ocr needs rapidocr: pip install "craft_trl\[ocr\]"'):
            OCR()([picture("A")], ['"A"'])

    def test_it_costs_nothing_where_it_is_not_used(self):
        code = (
            "import sys; from craft_trl.rewards import RewardSpec; s = RewardSpec.parse('ocr'); s.fingerprint(); s.load(); "
            "print([m for m in ('rapidocr', 'onnxruntime', 'cv2') if m in sys.modules])"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_craft_score(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, text in (("a", "OPEN"), ("b", "SHUT")):
        picture(text).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text('a door with "OPEN" on it')
    assert main(["score", str(folder), "--rewards", "ocr", "--output_dir", str(tmp_path / "s")]) == 0
    assert pq.read_table(tmp_path / "s" / "scores.parquet")["ocr"].to_pylist() == [1, 0]
    record = json.loads((tmp_path / "s" / "stage.json").read_text())
    assert record["settings"]["rewards"]["ocr"].startswith("rapidocr 3.")


class TestFilter:
    """A prompt without quotes is filtered by the other rewards, one with quotes by `ocr` too."""

    PROMPTS = ["a fox", 'a door, "OPEN"', 'a wall, "SALE"']
    HPSV2 = {"a fox": [1, 2, 3], 'a door, "OPEN"': [1, 2, 3], 'a wall, "SALE"': [1, 2, 3]}
    TEXT = {"a fox": [1, 1, 1], 'a door, "OPEN"': [0.5, 0.75, 1], 'a wall, "SALE"': [0.5, 0.5, 1]}

    @pytest.fixture
    def filled(self, tmp_path):
        groups = make_groups(self.PROMPTS, [[f"{prompt}, sharp", f"{prompt}, clean"] for prompt in self.PROMPTS])
        pool = CandidatePool(tmp_path / "pool", ["hpsv2", "ocr"])
        for group in groups:
            scores = {"hpsv2": np.array(self.HPSV2[group.prompt]), "ocr": np.array(self.TEXT[group.prompt])}
            pool.append(group.keys, [Image.new("RGB", (8, 8))] * 3, scores)
        return groups, pool

    def test_rule(self):
        assert compared_on("a fox", ["hpsv2", "ocr"]) == ["hpsv2"]
        assert compared_on('"A"', ["hpsv2", "ocr"]) == ["hpsv2", "ocr"]
        assert compared_on("a fox", ["ocr"]) == ["ocr"]  # by which nothing beats anything there
        assert describe(["hpsv2", "ocr"]).endswith("on hpsv2, ocr (where the prompt asks for text)")

    @pytest.mark.parametrize("level", ["group", "image"])
    def test_what_is_kept(self, filled, level):
        rows = filter_candidates(*filled, FilterConfig(filter_level=level))
        kept = [(row["prompt"], row["variant"]) for row in rows if row["keep"]]
        one = [('a wall, "SALE"', 2)] if level == "image" else []
        assert kept == [("a fox", 1), ("a fox", 2), ('a door, "OPEN"', 1), ('a door, "OPEN"', 2), *one]
        reasons = {(row["prompt"], row["variant"]): row["drop_reason"] for row in rows}
        assert reasons['a wall, "SALE"', 1] == "ocr"
        # In a group where all have the same score, it moves no advantage.
        alone = filter_candidates(*filled, FilterConfig(filter_level=level, reward_weights=["ocr=0"]))
        assert [row["advantage"] for row in rows[:3]] == pytest.approx(
            [row["advantage"] for row in alone[:3]], abs=1e-3
        )

    def test_alone(self, filled):
        groups, pool = filled
        config = FilterConfig(filter_rewards=["ocr"])
        rows = filter_candidates(groups, pool, config)
        assert {row["prompt"] for row in rows if row["keep"]} == {'a door, "OPEN"'}
        config = FilterConfig(filter_rewards=["ocr"], filter_level="image")
        with pytest.raises(UsageError, match="no image for"):
            filter_candidates(make_groups(["none"], [["a", "b"]]), pool, config)
        assert "2 variants of 1 prompts, ocr 0 beat their original" in explain_nothing(groups[:1], pool, config)

    def test_a_limit_is_a_limit(self, filled):
        """Of what nobody asked for, all is there."""
        rows = filter_candidates(*filled, FilterConfig(filter_rewards=["hpsv2", "ocr>0.6"]))
        assert {row["prompt"] for row in rows if row["keep"]} == {"a fox", 'a door, "OPEN"'}

    def test_early_rejection_is_of_one_mind_with_it(self, filled, tmp_path):
        groups, pool = filled
        half = CandidatePool(tmp_path / "half", ["hpsv2", "ocr"])
        for group in groups:
            values = np.array([pool.scores[key] for key in group.keys[:2]])
            scores = dict(zip(pool.rewards, values.T, strict=True))
            half.append(group.keys[:2], [Image.new("RGB", (8, 8))] * 2, scores)
        left = [needed(half, group, ["hpsv2", "ocr"]) for group in groups]
        assert left == [[groups[0].keys[2]], [groups[1].keys[2]], []]

    def test_pairs(self, filled):
        pairs = build_pairs(*filled)
        assert pairs["prompt"][:] == self.PROMPTS
        assert build_pairs(*filled, FilterConfig(filter_rewards=["ocr"]))["prompt"][:] == self.PROMPTS[1:]


def test_recipes_whose_prompts_ask_for_nothing(recipes, capsys):
    said = "ocr reads the text that a prompt asks for in quotes, and no prompt of"
    assert main(["expand", "--config", str(recipes("candidates", rewards=["ocr"]))]) == 2
    assert said in capsys.readouterr().err
    path = recipes("evaluate", held_out_rewards=["ocr"], models=["base=./pipeline"], run_dir="DELETE")
    assert main(["evaluate", "--config", str(path)]) == 2
    assert said in capsys.readouterr().err
