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

"""
The files for clusters are what Slurm, SkyPilot and Hugging Face Jobs read, and the commands in them are what our parsers take: the
files are run as they stand, with programs on the PATH that write down how they were called.
"""

import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from craft_trl.candidates.executors import ExecutorArguments

from ..conftest import ROOT


EXAMPLES = ROOT / "examples"
SLURM, SKYPILOT, JOBS = (sorted(EXAMPLES.glob(name)) for name in ("slurm/*.slurm", "skypilot/*.yaml", "jobs/*.py"))
NODE = {
    "SLURM_NNODES": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node-[1-2]",
    "SLURM_ARRAY_TASK_ID": "3",
    "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
}  # fmt: skip
PROGRAM = """#!{python}
import json, sys
with open("called.jsonl", "a") as file:
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like a checkout, with programs that only write down how they were called."""
    for name in ("recipes", "accelerate_configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    for name in ("craft", "accelerate"):
        (tmp_path / "bin" / name).write_text(PROGRAM.format(python=sys.executable, name=name))
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/bash\nprintf 'node-1\\nnode-2\\n'\n")
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755)
    (tmp_path / "bin" / "srun").symlink_to(ROOT / "tests" / "slurm" / "srun")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, value in NODE.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def called(folder) -> list[list[str]]:
    return [yaml.safe_load(line) for line in (folder / "called.jsonl").read_text().splitlines()]


def parse(program: str, *words: str) -> tuple:
    """What a command line says, by the parser of its program; of `accelerate launch` by both."""
    launch = None
    if program == "accelerate":
        assert words[0] == "launch"
        launch = launch_command_parser().parse_args(words[1:])
        assert launch.module and (ROOT / launch.config_file).is_file()
        words = (launch.training_script.removeprefix("craft_trl.scripts."), *launch.training_script_args)
    script = __import__(f"craft_trl.scripts.{words[0]}", fromlist=["make_parser"])
    return launch, script.make_parser().parse_args_and_config(args=list(words[1:]))


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.name)
def test_slurm(path, checkout):
    text = path.read_text()
    assert text.startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n", path], check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", text, flags=re.MULTILINE))
    assert {"job-name", "time", "requeue", "output"} <= options.keys()
    # Slurm reads its options up to the first command.
    assert text.rindex("#SBATCH") < text.index("set -euo pipefail")
    subprocess.run(["bash", path], check=True)
    launch, parsed = parse(*called(checkout)[0])
    if path.stem == "train":
        assert (launch.num_machines, launch.machine_rank, launch.num_processes) == (2, 1, 16)
        assert (launch.main_process_ip, launch.main_process_port) == ("node-1", 22345)
        assert options["nodes"] == "2" and options["ntasks-per-node"] == "1"
        return
    work = parsed[-1]
    assert isinstance(work, ExecutorArguments) and work.task == 3
    assert work.tasks == int(options["array"].partition("%")[0].removeprefix("0-")) + 1
    if path.stem == "evaluate":
        subprocess.run(["bash", path], check=True, env={**os.environ, "COMPARE": "1"})
        assert not parse(*called(checkout)[1])[1][-1].in_tasks


@pytest.mark.parametrize("path", SKYPILOT, ids=lambda path: path.name)
def test_skypilot(path, checkout):
    task = yaml.safe_load(path.read_text())
    assert {"name", "num_nodes", "resources", "setup", "run"} <= task.keys()
    assert task.keys() <= {"name", "num_nodes", "resources", "workdir", "envs", "file_mounts", "setup", "run"}
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    subprocess.run(["bash", "-eu"], input=task["run"], text=True, check=True, env={**os.environ, **task["envs"]})
    launch, parsed = parse(*called(checkout)[0])
    if path.stem == "train":
        assert (launch.num_machines, launch.machine_rank, launch.num_processes) == (2, 1, 16)
        assert launch.main_process_ip == "10.0.0.1"
    else:
        assert (parsed[-1].task, parsed[-1].tasks) == (1, 2) and parsed[-1].shared_dir.startswith("s3://BUCKET/")


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_jobs(path, checkout, monkeypatch):
    text = path.read_text()
    # The pattern is PEP 723's.
    (block,) = re.finditer(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$", text)
    lines = block["content"].splitlines(keepends=True)
    header = tomllib.loads("".join(line.removeprefix("#").removeprefix(" ") for line in lines))
    assert block["type"] == "script" and header["requires-python"] == ">=3.11"
    assert any(line.startswith("craft_trl") for line in header["dependencies"])
    commands = []
    monkeypatch.setattr("craft_trl.cli.main.main", lambda words: commands.append(words) or 0)
    given = re.search(rf"examples/jobs/{path.name} (.*)", text)[1].split()
    monkeypatch.setattr(sys, "argv", [str(path), *given])
    with pytest.raises(SystemExit, match="^0$"):
        exec(compile(text, path, "exec"), {"__name__": "__main__"})
    assert commands and all(parse("craft", *words) for words in commands)


def test_every_command_in_a_comment_parses(checkout, monkeypatch):
    """What the files say to type."""
    found = 0
    for path in [*SLURM, *SKYPILOT, *JOBS]:
        text = re.sub(r" \\\n#? *", " ", path.read_text())
        for line in re.findall(r"^(?:# *)?(craft (?:expand|generate|evaluate) .*)$", text, flags=re.MULTILINE):
            parse("craft", *line.partition(" #")[0].partition("    ")[0].split()[1:])
            found += 1
    assert found >= 5
