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

"""`craft evaluate` with judges that are asked: benchmarks by their own prompts, notes, and what it cost."""

import json

import pytest

from craft_trl.candidates.turns import load_reward
from craft_trl.cli.main import main as craft
from craft_trl.errors import UsageError
from craft_trl.evaluation.provenance import bill, bill_in_words
from craft_trl.evaluation.report import format_table
from craft_trl.hub.cards import model_card
from craft_trl.planning.questions import line
from craft_trl.rewards import RewardSpec
from craft_trl.scripts.evaluate import main
from craft_trl.scripts.score import ScoreConfig

from ..chat_server import VisionServer
from .test_evaluation import make_config


ROWS = [
    {
        "prompt": f"{number} red {what}",
        "atom_count": 3 + i % 2,
        "vqa_list": [[f"How many {what} are there?", "three"], [f"Are the {what} red?", "Yes"]],
        "questions": [
            {"id": 1, "parents": [0], "tuple": "entity - whole", "question": f"Are there {what}?"},
            {"id": 2, "parents": [1], "tuple": "attribute - color", "question": "Are they red?"},
        ],
    }
    for i, (number, what) in enumerate([("three", "apples"), ("two", "cars"), ("three", "cats"), ("two", "cakes")])
]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def judges(server, tmp_path, options=""):
    names = ("geneval2_am", "geneval2_gm", "dpg", "vqascore")
    return [f"{name}=vlm:judge@{server.url}?cache={tmp_path}/answers.jsonl{options}" for name in names]


def test_a_comparison(tiny, tmp_path, prompts, capsys):
    with VisionServer() as server:
        settings = {
            "batch_size": 2,
            "num_inference_steps": 1,
            "prompts": prompts, "rewards": [], "num_bootstrap": 50, "group_by": "atom_count",
            "held_out_rewards": judges(server, tmp_path, "&prices=1,2"),
        }  # fmt: skip
        main(make_config(tiny, output_dir=str(tmp_path / "a"), **settings))
        out = capsys.readouterr().out
        # Two models that are the same draw the same images: 4 images, 2 + 2 + 1 questions, and 8 to try the four judges.
        assert len(server.requests) == 4 * 5 + 8
        results = json.loads((tmp_path / "a" / "results.json").read_text())
        asked = len(server.requests)
        main(make_config(tiny, output_dir=str(tmp_path / "a"), **settings))  # done before
        main(make_config(tiny, output_dir=str(tmp_path / "b"), **settings))  # drawn again, and asked nothing again
        assert len(server.requests) == asked + 2 * 8
        port = server.port
    base = {row["metric"]: row for row in results if row["model"] == "base" and row["part"] is None}
    assert 0 < base["geneval2_gm"]["mean"] <= base["geneval2_am"]["mean"] < 1
    assert base["dpg"]["mean"] in (0, 0.25, 0.5, 0.75, 1)
    assert {row["part"] for row in results} == {None, "3", "4"}
    note = base["geneval2_gm"]["scorer"]["note"]
    assert note.startswith(f"judge at 127.0.0.1:{port}, template GenEval 2, Soft-TIFA GM (")
    assert f"geneval2_gm: {note}" in format_table(results) and f"geneval2_gm: {note}" in out
    assert (
        base["dpg"]["scorer"]["id"].startswith("vlm: judge, DPG-Bench by a VLM ")
        and base["dpg"]["scorer"]["sha256"] is None
    )
    assert note in (tmp_path / "a" / "report.html").read_text()
    # Of each image 500 tokens of a question and 100 of an answer; of GenEval 2 and DPG-Bench there are two questions.
    summary = json.loads((tmp_path / "a" / "stage.json").read_text())["summary"]
    assert summary["asked"]["dpg"] == {
        "images": 8, "answers": 16, "prompt_tokens": 8000, "completion_tokens": 1600, "cost": 0.0112,
    }  # fmt: skip
    assert "dpg: about 16 answers about 8 images, of 8,000 + 1,600 tokens, for 0.01" in out


def test_one_judge_at_a_time(tiny, tmp_path, prompts):
    """As on a GPU that holds no two of them: the same results, from the same answers."""
    with VisionServer() as server:
        settings = {"prompts": prompts, "num_bootstrap": 50, "num_inference_steps": 1}
        settings |= {"held_out_rewards": judges(server, tmp_path)}
        for device, folder in (("cpu", "a"), ("offload", "b")):
            main(make_config(tiny, reward_device=device, output_dir=str(tmp_path / folder), **settings))
    one, other = ((tmp_path / folder / "results.json").read_bytes() for folder in "ab")
    assert one == other


