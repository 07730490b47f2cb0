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


"""`craft fetch`: against a Hub on loopback, after which the run's checks and models need no network."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import huggingface_hub.constants
import pytest
import transformers
import yaml

from craft_trl.candidates.config import CandidatesConfig
from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.prompts.benchmarks import BENCHMARKS, WebFile, published_files
from craft_trl.prompts.config import excluded_files
from craft_trl.prompts.loading import hub_files
from craft_trl.rewards import RewardSpec
from craft_trl.rewards.weights import CLIP_L, HPSV2, MASK2FORMER
from craft_trl.scripts.fetch import Need, fetch, listed
from craft_trl.sources import HubFiles

from ..conftest import ROOT, TINY
from ..expansion.test_local import random_model  # noqa: F401, a fixture
from ..hub_server import WRITER, HubServer, Repo


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = HubServer()
    constants = {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "hub")}
    constants |= {"HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}"}
    for name, value in constants.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)  # of the functions that diffusers imports
    # transformers keeps one with the endpoint that it had at first: of another test's server, which is gone, and asked for minutes.
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    for name, value in {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(datasets.config, name, value)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    yield server
    server.stop()


def publish(server, name, folder, kind="model", **more):
    files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    repo = server.repos.setdefault((kind, name), Repo())
    repo.files = {**files, **{name: data.encode() for name, data in more.items()}}
    repo.commits.append("commit")


@pytest.fixture
def run(server, recipes, random_model):  # noqa: F811
    """Recipes of which everything is on the Hub, and what should not be downloaded beside it."""
    publish(server, "org/tiny", TINY / "pipeline", **{"README.md": "# Tiny", "unet/diffusion_pytorch_model.bin": "x"})
    publish(server, "org/vae", TINY / "pipeline" / "vae", **{"sample.png": "x"})
    publish(server, "org/hps", TINY / "rewards" / "hps", **{"test.png": "x"})
    publish(server, "org/pick", TINY / "rewards" / "pick")
    publish(server, "org/aesthetic", TINY / "rewards" / "aesthetic")
    publish(server, "org/ir", TINY / "evaluators" / "imagereward")
    publish(server, "org/lm", Path(random_model), **{"onnx/model.onnx": "x"})
    prompts = {
        name: (TINY / "prompts" / f"tiny-{name}.jsonl").read_text() for name in ("hpd-train", "hpd-test", "parti")
    }
    server.repos["dataset", "org/prompts"] = Repo(files={f"{n}.jsonl": text.encode() for n, text in prompts.items()})
    server.repos["dataset", "org/plain"] = Repo(files={"train.jsonl": prompts["hpd-train"].encode(), "a.png": b"x"})
    rewards = ["hpsv2=org/hps", "pickscore=org/pick", "aesthetic=org/aesthetic"]
    changes = {"model_name_or_path": "org/tiny", "rewards": rewards, "vae_name_or_path": "org/vae"}
    changes |= {"expander": "transformers", "expander_model": "org/lm", "templates": "DELETE"}
    recipes("candidates", **changes, prompts="org/plain", exclude_prompts=["org/prompts:hpd-test.jsonl"])
    guard = {"held_out_rewards": ["imagereward=org/ir"], "guard_prompts": "org/prompts:hpd-test.jsonl"}
    recipes("craft", model_name_or_path="org/tiny", **guard, guard_num_prompts=8)
    written = yaml.safe_load((recipes.folder / "craft.yaml").read_text())["output_dir"]
    adapter = ROOT / "tests" / "data" / "run_before_rooms" / "run" / "model" / "pytorch_lora_weights.safetensors"
    server.repos["model", "org/lora"] = Repo(files={adapter.name: adapter.read_bytes(), "notes.txt": b"x"})
    models = ["base=org/tiny", "before=lora:org/lora", f"craft={written}"]
    held_out = {"held_out_rewards": ["imagereward=org/ir"], "prompts": "org/prompts:parti.jsonl", "group_by": "DELETE"}
    recipes("evaluate", models=models, rewards=rewards, **held_out, vae_name_or_path="org/vae", run_dir="DELETE")
    return recipes.folder


def downloaded(server):
    return {path for method, path in server.requests if method == "GET" and "/resolve/" in path}


def names(paths):
    return {
        path.split("/resolve/")[0].removeprefix("/") + ":" + path.split("/resolve/")[1].partition("/")[2]
        for path in paths
    }


def test_a_dry_run_lists_and_a_fetch_is_enough(run, server, tmp_path, capsys):
    assert main(["fetch", str(run), "--dry_run"]) == 0
    said = capsys.readouterr().out
    weights = TINY / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    size = f"{weights.stat().st_size / 1e6:,.3f} MB"
    (line,) = [line for line in said.splitlines() if " unet/diffusion_pytorch_model.safetensors" in line]
    assert line.split() == [
        *size.split(),
        digest,
        "unet/diffusion_pytorch_model.safetensors,",
        "to",
        "be",
        "downloaded",
    ]
    assert "org/tiny (model_name_or_path, models)\n" in said and "org/vae (vae_name_or_path)\n" in said
    assert "org/ir (held_out_rewards: imagereward, the guard: imagereward)\n" in said
    assert (
        "datasets/org/prompts (exclude_prompts, guard_prompts)\n" in said and "datasets/org/plain (prompts)\n" in said
    )
    assert not [name for name in ("README.md", ".bin", ".png") if name in said]
    assert {name.rpartition(".")[2] for name in names(downloaded(server))} == {"json"}
    assert "org/lora (models)\n" in said and "notes.txt" not in said
    assert "org/lm (expander_model)\n" in said and "onnx" not in said
    listed = [line.split()[-1] for line in said.splitlines() if line.startswith("  ")]
    assert "are not in the cache yet" in said and len(listed) > 20

    assert main(["fetch", str(run)]) == 0
    said = capsys.readouterr().out
    assert "files, " in said and "were downloaded now" in said
    taken = names(downloaded(server))
    assert {
        "org/tiny:unet/diffusion_pytorch_model.safetensors",
        "org/vae:diffusion_pytorch_model.safetensors",
    } <= taken
    assert {"datasets/org/prompts:hpd-test.jsonl", "datasets/org/prompts:parti.jsonl"} <= taken
    assert not [name for name in taken if name.endswith((".bin", ".png", ".md")) or "hpd-train" in name]
    # Once is enough.
    before = len(downloaded(server))
    assert main(["fetch", str(run)]) == 0
    assert "0 of them were downloaded now, 0.000 MB" in capsys.readouterr().out and len(downloaded(server)) == before

    # Without a network, in another process: all that a run checks before its first stage, and all that it loads.
    server.stop()
    code = """
