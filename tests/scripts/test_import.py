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


"""`craft import`: folders, pairs, parquet files and datasets become what `craft train`, `craft dpo` and `craft filter` take."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, load_from_disk
from PIL import Image
from safetensors.torch import load_file

from craft_trl.candidates.groups import load_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main
from craft_trl.rewards import RewardSpec, score

from ..conftest import TINY


def picture(value, size=(64, 64)):
    return Image.new("RGB", size, (value, 255 - value, 7))


def png(value, size=(64, 64)):
    buffer = io.BytesIO()
    picture(value, size).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """A folder with a caption beside one picture, and two in its metadata; a licence, and a card that names it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        picture(50 * number).save(folder / name)
    (folder / "a.txt").write_text("a  fox\n")
    lines = [
        {"file_name": "a.png", "text": "a fox", "rating": 4, "weight": 0.5},
        {"file_name": "b.png", "text": "a car", "rating": 2.5, "weight": 1},
        {"file_name": "c.png", "text": "a fox", "rating": 3, "weight": -1},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Mine\n")
    (folder / "LICENSE.txt").write_text("the text")
    return folder


@pytest.fixture
def sides(tmp_path):
    """Pairs in sd-scripts' layout, in a folder of repeats: two names, captions beside the better ones."""
    for side, add in (("w", 0), ("l", 100)):
        folder = tmp_path / "pairs" / "3_craft" / side
        folder.mkdir(parents=True)
        for number, prompt in enumerate(("a fox", "a car")):
            picture(40 * number + add).save(folder / f"{number}.png")
            if side == "w":
                (folder / f"{number}.caption").write_text(prompt)
    return tmp_path / "pairs"


def craft_import(*words):
    return main(["import", *map(str, words)])


def train(command, dataset, tmp_path, **settings):
    """Two real steps on the tiny model; the weights of the denoiser before and after."""
    recipe = {
        "model_name_or_path": str(TINY / "pipeline"),
        "dataset_name": str(dataset),
        "output_dir": str(tmp_path / "model"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        **settings,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main([command, "--config", str(tmp_path / "recipe.yaml")]) == 0
    name = "unet/diffusion_pytorch_model.safetensors"
    return load_file(TINY / "pipeline" / name), load_file(tmp_path / "model" / name)


def changed(before, after):
    return sum(not (before[name] == after[name].to(before[name].dtype)).all() for name in before)


class TestImages:
    def test_a_training_set(self, pictures, tmp_path, capsys):
        out = tmp_path / "out"
        words = [pictures, "--what", "images", "--score_columns", "rating", "--advantage_column", "weight"]
        assert craft_import(*words, "--output_dir", out) == 0
        assert f"[import] 3 images in {out}, for `craft train --dataset_name {out}`" in capsys.readouterr().out
        rows = load_from_disk(str(out))["train"]
        assert rows["prompt"][:] == ["a fox", "a car", "a fox"] and rows["rating"][:] == [4, 2.5, 3]
        assert rows["advantage"][:] == [0.5, 1, -1] and rows["file"][0] == str(pictures / "a.png")
        assert rows[2]["image"].getpixel((0, 0)) == (100, 155, 7)
        # The files themselves are kept, to the byte, and so are the licence and its text.
        stored = rows.cast_column("image", rows.features["image"].__class__(decode=False))[1]["image"]["bytes"]
        assert stored == (pictures / "b.png").read_bytes()
        card = (out / "README.md").read_text()
        assert card.startswith('---\nlicense: "cc-by-4.0"\n---\n\n# 3 images for training\n')
        assert f"- {pictures}; licence: cc-by-4.0, its text in LICENSE.txt\n" in card
        assert (out / "LICENSE.txt").read_text() == "the text"
        assert craft_import(*words, "--output_dir", out) == 0
        assert "done before" in capsys.readouterr().out
        assert craft_import(*words, "--license", "mine", "--output_dir", out) == 0
        assert "set aside" in capsys.readouterr().out
        assert "Who imported them says: mine." in (out / "README.md").read_text()

    def test_it_is_trained_on(self, pictures, tmp_path):
        """Pictures of two sizes, cut to that of the model."""
        picture(9, (200, 120)).save(pictures / "c.png")
        words = [pictures, "--what", "images", "--height", 64, "--width", 64, "--output_dir", tmp_path / "out"]
        assert craft_import(*words) == 0
        rows = load_from_disk(str(tmp_path / "out"))["train"]
        assert {image.size for image in rows["image"]} == {(64, 64)} and rows["advantage"][:] == [1, 1, 1]
        assert "Scaled and cut to 64x64." in (tmp_path / "out" / "README.md").read_text()
        before, after = train("train", tmp_path / "out", tmp_path)
        assert changed(before, after) > len(before) / 2

    def test_parquet_and_datasets(self, tmp_path, capsys):
        rows = {"picture": [png(0), png(9)], "caption": ["a fox", "a car"], "score": [1, 2]}
        pq.write_table(pa.table(rows), tmp_path / "rows[1].parquet")
        Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
        columns = ["--image_column", "picture", "--prompt_column", "caption", "--what", "images"]
        for source in ("rows[1].parquet", "saved"):
            out = tmp_path / f"out-{source}"
            assert craft_import(tmp_path / source, *columns, "--score_columns", "score", "--output_dir", out) == 0
            train = load_from_disk(str(out))["train"]
            assert train["file"][:] == [f"{tmp_path / source}[{row}]" for row in (0, 1)]
            assert train[1]["image"].getpixel((0, 0)) == (9, 246, 7) and train["score"][:] == [1, 2]
            assert "Under which licence they may be used is not known here" in (out / "README.md").read_text()


class TestPairs:
    def test_folders(self, sides, tmp_path, capsys):
        out = tmp_path / "out"
        assert craft_import(sides, "--what", "pairs", "--output_dir", out) == 0
        assert f"[import] 2 pairs in {out}, for `craft dpo --dataset_name {out}`" in capsys.readouterr().out
        rows = load_from_disk(str(out))["train"]
        assert rows["prompt"][:] == ["a fox", "a car"]
        assert [rows[i]["chosen"].getpixel((0, 0))[0] for i in (0, 1)] == [0, 40]
        assert [rows[i]["rejected"].getpixel((0, 0))[0] for i in (0, 1)] == [100, 140]
        folder = sides / "3_craft"
        words = [folder / "w", "--rejected", folder / "l", "--what", "pairs", "--output_dir", tmp_path / "two"]
        assert craft_import(*words) == 0
        assert load_from_disk(str(tmp_path / "two"))["train"]["prompt"][:] == ["a fox", "a car"]

    def test_they_are_trained_on(self, sides, tmp_path):
        assert craft_import(sides, "--what", "pairs", "--output_dir", tmp_path / "out") == 0
        before, after = train("dpo", tmp_path / "out", tmp_path, beta=100)
        assert changed(before, after) > len(before) / 2

    def test_pick_a_pic(self, tmp_path, capsys):
        rows = {
            "caption": ["one", "two", "tie", "none"],
            "jpg_0": [png(0), png(1), png(2), png(3)],
            "jpg_1": [png(10), png(11), png(12), png(13)],
            "label_0": [1.0, 0.0, 0.5, None],
        }
        pq.write_table(pa.table(rows), tmp_path / "pap.parquet")
        assert craft_import(tmp_path / "pap.parquet", "--what", "pairs", "--output_dir", tmp_path / "out") == 0
        assert "2 pairs, 2 ties left out in" in capsys.readouterr().out
        train = load_from_disk(str(tmp_path / "out"))["train"]
        assert train["prompt"][:] == ["one", "two"]
        assert [row["chosen"].getpixel((0, 0))[0] for row in train] == [0, 11]
        assert [row["rejected"].getpixel((0, 0))[0] for row in train] == [10, 1]
        assert "Left out: 2 ties." in (tmp_path / "out" / "README.md").read_text()

    def test_columns(self, tmp_path):
        rows = {"text": ["one", "two"], "good": [png(0), png(1)], "bad": [png(10), png(11)]}
        pq.write_table(pa.table(rows), tmp_path / "p.parquet")
        columns = ["--prompt_column", "text", "--chosen_column", "good", "--rejected_column", "bad"]
        assert craft_import(tmp_path / "p.parquet", *columns, "--what", "pairs", "--output_dir", tmp_path / "out") == 0
        train = load_from_disk(str(tmp_path / "out"))["train"]
        assert train["prompt"][:] == ["one", "two"] and train[1]["rejected"].getpixel((0, 0))[0] == 11

    @pytest.mark.parametrize(("lower", "better"), [([], 50), (["--lower_is_better", "rating"], 100)])
    def test_of_scored_images(self, pictures, tmp_path, lower, better, capsys):
        (pictures / "a.txt").unlink()
        lines = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text().splitlines()]
        lines[0]["text"] = lines[1]["text"] = lines[2]["text"] = "a fox"
        lines[1]["rating"], lines[2]["rating"] = 5, 1
        (pictures / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        words = [pictures, "--what", "pairs", "--score_columns", "rating", *lower]
        assert craft_import(*words, "--output_dir", tmp_path / "out") == 0
        (pair,) = load_from_disk(str(tmp_path / "out"))["train"]
        assert (pair["chosen"].getpixel((0, 0))[0], pair["rejected"].getpixel((0, 0))[0]) == (better, 150 - better)

    def test_what_was_exported_comes_back(self, sides, tmp_path):
        """`win/` and `lose/` of `craft export-dataset --what pairs`."""
        folder = sides / "3_craft"
        (folder / "w").rename(folder / "win")
        (folder / "l").rename(folder / "lose")
        for number in (0, 1):
            (folder / "lose" / f"{number}.txt").write_text(("a fox", "a car")[number] + "\n")
        assert craft_import(folder, "--what", "pairs", "--output_dir", tmp_path / "out") == 0
        assert load_from_disk(str(tmp_path / "out"))["train"]["prompt"][:] == ["a fox", "a car"]


class TestPool:
    @pytest.fixture
    def rated(self, tmp_path):
        rows = {
            "image": [png(10 * i) for i in range(7)],
            "prompt": ["a fox", "a fox", "a fox", "a car", "a car", "a car", "alone"],
            "text": ["a red fox", "a fox", "a big fox", "a car", "a red car", "a big car", "alone"],
            "human": [2, 1, 3, 2, 3, 1, 0],
            "defects": [0.2, 0.3, 0.1, 0.3, 0.2, 0.1, 0],
        }
        pq.write_table(pa.table(rows), tmp_path / "rated.parquet")
        return tmp_path / "rated.parquet"

    def test_it_is_filtered_and_looked_at(self, rated, tmp_path, capsys):
        out = tmp_path / "run"
        words = [rated, "--what", "pool", "--score_columns", "human", "defects", "--lower_is_better", "defects"]
        words += ["--group_size", 3, "--expanded_prompt_column", "text", "--output_dir", out]
        assert craft_import(*words) == 0
        said = capsys.readouterr().out
        assert f"6 images of a pool, 1 prompts with fewer images left out in {out}" in said
        assert f"for `craft filter --config {out / 'candidates.yaml'}`" in said
        groups = load_groups(out / "prompts" / "groups.jsonl")
        assert [(g.prompt, g.expanded_prompts) for g in groups] == [
            ("a fox", ("a red fox", "a big fox")),
            ("a car", ("a red car", "a big car")),
        ]
        pool = CandidatePool(out / "pool", ["human", "defects"])
        assert pool.lower_is_better == {"defects"} and len(pool) == 6
        np.testing.assert_allclose(pool.scores[groups[0].keys[2]], [3, 0.1], rtol=1e-6)
        assert Image.open(io.BytesIO(next(pool.images([groups[0].keys[0]])))).getpixel((0, 0)) == (10, 245, 7)
        # By the paper's rule only the foxes are kept, which both beat theirs; at the level of images a car too.
        assert main(["filter", "--config", str(out / "candidates.yaml")]) == 0
        kept = load_from_disk(str(out / "dataset"))["train"]
        assert kept["expanded_prompt"][:] == ["a red fox", "a big fox"] and (np.array(kept["advantage"][:]) > -1).all()
        assert main(["sheet", "--config", str(out / "candidates.yaml")]) == 0
        assert "a red fox" in (out / "sheet.html").read_text()
        words = ["--filter_level", "image", "--export_dir", str(tmp_path / "export")]
        assert main(["export-dataset", "--config", str(out / "candidates.yaml"), *words]) == 0
        assert len(list((tmp_path / "export" / "1_craft").glob("*.png"))) == 3
        capsys.readouterr()
        assert main(["push", str(out), "--repo_id", "org/name", "--dry_run", "--what", "dataset"]) == 2
        assert "was imported: put on the Hub as a dataset is what a run has drawn itself" in capsys.readouterr().err
        reward = RewardSpec.parse("human=craft_trl.rewards.imported:given").load()
        with pytest.raises(ValueError, match="Its scores came with the images of `craft import`"):
            score({"human": reward}, [picture(0)], ["a fox"])

    def test_without_texts_the_first_is_the_original(self, rated, tmp_path, capsys):
        words = [rated, "--what", "pool", "--score_columns", "human", "--output_dir", tmp_path / "run"]
        assert craft_import(*words) == 2
        assert "'alone' has 1 images" in capsys.readouterr().err
        assert craft_import(*words, "--group_size", 2) == 0
        groups = load_groups(tmp_path / "run" / "prompts" / "groups.jsonl")
        pool = CandidatePool(tmp_path / "run" / "pool", ["human"])
        assert [[pool.scores[key][0] for key in group.keys] for group in groups] == [[2, 1], [2, 3]]

    def test_scores_of_craft_score(self, pictures, tmp_path):
        """Its table names files, whose pictures are taken."""
        (tmp_path / "reward.py").write_text(
            "def red(images, prompts):\n    return [i.getpixel((0, 0))[0] for i in images]\n"
        )
        lines = [{"file_name": name, "text": "a fox"} for name in ("a.png", "b.png", "c.png")]
        (pictures / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rewards = ["--rewards", f"red={tmp_path / 'reward.py'}:red"]
        assert main(["score", str(pictures), *rewards, "--output_dir", str(tmp_path / "scores")]) == 0
        words = [tmp_path / "scores" / "scores.parquet", "--image_column", "file", "--score_columns", "red"]
        assert craft_import(*words, "--what", "pool", "--output_dir", tmp_path / "run") == 0
        pool = CandidatePool(tmp_path / "run" / "pool", ["red"])
        for key, values in pool.scores.items():
            assert Image.open(io.BytesIO(next(pool.images([key])))).getpixel((0, 0))[0] == values[0]

    def test_killed_in_between(self, rated, tmp_path, monkeypatch):
        """What was copied is not copied again, and the end is that of an undisturbed import."""
        words = [rated, "--what", "pool", "--score_columns", "human", "--group_size", 3, "--output_dir"]
        monkeypatch.setattr("craft_trl.filtering.importing.SHARD", 2)
        append, left = CandidatePool.append, [2]

        def dying(self, keys, images, scores):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            append(self, keys, images, scores)

        with monkeypatch.context() as patch:
            patch.setattr(CandidatePool, "append", dying)
            assert craft_import(*words, tmp_path / "run") == 130
        assert len(CandidatePool(tmp_path / "run" / "pool", ["human"])) == 4
        assert craft_import(*words, tmp_path / "run") == 0
        assert craft_import(*words, tmp_path / "whole") == 0
        one, two = ({f.name: f.read_bytes() for f in (tmp_path / n / "pool").iterdir()} for n in ("run", "whole"))
        assert one == two and len(one) == 4


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (None, [], "what is missing: give it as --what images, --what pairs or --what pool"),
        (None, ["--what", "images", "--height", "64"], "height and width are given together"),
        (None, ["--what", "images", "--height", "60", "--width", "64"], "must be multiples of 8, got 60"),
        (None, ["--what", "images", "--group_size", "3"], "group_size is for --what pool, and what is images"),
        (None, ["--what", "pool"], "score_columns is missing: a pool is filtered by scores"),
        (None, ["--what", "images", "--score_columns", "seed"], "'seed' cannot be the name of a score"),
        (None, ["--what", "pool", "--score_columns", "rating", "--lower_is_better", "x"], "'x' is none of score_columns"),
        (None, ["--what", "images", "--score_columns", "none"], "a.png has no 'none': the metadata of its folder"),
        (lambda f: (f / "metadata.jsonl").unlink(), ["--what", "images"], "b.png has no prompt. Give it one, or one for all"),
        (lambda f: (f / "a.txt").write_text("an ape"), ["--what", "images"], "a.png has two captions, in a.txt and metadata.jsonl"),
        (lambda f: picture(0, (72, 64)).save(f / "b.png"), ["--what", "images"], "b.png has 72x64 and"),
        (lambda f: (f / "b.png").write_bytes(b"no"), ["--what", "images"], "b.png cannot be read"),
        (lambda f: (f / "b.png").write_bytes(b"no"), ["--what", "images", "--height", "64", "--width", "64"], "b.png cannot be read"),
        (None, ["--what", "pairs"], "holds no pairs: they are in chosen/ and rejected/, or win/ and lose/, or w/ and l/"),
        (lambda f: (f / "chosen").mkdir(), ["--what", "pairs"], "chosen has no rejected beside it"),
    ],
)  # fmt: skip
def test_mistakes(pictures, tmp_path, capsys, spoil, words, message):
    if spoil:
        spoil(pictures)
    assert craft_import(pictures, *words, "--output_dir", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err, err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "l" / "1.png").unlink(), "w/1.png has no partner in "),
        (lambda f: (f / "w" / "1.png").unlink(), "l/1.png has no partner in "),
        (lambda f: (f / "l" / "1.txt").write_text("other"), "have two captions, and are to be a pair"),
        (lambda f: (f / "w" / "1.caption").unlink(), "w/1.png has no prompt"),
        (lambda f: picture(0).save(f / "w" / "1.jpg"), "have one name: of which is the pair?"),
    ],
)
def test_mistakes_in_pairs(sides, tmp_path, capsys, spoil, message):
    spoil(sides / "3_craft")
    assert craft_import(sides, "--what", "pairs", "--output_dir", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err, err
    assert not (tmp_path / "out").exists()


def test_mistakes_in_datasets(tmp_path, capsys):
    rows = {"image": [png(0), png(8)], "prompt": ["a", " "], "score": [1, float("nan")]}
    pq.write_table(pa.table(rows), tmp_path / "r.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    source = tmp_path / "r.parquet"
    for words, message in (
        ([source, "--what", "images"], "r.parquet[1] has no prompt"),
        ([source, "--what", "images", "--prompt_column", "text"], "has no column 'text'; it has image, prompt, score"),
        (
            [source, "--what", "pairs"],
            "has no column 'chosen'; it has image, prompt, score. Name it with --chosen_column",
        ),
        ([source, "--what", "images", "--prompt", "x", "--score_columns", "score"], "has no prompt"),
        ([tmp_path / "bad.parquet", "--what", "images"], "bad.parquet cannot be read"),
        (["nowhere.parquet", "--what", "images"], "nowhere.parquet: there is no such file or folder"),
    ):
        assert craft_import(*words, "--output_dir", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    rows["prompt"][1] = "b"
    pq.write_table(pa.table(rows), source)
    assert craft_import(source, "--what", "images", "--score_columns", "score", "--output_dir", tmp_path / "out") == 2
    assert "r.parquet[1]: score is nan; it must be a finite number" in capsys.readouterr().err