def test_prompts_of_another_kind(tiny, tmp_path):
    with VisionServer() as server:
        for judge in judges(server, tmp_path)[:3]:
            name = judge.partition("=")[0]
            with pytest.raises(UsageError, match=f"{name} judges prompts of its own format only.*prompts: {name[:3]}"):
                main(make_config(tiny, held_out_rewards=[judge], output_dir=str(tmp_path / "out")))
        assert not server.requests
        with pytest.raises(UsageError, match="dpg needs the prompts of DPG-Bench by a VLM with their metadata"):
            ScoreConfig(rewards=judges(server, tmp_path)[2:], output_dir="out")


def test_a_judge_that_fails_is_a_line(tiny, tmp_path, prompts, capsys):
    with VisionServer(lambda number, question, body: "hm" if "cats" in question else None) as server:
        judge = judges(server, tmp_path)[1]
        arguments = [
            "evaluate",
            "--models",
            f"base={tiny}/pipeline",
            "--prompts",
            prompts,
            "--held_out_rewards",
            judge,
        ]
        arguments += [
            "--num_inference_steps",
            "1",
            "--height",
            "64",
            "--width",
            "64",
            "--output_dir",
            str(tmp_path / "out"),
        ]
        assert craft(arguments) == 2
    err = capsys.readouterr().err
    assert "craft: error: geneval2_gm: The endpoint of judge" in err and "no log-probabilities" in err
    assert "Traceback" not in err
    kept = len((tmp_path / "answers.jsonl").read_text().splitlines())
    with VisionServer(port=server.port) as server:
        assert craft(arguments) == 0
        assert len(server.questions()) == 8 - kept


def test_on_the_card():
    row = {
        "model": "craft", "metric": "dpg", "role": "held_out", "higher_is_better": True, "part": None, "n": 4, "mean": 0.5,
        "median": 0.5, "delta": 0.1, "ci_low": 0.0, "ci_high": 0.2, "win_rate": 0.5, "p_value": 0.5,
        "settings": {"prompts": {"name": "dpg", "hash": "0" * 64}}, "scorer": {"id": "vlm: judge", "sha256": None, "note": "judge at host"},
    }  # fmt: skip
    spec = RewardSpec.parse("dpg=vlm:judge@http://host/v1?prices=1,2")
    usage = {"images": 2, "answers": 4, "prompt_tokens": 2000, "completion_tokens": 400}
    asked = bill(spec, usage, 8)
    assert bill_in_words("dpg", asked) == "dpg: about 16 answers about 8 images, of 8,000 + 1,600 tokens, for 0.01"
    facts = {
        "base_model": "org/base", "dataset": None, "tags": [], "lora": None, "guarded": False, "rows": 1, "trainer": "CRAFT",
        "settings": {}, "versions": {}, "pipeline": "StableDiffusionXLPipeline",
    }  # fmt: skip
    evaluation = {
        "model": "craft", "base": "base", "rows": [row | {"model": "base", "delta": None}, row], "verdict": "It is.",
        "images": None, "prompts": [], "asked": {"dpg": asked},
    }  # fmt: skip
    card = model_card(facts, "org/model", evaluation=evaluation).content
    assert "`dpg`: judge at host. It gave about 16\nanswers of 8,000 + 1,600 tokens, for 0.01." in card
    assert "`dpg`: judge at host.\n" in model_card(facts, "org/model", evaluation=evaluation | {"asked": {}}).content


def test_in_the_plan(tmp_path):
    rows = {row["prompt"]: row for row in ROWS}
    spec = RewardSpec.parse("geneval2_am=vlm:judge@http://host:8000/v1?prices=0.5,2")
    assert line(spec, "evaluate", 100, (1024, 1024), rows) == (
        "evaluate: geneval2_am asks judge at host:8000 200 questions and 2 to try it, of about 0.217 M tokens (a token for 32 x 32 "
        "pixels, as Qwen3-VL reads) and answers of at most 0.0002 M, for at most 0.11. Their time is not counted."
    )
    assert "about 100 images; its prompts say what." in line(spec, "generate", 100, (1024, 1024))
    (tmp_path / "q.txt").write_text("Is it good?\nIs it red?\n")
    spec = RewardSpec.parse(f"mine=vlm:judge@http://host:8000/v1?questions={tmp_path}/q.txt&reading=text")
    said = line(spec, "generate", 1000, (512, 512))
    assert "generate: mine asks judge at host:8000 10,000 questions" in said and "at most 5.12 M." in said


def test_loaded_once(tmp_path):
    """The fingerprint and the scores are of one judge, which is tried once."""
    from craft_trl.rewards.config import ScoringConfig

    with VisionServer() as server:
        spec = RewardSpec.parse(judges(server, tmp_path)[3])
        assert spec.fingerprint().startswith("vlm: judge, VQAScore ")
        assert load_reward(spec, ScoringConfig(), "cpu").note and len(server.requests) == 2
