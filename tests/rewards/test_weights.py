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

"""Where a reward's weights come from: the Hub (a server on loopback that speaks its protocol), its cache, folders."""

import hashlib
import json
import pickle
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.rewards import REWARDS, RewardSpec, loading, weights
from craft_trl.rewards.hpsv2 import HPSv2
from craft_trl.rewards.image_reward import ImageReward
from craft_trl.rewards.mps import MPS


WEIGHTED = [name for name, reward in REWARDS.items() if reward.weights]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A Hub of one repository, `tiny/pick`, with one commit. It counts what is asked of it."""

    def __init__(self, folder):
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.downloads = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.partition("?")[0]
                if path.startswith("/api/models/tiny/pick/tree/"):
                    return self.answer(json.dumps(hub.tree).encode())
                if path.startswith("/api/models/tiny/pick"):
                    return self.answer(
                        json.dumps({"id": "tiny/pick", "sha": COMMIT, "siblings": hub.siblings}).encode()
                    )
                repository, _, file = path.partition("/resolve/")
                revision, _, name = file.partition("/")
                if repository != "/tiny/pick" or revision not in ("main", COMMIT) or name not in hub.files:
                    return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
                data = hub.files[name]
                hub.downloads += [name] if self.command == "GET" else []
                self.answer(data, 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

            do_HEAD = do_GET

            def answer(self, body, status=200, headers=None):
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def siblings(self):
        return [{"rfilename": name} for name in self.files]

    @property
    def tree(self):
        return [{"type": "file", "path": k, "size": len(v), "oid": "0" * 40} for k, v in self.files.items()]

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(tiny):
    hub = Hub(tiny / "rewards" / "pick")
    yield hub
    hub.stop()


SCORE = """
from PIL import Image
from craft_trl.rewards import RewardSpec
reward = RewardSpec.parse("pickscore=tiny/pick").load()
print(reward([Image.new("RGB", (64, 64), "red")], ["a red fox"]).item())
"""


def test_a_repository_on_the_hub(hub, tiny, tmp_path, monkeypatch):
    """In a process of its own, as huggingface_hub reads its environment when it is imported."""
    reward = RewardSpec.parse(f"pickscore={tiny / 'rewards' / 'pick'}").load()
    image = Image.new("RGB", (64, 64), "red")
    expected = reward([image], ["a red fox"]).item()
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin"}
    environment |= {"HF_HUB_OFFLINE": "0", "GOMP_SPINCOUNT": "10000"}
    process = subprocess.run(
        [sys.executable, "-c", SCORE], env=environment, capture_output=True, text=True, timeout=200
    )
    assert process.stdout.strip() == str(expected), process.stderr
    assert "model.safetensors" in hub.downloads
    # Once it is there, neither the server nor a network is needed.
    hub.stop()
    with pytest.raises(UsageError, match="tiny/pick"):
        RewardSpec.parse("pickscore=tiny/pick").load()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    cached = RewardSpec.parse("pickscore=tiny/pick").load()
    assert cached([image], ["a red fox"]).item() == expected


def test_pinned_weights(hub, tmp_path, monkeypatch):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template.partition(".co")[2])
    sound = hub.files["model.safetensors"]
    digest = hashlib.sha256(sound).hexdigest()
    pinned = weights.Weights("tiny/pick", ("model.safetensors", "config.json"), COMMIT, digest)

    # Without a network, and never downloaded: how to get it.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    command = f"`hf download tiny/pick model.safetensors config.json --revision {COMMIT}`"
    with pytest.raises(UsageError, match=f"tiny/pick is neither a folder nor to be had .* {command}"):
        loading.find(None, pinned)
    assert pinned.cached() is None and hub.downloads == []

    # A download that was damaged on its way: as long as it should be, but other bytes. It is noticed each time.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.files["model.safetensors"] = sound[:-1] + bytes([sound[-1] ^ 1])
    for _ in range(2):
        with pytest.raises(
            UsageError, match=f"the published one with {digest[:12]}. The download is damaged"
        ) as caught:
            loading.find("tiny/pick", pinned)
    (damaged,) = re.findall(r"delete (\S+) and try again", str(caught.value))

    # What the message says helps; then a pinned commit is not asked for again, and is there without a network.
    hub.files["model.safetensors"] = sound
    Path(damaged).unlink()
    hub.downloads.clear()
    folder = loading.find(None, pinned)
    assert (folder / "model.safetensors").read_bytes() == sound and hub.downloads == ["model.safetensors"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert loading.find(None, pinned) == folder == pinned.cached().parent and len(hub.downloads) == 1


def test_env_lists_what_is_cached(hub, tmp_path, monkeypatch, capsys):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    head = weights.AESTHETIC_HEAD
    folder = tmp_path / "hub" / "models--trl-lib--ddpo-aesthetic-predictor" / "snapshots" / head.revision
    folder.mkdir(parents=True)
    (folder / head.files[0]).write_bytes(b"x" * 3_714_759)
    assert main(["env"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("reward ")]
    assert "reward hpsv2: HPS_v2.1_compressed.pt of xswu/HPSv2@697403c, not downloaded" in lines
    (line,) = [line for line in lines if "in the cache" in line]
    assert line == (
        "reward aesthetic: aesthetic-model.pth of trl-lib/ddpo-aesthetic-predictor@cf4bd10, 3.7 MB in the cache"
    )


def test_pins_are_whole():
    """A hash of 64 digits, a commit of 40, and no file that a reader of ours could not read."""
    for name, reward in REWARDS.items():
        for pinned in reward.weights:
            assert pinned.revision is None or len(pinned.revision) == 40 and int(pinned.revision, 16), name
            assert pinned.sha256 is None or len(pinned.sha256) == 64 and int(pinned.sha256, 16), name
            assert pinned.files and pinned.repo_id.count("/") == 1
    unpinned = {name for name, reward in REWARDS.items() if any(pinned.revision is None for pinned in reward.weights)}
    assert unpinned == {"mps", "geneval"}


@pytest.mark.parametrize("name", WEIGHTED)
def test_offline_without_weights(name):
    with pytest.raises(UsageError, match="neither a folder nor to be had from the Hub or its cache .*`hf download "):
        RewardSpec.parse(name).load()


class TestFolders:
    FOLDERS = {"hpsv2": "rewards/hps", "pickscore": "rewards/pick", "clipscore": "rewards/pick"}
    FOLDERS |= {"aesthetic": "rewards/aesthetic", "imagereward": "evaluators/imagereward"}
    FILES = {"hpsv2": "open_clip_model.safetensors", "aesthetic": "aesthetic_head.safetensors"}

    @pytest.fixture
    def copy(self, tiny, tmp_path):
        def copy(name):
            folder = tmp_path / "weights"
            shutil.copytree(tiny / self.FOLDERS[name], folder)
            return folder, folder / self.FILES.get(name, "model.safetensors")

        return copy

    @pytest.mark.parametrize("name", FOLDERS)
    def test_damaged_weights(self, copy, name):
        folder, file = copy(name)
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        with pytest.raises(UsageError, match="cannot be read as"):
            RewardSpec.parse(f"{name}={folder}").load()

    @pytest.mark.parametrize("name", FOLDERS)
    def test_another_architecture(self, copy, name):
        """A weight fewer, or one of another shape: never left at random, never broadcast."""
        folder, file = copy(name)
        weights = load_file(file)
        key = sorted(key for key in weights if key.endswith("weight"))[0]
        save_file({k: v for k, v in weights.items() if k != key}, file, {"format": "pt"})
        with pytest.raises(UsageError, match=f"is of another architecture: it lacks .*{key.split('.', 1)[1]}"):
            RewardSpec.parse(f"{name}={folder}").load()
        save_file(weights | {key: weights[key][:-1].clone()}, file, {"format": "pt"})
        with pytest.raises(UsageError, match="another architecture|cannot be read as"):
            RewardSpec.parse(f"{name}={folder}").load()

    def test_the_weights_of_another_reward(self, tiny):
        folders = {name: tiny / folder for name, folder in self.FOLDERS.items()}
        for name, folder in folders.items():
            for other in set(folders.values()) - {folder}:
                with pytest.raises(UsageError, match="is of another architecture|it holds|it needs"):
                    RewardSpec.parse(f"{name}={other}").load()

    @pytest.mark.parametrize("name", WEIGHTED)
    def test_an_empty_folder(self, tmp_path, name):
        with pytest.raises(UsageError, match="it holds nothing"):
            RewardSpec.parse(f"{name}={tmp_path}").load()

    @pytest.mark.parametrize("name", FOLDERS)
    def test_a_damaged_tokenizer_or_config(self, copy, name):
        for file in ("tokenizer.json", "config.json", "open_clip_config.json", "preprocessor_config.json"):
            folder, _ = copy(name)
            if (folder / file).is_file() and (name, file) not in (
                # Not read: these settings are the network's own.
                ("hpsv2", "preprocessor_config.json"),
                ("aesthetic", "preprocessor_config.json"),
                ("imagereward", "preprocessor_config.json"),
            ):
                (folder / file).write_text('{"half": ')
                with pytest.raises(UsageError, match="cannot be read|does not describe"):
                    RewardSpec.parse(f"{name}={folder}").load()
            shutil.rmtree(folder)

    def test_a_preprocessor_of_another_kind(self, copy):
        folder, _ = copy("pickscore")
        config = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps(config | {"resample": 2}))
        with pytest.raises(UsageError, match="preprocessor_config.json: resample is 2, only .* is supported"):
            RewardSpec.parse(f"pickscore={folder}").load()

    def test_versions(self):
        with pytest.raises(UsageError, match="HPSv2 version must be one of v2.0, v2.1, got 'v3'"):
            HPSv2(version="v3")


class Payload:
    """What a malicious checkpoint would do."""

    def __reduce__(self):
        return (exec, ("open('executed', 'w')",))


class TestPickles:
    """Published checkpoints are pickles; nothing in one is ever executed. Tests stand in an empty folder."""

    @pytest.mark.parametrize(
        ("reward", "file"),
        [
            (HPSv2, "HPS_v2.1_compressed.pt"),
            (ImageReward, "ImageReward.pt"),
            (MPS, "MPS_overall_state_dict.pt"),
            (MPS, "MPS_overall_checkpoint.pth"),
        ],
    )
    @pytest.mark.parametrize("how", ["torch", "pickle"])
    def test_code_is_not_executed(self, tmp_path, reward, file, how):
        content = {"state_dict": {"a": torch.zeros(1)}, "payload": Payload()}
        if how == "torch":
            torch.save(content, tmp_path / file)
        else:
            (tmp_path / file).write_bytes(pickle.dumps(content))
        with pytest.raises(UsageError, match="cannot be read as weights|is not read: it asks for"):
            reward(str(tmp_path))
        assert not (tmp_path / "executed").exists()

    def test_a_class_of_another_package(self, tmp_path):
        torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "module.pth")
        assert loading.read_module(tmp_path / "module.pth", ("torch.nn.modules.",)).keys() == {"0.weight", "0.bias"}
        with pytest.raises(UsageError, match="is not read: it asks for torch.nn.modules.container.Sequential"):
            loading.read_module(tmp_path / "module.pth", ("torch.nn.modules.linear.",))

    def test_an_allowed_prefix_is_not_imported(self, tmp_path, monkeypatch):
        """A name under an allowed prefix becomes an empty class, even if such a module could be imported."""
        (tmp_path / "trainer").mkdir()
        (tmp_path / "trainer" / "__init__.py").write_text("open('executed', 'w')")
        (tmp_path / "trainer" / "models.py").write_text("import torch\nclass Net(torch.nn.Linear): pass\n")
        make = "import torch, trainer.models as m; torch.save(m.Net(2, 2), 'module.pth')"
        subprocess.run([sys.executable, "-c", make], check=True, cwd=tmp_path)
        (tmp_path / "executed").unlink()
        monkeypatch.syspath_prepend(tmp_path)
        assert loading.read_module(tmp_path / "module.pth", ("trainer.models.",)).keys() == {"weight", "bias"}
        assert not (tmp_path / "executed").exists() and "trainer" not in sys.modules
