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
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.scripts.pick import as_model, name_of

from ..evaluation.test_models import save_lora


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, tiny):
    """An adapter, as a file and as a folder, and a checkpoint that holds its denoiser only."""
    folder = tmp_path_factory.mktemp("checkpoints")
    unet = UNet2DConditionModel.from_pretrained(tiny / "pipeline", subfolder="unet").float()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(0.98)
    unet.save_pretrained(folder / "step-20" / "unet")
    save_lora(UNet2DConditionModel.from_pretrained(tiny / "pipeline", subfolder="unet"), folder / "lora")
    (folder / "mine.safetensors").write_bytes((folder / "lora" / "pytorch_lora_weights.safetensors").read_bytes())
    return folder


def test_what_lies_there(checkpoints, tiny, tmp_path):
    assert as_model(str(checkpoints / "mine.safetensors")) == f"lora:{checkpoints / 'mine.safetensors'}"
    assert as_model(str(checkpoints / "lora")) == f"lora:{checkpoints / 'lora'}"
    assert as_model(str(checkpoints / "step-20")) == f"unet:{checkpoints / 'step-20' / 'unet'}"
    assert as_model(str(tiny / "pipeline")) == str(tiny / "pipeline")
    assert as_model("org/name") == "org/name" and as_model("unet:org/name/unet") == "unet:org/name/unet"
    save_file({"down_blocks.weight": torch.zeros(1)}, tmp_path / "whole.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("whole.safetensors", "is no adapter: it has no LoRA layers. Name a denoiser's weights as unet:"),
        ("broken.safetensors", "cannot be read as weights: it is damaged"),
        ("empty", "holds neither a pipeline (model_index.json), nor a denoiser"),
        ("none.safetensors", "there is no such file or folder"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            as_model(str(tmp_path / name))


def test_names():
    taken = {"base"}
    sources = ["runs/a/model", "runs/b/model", "x/lora 1.safetensors", "base"]
    assert [name_of(s, taken) for s in sources[:3]] == ["model", "b-model", "lora_1"]
    with pytest.raises(UsageError, match="base is named twice, or has the name of the base model"):
        name_of("base", taken)


def test_ranking(checkpoints, recipes, tmp_path, capsys):
    recipes("evaluate", num_prompts=6, models=["base=./pipeline", "other=runs/none"])
    folder = tmp_path / "pick"
    sources = [str(checkpoints / "mine.safetensors"), str(checkpoints / "step-20")]
    arguments = ["--config", str(recipes.folder / "evaluate.yaml"), "--output_dir", str(folder)]
    assert main(["pick", *sources, *arguments]) == 0
    said = capsys.readouterr().out
    lines = said[said.index("By 4 held-out judges (imagereward, alignment, quality, defects)") :].splitlines()
    places = {line.split()[1]: (int(line.split()[0]), float(line.split()[2])) for line in lines[1:4]}
    assert set(places) == {"base", "mine", "step-20"} and places["base"][1] == 0
    assert sorted(places.values()) == sorted(places.values(), key=lambda value: -value[1])
    first = min(places, key=places.get)
    assert lines[4].startswith(f"{first} is ") and "judge it again on other prompts" in lines[4]
    # By hand: one judge's share of it.
    table = pq.read_table(folder / "scores.parquet").to_pandas()
    rows = {
        (r["model"], r["metric"]): r for r in json.loads((folder / "results.json").read_text()) if r["part"] is None
    }
    total = 0.0
    for judge in ("imagereward", "alignment", "quality", "defects"):
        base = table[table.model == "base"].groupby("prompt", sort=False)[judge].mean()
        spread = base.to_numpy().std() if np.ptp(base) > 0 else 1.0
        sign = 1 if rows["base", judge]["higher_is_better"] else -1
        total += sign * rows["mine", judge]["delta"] / spread / 4
    assert places["mine"][1] == pytest.approx(total, abs=6e-4)
    assert not (tmp_path / "runs").exists()  # what the recipe compares otherwise plays no part


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "craft pick needs models before its options"),
        (["org/none.safetensors"], "org/none.safetensors: there is no such file or folder"),
        (["runs/a/pipeline"], "models: "),
    ],
)
def test_mistakes(words, message, recipes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pick", *words, "--config", str(recipes.folder / "evaluate.yaml"), "--output_dir", "o"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("craft: error: ") and err.count("\n") == 1, err
    assert words != [] or message in err


def test_an_adapter_of_another_model(recipes, tmp_path, capsys):
    """Found before anything is drawn."""
    save_file(
        {"unet.nowhere.to_q.lora_A.weight": torch.zeros(2, 32), "unet.nowhere.to_q.lora_B.weight": torch.zeros(32, 2)},
        tmp_path / "foreign.safetensors",
    )
    arguments = ["--config", str(recipes.folder / "evaluate.yaml"), "--output_dir", str(tmp_path / "o")]
    assert main(["pick", str(tmp_path / "foreign.safetensors"), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "foreign.safetensors" in err and not (tmp_path / "o").exists(), err
