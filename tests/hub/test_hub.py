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

"""Pushes by the real clients of the Hub to a server on loopback, and what comes back from there."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image
from safetensors.torch import load, load_file

from craft_trl import CraftTrainer
from craft_trl.candidates.filter_config import FilterConfig
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.hub import upload
from craft_trl.hub.cards import duration
from craft_trl.hub.release import configurations, undecided
from craft_trl.scripts import expand, train
from craft_trl.scripts import push as push_script

from ..conftest import ROOT, TINY
from ..helpers import config, make_dataset
from ..hub_server import READER, WRITER, HubServer, Repo


SETTINGS = ["--candidates.num_prompts", "8", "--evaluate.num_prompts", "4", "--num_bootstrap", "50"]
SETTINGS += [f"--{stage}.{name}" for stage, name in (("candidates", "num_inference_steps"),)] + ["2"]
SETTINGS += ["--evaluate.num_inference_steps", "2", "--max_steps", "1", "--global_batch_size", "4"]
SETTINGS += ["--per_device_train_batch_size", "4", "--guard_num_prompts", "8", "--guard_num_inference_steps", "1"]
RUN = ["run", str(TINY), "--output_dir", "runs/tiny", *SETTINGS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the tiny recipe, made once."""
    folder = tmp_path_factory.mktemp("finished")
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main(RUN) == 0
    finally:
        os.chdir(before)
    return folder / "runs" / "tiny"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run at `runs/tiny`, so that a test may change it."""
    shutil.copytree(finished, tmp_path / "runs" / "tiny", ignore=shutil.ignore_patterns("checkpoint-*"))
    return tmp_path / "runs" / "tiny"


@pytest.fixture
def server(monkeypatch):
    server = HubServer()
    for name, value in (("ENDPOINT", server.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(upload, "WAITS", (0, 0, 0))
    yield server
    server.stop()


def push(*args):
    return main(["push", "runs/tiny", *args])


EARLIER = {"LICENSE": b"mine", "model_index.json": b"{}", "unet/model.safetensors": b"x"}
EARLIER |= {"README.md": b"---\ntags: [craft_trl]\n---\n"}


def python_block(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


class TestRoundTrip:
    def test_push_then_load_as_the_cards_say(self, run, server, tmp_path, capsys):
        assert push("--repo_id", "org/tiny", "--private", "true", "--candidate_images", "all") == 0
        out = capsys.readouterr().out
        assert f"[push] dataset: 7 files in {server.url}/datasets/org/tiny" in out
        dataset, model = server.repos["dataset", "org/tiny"], server.repos["model", "org/tiny"]
        assert dataset.private and model.private and len(dataset.commits) == len(model.commits) == 1
        for repo in (dataset, model):
            for name, data in repo.files.items():
                assert str(tmp_path).encode() not in data and str(TINY).encode() not in data, name
                assert b"_name_or_path" not in data and WRITER.encode() not in data, name

        # In a process of its own, as huggingface_hub reads its environment when it is imported.
        card, data_card = (repo.files["README.md"].decode() for repo in (model, dataset))
        code = f"""
{python_block(data_card)}
assert dataset.features["image"].decode and dataset[0]["image"].size == (64, 64)
print(dataset["expanded_prompt"][:], dataset["advantage"][:])
everything = load_dataset("org/tiny", "candidates", split="train")
print(sum(row["image"] is not None for row in everything), len(everything))
from diffusers import StableDiffusionXLPipeline
StableDiffusionXLPipeline.from_pretrained("org/tiny")
{python_block(card)}
"""
        environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": READER, "HF_HOME": str(tmp_path / "hf")}
        environment |= {"PATH": "/usr/bin:/bin", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        process = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert process.returncode == 0, process.stderr
        from datasets import load_from_disk

        made = load_from_disk(str(run / "dataset"))
        first, second = process.stdout.splitlines()
        assert first == f"{made['train']['expanded_prompt'][:]} {made['train']['advantage'][:]}"
        pool = CandidatePool(run / "pool", ["hpsv2", "pickscore", "aesthetic"])
        assert second == f"{len(pool)} {len(made['candidates'])}"
        assert Image.open(tmp_path / "fox.png").size == (64, 64)

    def test_cards_have_valid_metadata(self, run, server):
        assert (
            push("--repo_id", "ada/m", "--dataset_repo_id", "org/d", "--base_model", "org/base", "--license", "mit")
            == 0
        )
        content = server.repos["model", "ada/m"].files["README.md"].decode()
        data = ModelCard(content).data
        assert data.base_model == "org/base" and data.datasets == ["org/d"] and data.license == "mit"
        assert data.library_name == "diffusers" and data.pipeline_tag == "text-to-image" and "craft" in data.tags
        rows = [r for r in json.loads((run / "evaluation/results.json").read_text()) if r["model"] == "craft"]
        assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [
            (row["metric"], round(row["mean"], 4)) for row in rows
        ]
        verdict = json.loads((run / "evaluation/stage.json").read_text())["summary"]["verdict"]["sentence"]
        assert verdict in content and f"{rows[0]['ci_low']:+.4f} to {rows[0]['ci_high']:+.4f}" in content
        assert "Time per stage" in content and "2603.18991" in content and "![Above base" in content
        picture = Image.open(io.BytesIO(server.repos["model", "ada/m"].files["images/before_after.png"]))
        assert picture.size == (4 * 64, 2 * 64)

        content = server.repos["dataset", "org/d"].files["README.md"].decode()
        data = DatasetCard(content).data
        assert [config["config_name"] for config in data.configs] == ["candidates", "h", "ha", "hpa"]
        assert "[org/base](https://huggingface.co/org/base) drew for 8 prompts" in content
        kept = json.loads((run / "dataset/stage.json").read_text())["summary"]
        assert f"| `hpa` | hpsv2, pickscore, aesthetic | {kept['kept']} | {kept['kept_groups']} | 0 |" in content

    def test_shards_and_what_they_replace(self, run, server):
        def table():
            files = server.repos["dataset", "org/d"].files
            names = sorted(name for name in files if name.startswith("candidates/"))
            return names, [row for name in names for row in pq.read_table(io.BytesIO(files[name])).to_pylist()]

        assert push("--repo_id", "org/d", "--what", "dataset") == 0
        (name,), rows = table()
        assert name == "candidates/train-00000-of-00001.parquet" and len(rows) == 24
        assert push("--repo_id", "org/d", "--what", "dataset", "--max_shard_size", "20000") == 0
        names, again = table()
        assert len(names) > 1 and names[-1].endswith(f"-of-{len(names):05d}.parquet") and again == rows
        assert ("model", "org/d") not in server.repos

    def test_again_sends_nothing(self, run, server):
        assert push("--repo_id", "org/tiny") == 0
        server.requests.clear()
        assert push("--repo_id", "org/tiny") == 0
        assert not server.sent("PUT", "") and not server.sent("POST", "/commit/")

    def test_dry_run(self, run, monkeypatch, capsys):
        facts = run / "model" / "training.json"
        assert '"guarded": false' in facts.read_text()  # its guard saw one trained step, the last
        facts.write_text(facts.read_text().replace('"guarded": false', '"guarded": true'))
        assert push("--repo_id", "org/tiny", "--dry_run") == 0  # with no token, no server and HF_HUB_OFFLINE
        assert "would put model org/tiny on the Hub" in capsys.readouterr().out
        assert "The step that is saved was chosen while training, by" in (run / "hub/model/README.md").read_text()
        assert (run / "hub/dataset/hpa").is_dir()


class TestFaults:
    @pytest.mark.parametrize(
        ("method", "pattern", "what"),
        [
            ("GET", "whoami", 429),
            ("POST", "repos/create", 503),
            ("POST", "preupload", 500),
            ("POST", "objects/batch", "cut"),
            ("PUT", "/lfs/", "cut"),
            ("PUT", "/lfs/", 500),
            ("POST", "/commit/", 409),
            ("POST", "/commit/", "cut"),
            ("POST", "/commit/", "cut after"),
        ],
    )
    def test_passing(self, run, server, method, pattern, what):
        server.fail(method, pattern, what)
        assert push("--repo_id", "org/d", "--what", "dataset") == 0
        repo = server.repos["dataset", "org/d"]
        assert repo.commits == ["Push dataset with craft_trl"] and "hpa/train-00000-of-00001.parquet" in repo.files

    def test_what_arrived_is_not_sent_again(self, run, server, capsys):
        server.fail("POST", "/commit/", 503, times=99)
        assert push("--repo_id", "org/tiny", "--what", "model") == 1
        err = capsys.readouterr().err
        assert (
            err.count("\n") == 1
            and "busy or cannot be reached" in err
            and "Run the same command again" in err
            and "503" in err
        )
        repo = server.repos["model", "org/tiny"]
        assert list(repo.files) == [".gitattributes"]  # all or nothing: no half of a model
        server.faults.clear()
        server.requests.clear()
        assert push("--repo_id", "org/tiny", "--what", "model") == 0
        assert not server.sent("PUT", "") and "model_index.json" in repo.files

    @pytest.mark.parametrize(
        ("pattern", "what", "message"),
        [
            ("whoami", 401, "The Hub does not accept the token: make one at"),
            ("/commit/", 403, "The Hub refuses to write to the dataset org/d"),
            ("repos/create", 403, "The Hub refuses to write to the dataset org/d"),
            ("objects/batch", 413, "The Hub refuses to write to the dataset org/d"),
        ],
    )
    def test_lasting(self, run, server, capsys, pattern, what, message):
        server.fail("GET" if pattern == "whoami" else "POST", pattern, what, times=99)
        assert push("--repo_id", "org/d", "--what", "dataset") == 2
        err = capsys.readouterr().err
        assert err.startswith(f"craft: error: {message}") and err.count("\n") == 1 and WRITER not in err

    def test_no_server(self, run, server, capsys):
        server.stop()
        assert push("--repo_id", "org/d", "--what", "dataset") == 1
        assert "craft: The Hub is busy or cannot be reached: " in capsys.readouterr().err

    def test_the_hub_refuses_the_card(self, run, server, capsys):
        server.invalid_card = '"license" must be one of a list'
        assert push("--repo_id", "org/d", "--what", "dataset", "--license", "mine") == 2
        assert '"license" must be one of a list' in capsys.readouterr().err
        assert not server.sent("PUT", "")


class TestRefusedBeforeTheUpload:
    def refused(self, server, capsys, *args):
        assert push(*args) == 2
        err = capsys.readouterr().err
        assert err.startswith("craft: error: ") and err.count("\n") == 1 and "Traceback" not in err
        assert not server.sent("PUT", "") and not server.sent("POST", "/commit/") and not server.sent("POST", "create")
        return err

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ([], "repo_id is missing: give it as --repo_id org/name"),
            (["--repo_id", "tiny"], "repo_id must be org/name or user/name, got 'tiny'"),
            (["--repo_id", "org/ti--ny"], "is no name for a repository: Cannot have -- or .."),
            (["--repo_id", "org/a/b"], "is no name for a repository"),
            (["--repo_id", "other/tiny"], "you can write to ada, org, closed, but not to other"),
            (["--repo_id", "closed/tiny"], "You may read closed but not write to it"),
            (["--repo_id", "org/tiny", "--what", "weights"], "invalid choice: 'weights'"),
            (["--repo_id", "org/tiny", "--max_shard_size", "0"], "max_shard_size must be at least 1, got 0"),
        ],
    )
    def test_settings(self, run, server, capsys, args, message):
        assert message in self.refused(server, capsys, *args)

    def test_tokens(self, run, server, capsys, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", READER)
        assert "The token may not write to org: make one that may" in self.refused(
            server, capsys, "--repo_id", "org/t"
        )
        scopes = [{"entity": {"name": "other"}, "permissions": ["repo.write"]}]
        scopes += [{"entity": {"name": "org"}, "permissions": ["repo.content.read", "discussion.write"]}]
        token = server.users[READER]["auth"]["accessToken"]
        token |= {"role": "fineGrained", "fineGrained": {"scoped": scopes}}
        assert "The token may not write to org" in self.refused(server, capsys, "--repo_id", "org/t")
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "nowhere")
        assert "There is no token for the Hub: log in with" in self.refused(server, capsys, "--repo_id", "org/t")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        assert "HF_HUB_OFFLINE is set: unset it to push" in self.refused(server, capsys, "--repo_id", "org/t")

    def test_what_is_there(self, run, server, capsys):
        assert push("--repo_id", "org/t", "--what", "dataset", "--private", "true") == 0
        server.requests.clear()
        capsys.readouterr()
        args = ("--repo_id", "org/t", "--what", "dataset", "--private", "false")
        assert "The dataset org/t is private, and public was asked for" in self.refused(server, capsys, *args)
        server.repos["dataset", "org/t"].files = {"README.md": b"# Mine", "thesis.tex": b"years of work"}
        message = "The dataset org/t holds 2 files that craft_trl did not push, such as README.md"
        assert message in self.refused(server, capsys, *args[:4])

    def test_size(self, run, server, capsys, monkeypatch):
        monkeypatch.setattr(upload, "PRIVATE_QUOTA", 1000)
        message = "private, and a free account has 0 GB for private repositories"
        assert message in self.refused(server, capsys, "--repo_id", "org/t", "--private", "true")
        assert push("--repo_id", "org/t", "--what", "dataset") == 0

    def test_runs(self, run, server, capsys, tmp_path):
        assert main(["push"]) == 2 and main(["push", "nowhere", "--repo_id", "org/t"]) == 2
        err = capsys.readouterr().err
        assert "craft push needs the folder of a run" in err and "There is no run in nowhere" in err
        (run / "model" / "unet" / "config.json").write_text("{}")
        message = "The evaluation in runs/tiny/evaluation is of another model than the one in runs/tiny/model"
        assert message in self.refused(server, capsys, "--repo_id", "org/t", "--what", "model")
        shutil.rmtree(run / "model")
        message = "There is no finished runs/tiny/model: run `craft train` first"
        assert message in self.refused(server, capsys, "--repo_id", "org/t")
        shutil.rmtree(run / "dataset")
        message = "There is no finished runs/tiny/dataset: run `craft filter` first"
        assert message in self.refused(server, capsys, "--repo_id", "org/t", "--what", "dataset")

    def test_secrets_and_paths_in_a_run(self, run, server, capsys, monkeypatch, tmp_path):
        card = run / "model" / "training.json"
        facts = json.loads(card.read_text())
        for value, message in (
            ("hf_" + "a" * 34, "looks like a secret"),
            ("correct horse battery", "looks like a secret"),
            (f"{tmp_path}/x", "holds a path of this machine"),
            ("/home/ada/models", "holds a path of this machine, /home/ada"),
            ("C:\\Users\\ada\\models", "holds a path of this machine"),
        ):
            monkeypatch.setenv("OPENAI_API_KEY", "correct horse battery")
            card.write_text(json.dumps(facts | {"settings": {"note": value}}))
            err = self.refused(server, capsys, "--repo_id", "org/t", "--what", "model")
            assert message in err and "nothing was uploaded" in err
            assert "horse" not in err and "hf_aaa" not in err
        groups = run / "prompts" / "groups.jsonl"
        pool = run / "pool"
        assert pool.is_dir()
        groups.write_text(groups.read_text().replace(', high quality, sharp"', ", hf_" + "b" * 34 + '"', 1))
        assert "a prompt holds what looks like a secret" in self.refused(
            server, capsys, "--repo_id", "org/t", "--what", "dataset"
        )


class TestRecipes:
    def test_push_to_hub_in_recipes(self, run, server, capsys):
        more = ["--candidates.push_to_hub", "true", "--hub_dataset_id", "org/d"]
        more += ["--train.push_to_hub", "true", "--hub_model_id", "org/m", "--train.hub_private_repo", "true"]
        assert main([*RUN, *more]) == 0
        out = capsys.readouterr().out
        assert out.count("done before") == 5 and "[push] dataset: 7 files" in out and "[push] model" in out
        model = server.repos["model", "org/m"]
        assert model.private and not server.repos["dataset", "org/d"].private
        card = ModelCard(model.files["README.md"].decode())
        assert card.data.eval_results and card.data.datasets == ["org/d"] and len(model.commits) == 1
        # Asked for what cannot be had: said before anything is done.
        for flags, message in (
            (["--train.push_to_hub", "true"], "push_to_hub needs hub_model_id: org/name"),
            (["--candidates.push_to_hub", "true"], "push_to_hub needs the repository: hub_dataset_id: org/name"),
            (["--train.push_to_hub", "true", "--hub_model_id", "other/m"], "but not to other"),
            (["--hub_token", WRITER], "hub_token would put a secret into a file"),
        ):
            assert main(["run", str(TINY), "--output_dir", "runs/new", *flags]) == 2
            captured = capsys.readouterr()
            assert message in captured.err and "[expand]" not in captured.out

    def test_the_trainer_pushes_by_itself(self, server, tmp_path):
        settings = {"push_to_hub": True, "hub_model_id": "org/m", "hub_private_repo": True, "max_steps": 1}
        trainer = CraftTrainer(str(TINY / "pipeline"), config(tmp_path, **settings), make_dataset())
        assert ("model", "org/m") not in server.repos  # checked, not made
        trainer.train()
        trainer.save_model()
        repo = server.repos["model", "org/m"]
        assert repo.private and "Not evaluated yet" in repo.files["README.md"].decode()
        assert "encoded.safetensors" not in repo.files and "unet/diffusion_pytorch_model.safetensors" in repo.files
        for settings, message in (
            ({"hub_model_id": None}, "push_to_hub needs the repository: hub_model_id"),
            ({"hub_revision": "v2"}, "hub_revision is not supported, got 'v2'"),
            ({"hub_private_repo": False}, "The model org/m is private, and public was asked for"),
        ):
            settings = {"push_to_hub": True, "hub_model_id": "org/m"} | settings
            with pytest.raises(UsageError, match=message):
                CraftTrainer(str(TINY / "pipeline"), config(tmp_path, **settings), make_dataset())

    def test_the_mean_is_what_is_pushed(self, server, tmp_path):
        """Of a training with `average_with`, and not the weights that the training ended with."""
        make_dataset().save_to_disk(str(tmp_path / "dataset"))
        argv = ["train", "--model_name_or_path", str(TINY / "pipeline"), "--dataset_name", str(tmp_path / "dataset")]
        argv += ["--max_steps", "1", "--global_batch_size", "4", "--per_device_train_batch_size", "4", "--use_cpu"]
        argv += ["--save_strategy", "no", "--output_dir"]
        assert main([*argv, str(tmp_path / "first"), "--seed", "1"]) == 0
        pushing = ["--push_to_hub", "true", "--hub_model_id", "org/mean", "--average_with", str(tmp_path / "first")]
        assert main([*argv, str(tmp_path / "mean"), *pushing]) == 0
        assert main([*argv, str(tmp_path / "own")]) == 0
        name = "unet/diffusion_pytorch_model.safetensors"
        pushed, files = server.repos["model", "org/mean"].files, [tmp_path / part / name for part in ("first", "own")]
        first, own, mean = (*map(load_file, files), load(pushed[name]))
        assert all(torch.equal(value, (own[key] + first[key]) / 2) for key, value in mean.items())
        assert any(not torch.equal(value, own[key]) for key, value in mean.items())
        assert "this training ended with and those of `first`" in pushed["README.md"].decode()

    def test_an_exported_model(self, run, server, capsys):
        """At the strength that its user chose, which the card says; an evaluation of the model itself is not its own."""
        weaker = ["export", "--model", "runs/tiny/model", "--format", "diffusers", "--output", "runs/tiny/weaker"]
        # In another precision: one step of warmup leaves the weights at every strength what they were.
        strength = ["--strength", "0.5", "--base", str(TINY / "pipeline"), "--dtype", "bfloat16"]
        assert main([*weaker, *strength]) == 0
        pushing = ["--repo_id", "org/weaker", "--what", "model", "--model_dir", "runs/tiny/weaker"]
        assert push(*pushing) == 2
        assert "is of another model than the one in runs/tiny/weaker" in capsys.readouterr().err
        shutil.rmtree(run / "evaluation")
        assert push(*pushing) == 0
        pushed, name = server.repos["model", "org/weaker"].files, "unet/diffusion_pytorch_model.safetensors"
        assert pushed[name] == (run / "weaker" / name).read_bytes() != (run / "model" / name).read_bytes()
        assert "its weights were set to strength 0.5, of the way from" in pushed["README.md"].decode()
        again = ["export", "--model", "runs/tiny/weaker", "--average", "runs/tiny/model", "--dtype", "float16"]
        assert main([*again, "--format", "diffusers", "--output", "mean"]) == 0
        facts = json.loads(Path("mean/training.json").read_text())
        assert facts["exported"] == [{"strength": 0.5}, {"average": ["model"]}]
        assert facts["settings"]["weights"] == "float16"
        # What a trainer left is no whole model until its stage says so.
        shutil.copy(run / "model" / "training.json", run / "weaker")
        assert push(*pushing) == 2
        assert "There is no finished runs/tiny/weaker: run `craft train` first" in capsys.readouterr().err

    def test_an_adapter(self, run, server, capsys):
        recipe = yaml.safe_load((TINY / "craft.yaml").read_text())
        recipe |= {"model_name_or_path": str(TINY / "pipeline"), "max_steps": 1, "global_batch_size": 4}
        recipe |= {"use_peft": True, "lora_r": 2, "per_device_train_batch_size": 4}
        recipe = {k: v for k, v in recipe.items() if k != "held_out_rewards" and not k.startswith("guard_")}
        shutil.rmtree(run / "model")
        shutil.rmtree(run / "evaluation")
        (run / "lora.yaml").write_text(yaml.safe_dump(recipe))
        assert main(["train", "--config", str(run / "lora.yaml")]) == 0
        assert push("--repo_id", "org/lora", "--what", "model") == 2
        assert "trained on a local model, and nobody could load it: name its base" in capsys.readouterr().err
        # Over a whole pipeline of an earlier push: nothing that would be loaded in its stead stays.
        assert server.repos.setdefault(("model", "org/lora"), Repo(files=dict(EARLIER)))
        assert push("--repo_id", "org/lora", "--what", "model", "--base_model", "org/base") == 0
        files = server.repos["model", "org/lora"].files
        assert set(files) == {"LICENSE", "README.md", "training.json", "pytorch_lora_weights.safetensors"}
        card = files["README.md"].decode()
        assert 'from_pretrained("org/base")\npipeline.load_lora_weights("org/lora")' in card
        assert "| LoRA rank, alpha | 2, 2 |" in card and "lora" in ModelCard(card).data.tags


class TestVotes:
    def test_the_reward_of_votes(self, run, server, tmp_path):
        """It is pushed as others are, from the votes that the dataset has, wherever their file is."""
        from datasets import load_from_disk

        from craft_trl.candidates.groups import load_groups
        from craft_trl.filtering.votes import vote_line

        pool = CandidatePool(run / "pool", ["hpsv2", "pickscore", "aesthetic"])
        drawn = [g for g in load_groups(run / "prompts" / "groups.jsonl") if all(key in pool for key in g.keys[:2])]
        words = [(0, 1, "best"), (0, 0, "keep"), (1, 1, "keep"), (2, 0, "veto"), (3, 1, "veto")]
        votes = tmp_path / "votes.jsonl"
        votes.write_text("".join(vote_line(drawn[i].keys[j], word) + "\n" for i, j, word in words), encoding="utf-8")
        options = ["--num_prompts", "8", "--num_inference_steps", "2", "--output_dir", "runs/tiny"]
        options += ["--filter_level", "image", "--filter_rewards", "human", "--votes", str(votes)]
        assert main(["filter", "--config", str(TINY / "candidates.yaml"), *options]) == 0
        made = load_from_disk(str(run / "dataset"))
        assert made["train"]["expanded_prompt"][:] == [drawn[0].keys[1][1], drawn[1].keys[1][1]]
        votes.unlink()
        assert push("--repo_id", "org/tiny", "--what", "dataset") == 0
        files = server.repos["dataset", "org/tiny"].files
        (name,) = (name for name in files if name.startswith("filtered/"))
        rows = pq.read_table(io.BytesIO(files[name])).to_pylist()
        assert [(row["expanded_prompt"], row["human"]) for row in rows] == [
            (drawn[0].keys[1][1], 2),
            (drawn[1].keys[1][1], 1),
        ]
        (name,) = (name for name in files if name.startswith("candidates/"))
        rows = pq.read_table(io.BytesIO(files[name])).to_pylist()
        assert sorted(row["human"] for row in rows if row["human"]) == [-1, -1, 1, 1, 2]


class TestDocs:
    """What docs/source/hub.md shows is taken as it stands there."""

    PAGE = (ROOT / "docs" / "source" / "hub.md").read_text()

    def test_commands(self):
        lines = [
            line for block in re.findall(r"```bash\n(.*?)```", self.PAGE, re.DOTALL) for line in block.splitlines()
        ]
        lines = [
            line for line in lines if not line.startswith("craft export-dataset ")
        ]  # parsed as those of all pages
        assert len(lines) == 4
        for line in lines:
            craft, command, folder, *args = shlex.split(line, comments=True)
            assert (craft, command, folder) == ("craft", "push", "runs/tiny")
            push_script.make_parser().parse_args_and_config(args)

    def test_recipes(self):
        known = {"candidates.yaml": expand.make_parser(), "craft.yaml": train.make_parser()}
        for block in re.findall(r"```yaml\n(.*?)```", self.PAGE, re.DOTALL):
            name = re.match(r"# (\S+):", block)[1]
            assert set(yaml.safe_load(block)) <= set(known[name].hints)


class TestConfigurations:
    OWN = {"filter_level": "group", "scale_rewards": "pool", "reward_weights": None, "advantage_eps": 1e-4}

    def names(self, rewards, filter_rewards):
        found = configurations({**self.OWN, "filter_rewards": filter_rewards}, rewards)
        return {name: config.filter_rewards for name, config in found.items()}

    def test_which(self):
        three = ["hpsv2", "pickscore", "aesthetic"]
        assert list(self.names(three, three)) == ["h", "ha", "hpa"]
        assert self.names(three, ["pickscore"])["filtered"] == ["pickscore"]
        assert self.names(["mine"], ["mine"]) == {"filtered": ["mine"]}
        assert list(self.names(["hpsv2", "mine"], ["hpsv2"])) == ["h"]

    def test_undecided(self, tmp_path):
        """Group a is whole; b lost on pickscore, c on both, at their first variant: by hpsv2 alone, b could have passed."""
        groups = make_groups(["a", "b", "c"], [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]])
        pool = CandidatePool(tmp_path / "pool", ["hpsv2", "pickscore"])
        made = [*groups[0].keys, *groups[1].keys[:2], *groups[2].keys[:2]]
        scores = {"hpsv2": np.array([1, 2, 2, 1, 2, 1, 0.0]), "pickscore": np.array([1, 2, 2, 1, 0, 1, 0.0])}
        pool.append(made, [Image.new("RGB", (8, 8))] * 7, scores)
        assert undecided(groups, pool, FilterConfig(filter_rewards=["hpsv2", "pickscore"])) == 0
        assert undecided(groups, pool, FilterConfig(filter_rewards=["hpsv2"])) == 1
        assert undecided(groups, pool, FilterConfig(filter_level="image", filter_rewards=["hpsv2"])) == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("https://huggingface.co/datasets/ada/tiny and ada/tiny", None),
        ("a fox/hare, 1/2, and/or", None),
        ("/scratch/ada/models", "/scratch/ada/"),
        ("/data/models", "/data"),
        ("/datasets", None),
        ("file:///home/ada", "/home/ada"),
        ("see https://site.org/home/ada/x", None),
    ],
)
def test_paths_that_give_something_away(monkeypatch, text, found):
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    monkeypatch.setattr(upload.Path, "cwd", lambda: upload.Path("/data"))
    if found is None:
        upload.scan({"README.md": text.encode()})
    else:
        with pytest.raises(UsageError, match=f"README.md holds a path of this machine, {found}: nothing was uploaded"):
            upload.scan({"README.md": text.encode()})


def test_shards():
    rows = [{"n": i} for i in range(10)]
    parts = upload.shards(rows, row_bytes=100, max_shard_size=350)
    assert [len(part) for part in parts] == [3, 4, 3] and sum(map(list, parts), []) == rows
    assert upload.shards(rows, 100, 10**9) == [rows]


def test_duration():
    assert [duration(seconds) for seconds in (5.4, 119, 600, 9000)] == ["5 s", "119 s", "10 min", "2.5 h"]
