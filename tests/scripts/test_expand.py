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


import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import yaml

from craft_trl.candidates.groups import load_groups
from craft_trl.cli.main import main
from craft_trl.prompts.benchmarks import BENCHMARKS
from craft_trl.scripts.expand import make_parser

from ..chat_server import ChatServer
from ..processes import Program


RUN = Path("runs/tiny")


def answer(prompt: str) -> str:
    return json.dumps({"variants": [f"{prompt}, high quality", f"{prompt}, sharp"]})


@pytest.fixture
def recipe(recipes, monkeypatch):
    """A function that writes a recipe whose expander is a server."""
    monkeypatch.setenv("MY_KEY", "sk-secret")

    def write(server, **changes):
        settings = {
            "templates": "DELETE",
            "expander": "endpoint",
            "expander_model": "test",
            "expander_base_url": server.url,
            "expander_api_key_env": "MY_KEY",
            "expander_prices": [0.4, 1.2],
            "num_prompts": 12,
        }
        return str(recipes("candidates", **{**settings, **changes}))

    return write


class TestEndpoint:
    def test_the_stage(self, recipe, capsys):
        lost = []

        def behave(number, prompt, body):
            if not lost or prompt == lost[0]:
                lost[:] = [prompt]
                return "I would rather not."
            return answer(prompt)

        with ChatServer(behave) as server:
            path = recipe(server, expander_concurrency=1)
            assert main(["expand", "--config", path]) == 0
            out = capsys.readouterr().out
            # 11 answers that were good and 4 to the prompt that failed, 500 + 100 tokens each
            said = "11 prompts with 2 variants each, 1 without, see failures.jsonl, from 15 answers of 7,500 + 1,500 tokens "
            assert said + "for 0.00 (not taken: 4 format) in runs/tiny/prompts" in out
            assert main(["expand", "--config", path]) == 0 and "done before: 11 prompts" in capsys.readouterr().out
            assert len(server.requests) == 15

            groups = load_groups(RUN / "prompts" / "groups.jsonl")
            assert len(groups) == 11 and all(len(group.expanded_prompts) == 2 for group in groups)
            # Failing does not shift the noise of those after it.
            assert [group.seeds[0] for group in groups] == [group.group_id for group in groups]
            failure = json.loads((RUN / "prompts" / "failures.jsonl").read_text())
            assert failure == {"prompt": lost[0], "faults": ["format: no JSON in the answer"] * 4}
            summary = json.loads((RUN / "prompts" / "stage.json").read_text())["summary"]
            assert summary["cost"] == 0.0048 and summary["source"]["read"] == 2000

            # More prompts: only the new ones are asked for. Another temperature: all.
            assert main(["expand", "--config", path, "--num_prompts", "14"]) == 0 and len(server.requests) == 17
            assert main(["expand", "--config", path, "--expander_temperature", "1.0"]) == 0
            assert len(server.requests) == 17 + 15
        written = b"".join(file.read_bytes() for file in RUN.rglob("*") if file.is_file())
        assert b"sk-secret" not in written + capsys.readouterr().out.encode()

    def test_nothing_comes_of_it(self, recipe, capsys):
        with ChatServer(lambda number, prompt, body: "no") as server:
            assert main(["expand", "--config", recipe(server, num_prompts=2)]) == 1
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.startswith("craft: No prompt could be expanded. The first, '") and "format: no JSON" in err

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"expander_model": "DELETE"}, "expander_model is missing"),
            ({"expander_temperature": "hot"}, "expander_temperature must be a number, got 'hot'"),
            ({"expander_api_key_env": "NO_SUCH_KEY"}, "put it into the environment variable NO_SUCH_KEY"),
            ({"templates": ["{prompt}, sharp"]}, "templates is read by expander: templates, but expander is endpoint"),
            ({"expander": "templates"}, "templates is missing"),
            ({"exclude_prompts": ["parti"]}, "no benchmark or file 'parti'. Did you mean partiprompts"),
            ({"near_duplicate_threshold": 2}, "near_duplicate_threshold must be above 0 and at most 1, got 2"),
        ],
    )
    def test_mistakes(self, recipe, capsys, changes, message):
        with ChatServer() as server:
            assert main(["expand", "--config", recipe(server, **changes)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("craft: error: ") and err.count("\n") == 1 and message in err, err
        assert not server.requests and not RUN.exists()

    def test_killed_and_interrupted(self, recipe):
        halt = [4]
        with ChatServer(lambda number, prompt, body: "hang" if number >= halt[0] else answer(prompt)) as server:
            path = recipe(server, expander_concurrency=2)
            for kill, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
                program = Program(main, "expand", "--config", path)
                while len(server.requests) < halt[0] + 2:  # two wait for their answers
                    assert program.is_alive(), program.output
                    time.sleep(0.01)
                os.kill(program.pid, kill)
                output = program.finish(code)
                halt[0] += 2 + 4
            assert output.endswith("craft: stopped. Run the same command again to go on from here.\n")
            assert "Traceback" not in output
            halt[0] = 1000
            assert main(["expand", "--config", path]) == 0
            assert len(server.requests) == 12 + 2 + 2  # no answer that had come is asked for again
            ended = [(RUN / "prompts" / name).read_bytes() for name in ("groups.jsonl", "stage.json")]
            assert main(["expand", "--config", path, "--output_dir", "runs/whole"]) == 0
            assert ended == [Path("runs/whole/prompts", name).read_bytes() for name in ("groups.jsonl", "stage.json")]


def test_an_answer_that_cannot_be_read_stops_no_run(recipe, capsys):
    """Whatever a server sends once, the next run with a healthy one goes on."""
    odd = {"content": [{"type": "image_url", "image_url": "x"}]}, {"content": "a red apple \ud83c"}, {"content": 3}
    with ChatServer(
        lambda n, prompt, body: (200, {}, json.dumps({"choices": [{"message": odd[n % 3]}]}).encode())
    ) as server:
        path = recipe(server, num_prompts=2, expander_max_retries=0, expander_max_attempts=2, expander_concurrency=1)
        assert main(["expand", "--config", path]) in (1, 2)
        assert "Traceback" not in capsys.readouterr().err
        server.behave = lambda number, prompt, body: answer(prompt)
        assert main(["expand", "--config", path]) == 0
    assert len(load_groups(RUN / "prompts" / "groups.jsonl")) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "p.jsonl",
            b'{"prompt": "a red apple \\ud83c"}',
            "p.jsonl, line 1: not JSON (half of a surrogate pair, U+D83C).",
        ),
        ("p.txt", b"a fox\nb\0\n", "p.txt, line 2: a NUL character"),
        (
            "p.csv",
            b"prompt;style\na fox;x\n",
            "p.csv, line 1: no column 'prompt'. Its columns are separated by semicolons",
        ),
        (
            "p.json",
            b'{"prompt": "a"}\n{"prompt": "b"}\n',
            "p.json, line 2: not JSON (Extra data). If each line holds an",
        ),
    ],
)
def test_prompts_that_are_no_text(recipes, capsys, name, content, message):
    Path(name).write_bytes(content)
    assert main(["expand", "--config", str(recipes("candidates", num_prompts="DELETE")), "--prompts", name]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"craft: error: {message}") and err.count("\n") == 1, err