import json, sys
from pathlib import Path
from craft_trl.planning.recipes import RunRecipes
from craft_trl.scripts import run
from craft_trl.candidates.loading import load_network, load_pipeline
from craft_trl.rewards import parse_rewards
recipes = RunRecipes.load(Path(sys.argv[1]))
prompts, _, expander = run.check(recipes)
expander._load()
pipeline = load_pipeline("org/tiny")
load_network(type(pipeline.vae), "org/vae")
rewards = [spec.load() for spec in parse_rewards([*recipes.candidates.rewards, *recipes.train.held_out_rewards])]
print(json.dumps([len(prompts), len(rewards), type(pipeline).__name__]))
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"HF_DATASETS_CACHE": str(tmp_path / "datasets"), "HF_ENDPOINT": server.url}
    command = [sys.executable, "-c", code, str(run)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == [6, 4, "StableDiffusionXLPipeline"]


def test_what_is_wrong(server, tmp_path, capsys, monkeypatch):
    def refused(*words):
        assert main(["fetch", *map(str, words)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("craft: error: ") and err.count("\n") == 1, err
        return err

    assert "craft fetch needs a folder of recipes" in refused()
    assert "Unknown argument --dry_runn" in refused(TINY, "--dry_runn")
    publish(server, "org/hps", TINY / "rewards" / "hps")
    with pytest.raises(UsageError, match="org/hps on the Hub has no none.json"):
        listed(HubFiles("org/hps", ("none.json",)))
    with pytest.raises(UsageError, match="org/none at v1 cannot be had from the Hub: "):
        listed(HubFiles("org/none", ("*",), "v1"))
    need = Need(*RewardSpec.parse("hpsv2=org/hps").hub_files(), ["rewards"])
    fetch(need, listed(need.files))
    (there,) = (tmp_path / "hub").glob("models--org--hps/snapshots/*/open_clip_model.safetensors")
    there.resolve().write_bytes(b"x" * there.stat().st_size)
    with pytest.raises(UsageError, match="model.safetensors is not what the Hub has: its SHA-256 begins with"):
        fetch(need, listed(need.files))
    assert main(["fetch", str(TINY)]) == 0
    assert capsys.readouterr().out == "[fetch] the run needs nothing from a network\n"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "asks the Hub, and HF_HUB_OFFLINE is set" in refused(TINY)


def test_what_is_loaded_from_where(tmp_path):
    assert RewardSpec.parse("hpsv2").hub_files() == [
        HubFiles("xswu/HPSv2", HPSV2["v2.1"].files, HPSV2["v2.1"].revision)
    ]
    assert [files.repo_id for files in RewardSpec.parse("aesthetic").hub_files()] == [
        "openai/clip-vit-large-patch14",
        "trl-lib/ddpo-aesthetic-predictor",
    ]
    assert RewardSpec.parse("aesthetic=openai/clip-vit-large-patch14").hub_files()[0] == CLIP_L.hub_files
    assert RewardSpec.parse(f"pickscore={tmp_path}").hub_files() == RewardSpec.parse("ocr").hub_files() == []
    assert RewardSpec.parse("mine=http://127.0.0.1:1").hub_files() == []
    assert RewardSpec.parse("geneval").hub_files() == [
        MASK2FORMER.hub_files,
        HubFiles("timm/vit_large_patch14_clip_224.openai", ("open_clip_model.safetensors",)),
    ]
    assert hub_files("ymhao/HPDv2", None, "r") == [
        HubFiles("ymhao/HPDv2", ("train.json", "test.json"), "r", "dataset")
    ]
    assert hub_files("org/name") == [HubFiles("org/name", ("*",), None, "dataset")] and hub_files("p.txt") == []
    assert excluded_files("text=org/a:b.json") == [HubFiles("org/a", ("b.json",), None, "dataset")]
    geneval = BENCHMARKS["geneval"]
    assert excluded_files("geneval") == published_files("geneval") == [WebFile(geneval.sources[0], geneval.sha256)]
    assert published_files("geneval=./copy.jsonl") == []
    assert [files.files for files in published_files("hpdv2-benchmark")] == [
        (f"benchmark/{style}.json",) for style in ("anime", "concept-art", "paintings", "photo")
    ]


def test_an_expander(server, tmp_path):
    """Of a language model its weights in the one form that is read, and what stands beside them."""
    names = ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "README.md", "onnx/model.onnx")
    server.repos["model", "org/lm"] = Repo(files=dict.fromkeys(names, b"{}"), commits=["one"])
    config = {"model_name_or_path": "m", "prompts": "p.txt", "output_dir": "o", "expander": "transformers"}
    files = CandidatesConfig(**config, expander_model="org/lm").expander_files()
    assert [file.name for file in listed(files)] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert CandidatesConfig(**config, expander_model=str(tmp_path)).expander_files() is None
