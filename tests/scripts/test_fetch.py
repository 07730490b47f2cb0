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


"""`craft fetch`: against a Hub on loopback, after which a whole run needs no network."""

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
import torch
import transformers
import yaml

from craft_trl import CraftTrainer
from craft_trl.candidates.config import CandidatesConfig
from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.prompts.benchmarks import BENCHMARKS, WebFile, published_files
from craft_trl.prompts.config import excluded_files
from craft_trl.prompts.loading import hub_files
from craft_trl.rewards import RewardSpec
from craft_trl.rewards.weights import CLIP_L, HPSV2, MASK2FORMER
from craft_trl.scripts.fetch import Need, fetch, listed
from craft_trl.sources import FACTS, HubFiles, model_hash

from ..conftest import ROOT, TINY
from ..expansion.test_local import random_model  # noqa: F401, a fixture
from ..helpers import config, make_dataset
from ..hub_server import WRITER, HubServer, Repo
from ..models import linked, sharded, tuned
from ..pipelines import make_pipeline


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


def test_a_dry_run_lists_and_a_fetch_downloads(run, server, capsys):
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


def always(answer, source, folder):
    """A language model that gives this answer to everything: its next token depends on the last one alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(answer)
    model = transformers.LlamaForCausalLM.from_pretrained(source)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    token, end = tokenizer.convert_tokens_to_ids([answer, "<end>"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_("norm" in name)
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embedding[:, 0], embedding[token, 0], embedding[token, 1] = 1, 0, 1
        head[token, 0] = head[end, 1] = 100
    model.save_pretrained(folder, max_shard_size="100KB")
    tokenizer.save_pretrained(folder)
    return folder


def test_a_whole_run_after_it_without_a_network(run, server, recipes, random_model, tmp_path):  # noqa: F811
    """
    `craft fetch` and, with the server gone, every stage of `craft run`, in processes of their own as users start them, whose
    cache was empty. The base and the language model are in shards. The figures are those of the same run on the files themselves.
    """
    language_model = always('{"variants": ["high quality, sharp", "best quality"]}', random_model, tmp_path / "lm")
    publish(server, "org/lm", language_model)
    pipeline = linked(TINY / "pipeline", tmp_path / "pipeline")
    sharded(pipeline, "unet", "diffusion_pytorch_model")
    publish(server, "org/tiny", pipeline)
    facts = {"base_hash": f"org/tiny@{server.repos['model', 'org/tiny'].sha}"}
    publish(server, "org/tuned", tuned(TINY / "pipeline", tmp_path / "tuned"), **{FACTS: json.dumps(facts)})
    (tmp_path / "tuned" / FACTS).write_text(json.dumps({"base_hash": model_hash(str(pipeline))}))
    base, adapter, trained = yaml.safe_load((run / "evaluate.yaml").read_text())["models"]
    recipes("evaluate", models=[base, adapter, "half=strength:0.5:org/tuned", trained])
    options = ["--filter_level", "image", "--filter_rewards", "aesthetic", "--max_steps", "1", "--warmup_steps", "0"]
    options += ["--learning_rate", "1e-3", "--guard_num_inference_steps", "1"]

    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url}

    def craft(*words, **more):
        command = [sys.executable, "-m", "craft_trl.cli.main", *words, *options]
        process = subprocess.run(command, env=environment | more, capture_output=True, text=True, cwd=tmp_path)
        assert process.returncode == 0 and "offline mode is enabled" not in process.stderr, process.stderr
        return process.stdout

    assert "org/tuned (models)\n" in craft("fetch", str(run))
    server.stop()  # its address is still the Hub's: a request would fail
    said = craft("run", str(run), HF_HUB_OFFLINE="1")
    assert "Verdict: craft " in said

    places = {
        "org/prompts:": f"{TINY}/prompts/tiny-", "org/plain": TINY / "prompts" / "tiny-hpd-train.jsonl",
        "org/tiny": pipeline, "org/vae": TINY / "pipeline" / "vae", "org/hps": TINY / "rewards" / "hps",
        "org/pick": TINY / "rewards" / "pick", "org/aesthetic": TINY / "rewards" / "aesthetic",
        "org/ir": TINY / "evaluators" / "imagereward", "org/lm": language_model, "org/tuned": tmp_path / "tuned",
        "org/lora": ROOT / "tests" / "data" / "run_before_rooms" / "run" / "model",
    }  # fmt: skip
    for recipe in run.glob("*.yaml"):
        text = recipe.read_text()
        for name, place in places.items():
            text = text.replace(name, str(place))
        assert "org/" not in text
        recipe.write_text(text)
    assert main(["run", str(run), "--output_dir", "runs/here", *options]) == 0

    fetched, here = tmp_path / "runs" / "tiny", tmp_path / "runs" / "here"
    compared = [file.relative_to(here) for file in here.rglob("*") if file.suffix in (".safetensors", ".arrow")]
    compared += [file.relative_to(here) for file in here.glob("pool/*.parquet")]
    assert len(compared) > 5 and Path("model", "unet", "diffusion_pytorch_model.safetensors") in compared
    for file in [*compared, Path("prompts", "groups.jsonl"), Path("evaluation", "scores.parquet")]:
        assert (fetched / file).read_bytes() == (here / file).read_bytes(), file
    read = [
        [json.loads((folder / "evaluation" / name).read_text()) for name in ("results.json", "stage.json")]
        for folder in (fetched, here)
    ]
    for rows, _ in read:
        for row in rows:
            del row["settings"], row["scorer"]  # where each model is
    (rows, record), (rows_here, record_here) = read
    assert rows == rows_here and record["summary"]["verdict"] == record_here["summary"]["verdict"]
    deltas = {row["model"]: row["delta"] for row in rows if row["metric"] == "imagereward" and row["part"] is None}
    assert list(deltas) == ["base", "before", "half", "craft"] and deltas["half"] and deltas["craft"], deltas


def test_parts_that_are_saved_and_not_loaded(run, server, recipes, tiny, tmp_path, capsys, monkeypatch):
    """A safety checker is not loaded, and it is part of what a training of all parameters writes."""
    make_pipeline("sd", "epsilon", tiny).save_pretrained(tmp_path / "sd")
    index = json.loads((tmp_path / "sd" / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    parts = {"model_index.json": json.dumps(index), "safety_checker/config.json": "{}"}
    publish(server, "org/sd", tmp_path / "sd", **parts, **{"safety_checker/model.safetensors": "weights"})
    recipes("candidates", model_name_or_path="org/sd", vae_name_or_path="DELETE")
    recipes("craft", model_name_or_path="org/sd")
    recipes("evaluate", models=["base=org/sd", "craft=runs/tiny/model"], vae_name_or_path="DELETE")
    assert main(["fetch", str(run), "--use_peft", "true"]) == 0
    assert "safety_checker/model" not in capsys.readouterr().out

    def trainer(name):
        return CraftTrainer("org/sd", config(tmp_path, name, max_steps=1), make_dataset())

    def offline(value):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", value)

    # Before the training rather than after it, and in a line.
    offline(True)
    with pytest.raises(UsageError, match=r"^All of model org/sd, .*\(safety_checker/model.safetensors\)") as error:
        trainer("early")
    assert "\n" not in str(error.value)
    offline(False)
    assert main(["fetch", str(run)]) == 0
    assert "  safety_checker/model.safetensors, to be downloaded\n" in capsys.readouterr().out
    server.stop()
    offline(True)
    training = trainer("out")
    training.train()
    training.save_model()
    assert (tmp_path / "out" / "safety_checker" / "model.safetensors").read_text() == "weights"


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