def test_in_the_home_folder(recipes, monkeypatch, tmp_path):
    """Also with a mark at the beginning, and separators of lines that end no prompt."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "p.TXT").write_bytes("\ufeffa red apple on\u2028a table\r\na green frog\r\n".encode())
    path = recipes("candidates", prompts="~/p.TXT", num_prompts="DELETE", output_dir="~/run")
    assert main(["expand", "--config", str(path)]) == 0
    groups = load_groups(tmp_path / "home" / "run" / "prompts" / "groups.jsonl")
    assert [group.prompt for group in groups] == ["a red apple on a table", "a green frog"] and not Path("~").exists()


def test_what_was_left_out_is_told_and_kept(recipes, capsys, tiny):
    benchmark = str(tiny / "prompts" / "tiny-hpd-train.jsonl")
    Path("some.txt").write_text("".join(json.loads(line)["prompt"] + "\n" for line in open(benchmark).readlines()[:5]))
    path = str(recipes("candidates", num_prompts=3, exclude_prompts=["some.txt"]))
    assert main(["expand", "--config", path]) == 0
    assert "3 prompts (of 2000 read; left out: 5 some.txt) with 2 variants each" in capsys.readouterr().out
    source = json.loads((RUN / "prompts" / "stage.json").read_text())["summary"]["source"]
    assert source == {"read": 2000, "repeated": 0, "excluded": {"some.txt": 5}, "left": 1995}


def test_recipes_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "source" / "prompts.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)]
    assert {block.get("expander", "templates") for block in blocks} == {"templates", "endpoint", "transformers"}
    for block in blocks:
        rest = {"prompts": "p.txt", "model_name_or_path": "org/model", "output_dir": "runs/x"}
        rest.update({} if "expander" in block else {"templates": ["{prompt}, sharp"]})
        Path("recipe.yaml").write_text(yaml.safe_dump({**rest, **block}))
        (config,) = make_parser().parse_args_and_config(["--config", "recipe.yaml"])
        assert all(getattr(config, key) == value for key, value in block.items())
        assert set(config.exclude_prompts) <= set(BENCHMARKS)
