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


"""Where the work is done, and on which platforms."""

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from craft_trl import devices
from craft_trl.candidates import pool
from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main
from craft_trl.errors import UsageError


@pytest.fixture
def machine(monkeypatch):
    """Make this machine one with two devices of a kind, as PyTorch says it."""

    def have(kind):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind and torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)

    return have


class TestDevice:
    @pytest.mark.parametrize(
        ("kind", "asked", "device"),
        [
            (None, None, "cpu"),
            (None, "auto", "cpu"),
            ("cuda", None, "cuda:1"),
            ("cuda", "cpu", "cpu"),
            ("cuda", "cuda", "cuda:1"),
            ("xpu", "", "xpu:1"),
            ("mps", None, "cpu"),  # only if it is asked for
            ("mps", "mps", "mps:1"),
        ],
    )
    def test_chosen(self, machine, monkeypatch, kind, asked, device):
        machine(kind)
        monkeypatch.setenv("LOCAL_RANK", "3")
        if asked is not None:
            monkeypatch.setenv(devices.DEVICE, asked)
        assert str(devices.default_device()) == device
        assert devices.accelerator() == (None if device == "cpu" else kind)

    def test_of_a_process_that_works_apart(self, machine, monkeypatch):
        machine("cuda")
        monkeypatch.setenv(devices.PLACE, "1")
        assert str(devices.default_device()) == "cuda:1"
        monkeypatch.setenv("LOCAL_RANK", "0")
        assert str(devices.default_device()) == "cuda:0"

    @pytest.mark.parametrize(
        ("kind", "visible", "expected"),
        [
            (None, None, []),
            ("cuda", None, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
            ("cuda", "5, GPU-8f1c", [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "GPU-8f1c"}]),
            ("xpu", "", [{"ZE_AFFINITY_MASK": "0"}, {"ZE_AFFINITY_MASK": "1"}]),
        ],
    )
    def test_one_by_one(self, machine, monkeypatch, kind, visible, expected):
        machine(kind)
        for name in devices.VISIBLE.values():
            monkeypatch.delenv(name, raising=False)
            if visible is not None:
                monkeypatch.setenv(name, visible)
        assert devices.single_devices() == expected

    def test_more_processes_than_devices(self, machine, monkeypatch):
        machine("cuda")
        devices.check_devices(2)
        with pytest.raises(UsageError, match="^num_processes is 3, but this machine has 2 cuda devices.$"):
            devices.check_devices(3)
        machine("hpu")
        with pytest.raises(UsageError, match="num_processes must be 1 on hpu devices"):
            devices.single_devices()
        machine(None)
        devices.check_devices(3)

    @pytest.mark.parametrize(("kind", "known"), [(None, "auto, cpu"), ("cuda", "auto, cpu, cuda")])
    def test_what_is_not_there(self, machine, monkeypatch, kind, known):
        machine(kind)
        monkeypatch.setenv(devices.DEVICE, "mps")
        with pytest.raises(UsageError, match=f"CRAFT_TRL_DEVICE is 'mps'; on this machine it may be {known}.$"):
            devices.default_device()

    def test_nothing_else_asks_pytorch(self):
        """One function decides: whoever asked PyTorch itself would take a Mac's MPS."""
        root = os.path.dirname(devices.__file__)
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith(".py") and name != "devices.py":
                    with open(os.path.join(folder, name)) as file:
                        text = file.read()
                    assert "accelerator.is_available" not in text and "current_accelerator" not in text, name
                    assert "mps.is_available" not in text and "PartialState(" not in text, name


class TestPlatform:
    def test_nothing_imports_what_only_some_have(self):
        """So that everything can be imported, and help printed, everywhere."""
        for path in Path(devices.__file__).parent.rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                names = {alias.name for alias in getattr(node, "names", ())} | {getattr(node, "module", None)}
                assert not names & {"fcntl", "msvcrt", "resource", "pwd", "grp", "termios"}, path

    def test_without_fcntl(self, capsys, monkeypatch, tmp_path):
        """As on Windows: one line."""
        monkeypatch.setitem(sys.modules, "fcntl", None)
        said = "craft_trl runs on Linux and macOS. On Windows, run it in WSL (the Windows Subsystem for Linux)."
        assert main(["--help"]) == 0 and "craft run" in capsys.readouterr().out
        assert main(["plan", "nowhere"]) == 2
        assert capsys.readouterr().err == f"craft: error: {said}\n"
        with pytest.raises(UsageError, match="runs on Linux and macOS"):
            CandidatePool(tmp_path, ["a"]).claim(("a", "b", 0))

    @pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
    def test_a_file_system_without_locks(self, capsys, monkeypatch, recipes, code):
        import fcntl

        path = str(recipes("candidates"))
        assert main(["expand", "--config", path]) == 0

        def refuse(*args):
            raise OSError(code, os.strerror(code))

        for name in ("lockf", "flock", "fcntl"):
            monkeypatch.setattr(fcntl, name, refuse)
        capsys.readouterr()
        assert main(["generate", "--config", path]) == 2
        err = capsys.readouterr().err
        assert err.startswith("craft: error: ") and err.count("\n") == 1, err
        assert os.strerror(code) in err and "put output_dir on a file system with locks" in err
        with pytest.raises(UsageError, match="put output_dir on a file system with locks"):
            CandidatePool("p", ["a"]).claim(("a", "b", 0))

    def test_one_at_a_time(self, tmp_path):
        """`alone` waits for the process that is in there."""
        path = tmp_path / "lock"
        code = (
            "import pathlib, sys, time\n"
            "from craft_trl.candidates.pool import alone\n"
            "with alone(pathlib.Path(sys.argv[1])):\n"
            "    print('in', flush=True); sys.stdin.readline(); pathlib.Path(sys.argv[1] + '.left').touch()\n"
        )
        command = [sys.executable, "-c", code, str(path)]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "in\n" and pool.in_use(tmp_path) is False
        with path.open("ab") as file:
            assert not pool._lock(file)
        other.stdin.write("\n")
        other.stdin.flush()
        with pool.alone(path):
            assert (tmp_path / "lock.left").exists()
        assert other.wait() == 0
