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


"""`craft run recipes/tiny_flow`, in small: the whole of CRAFT on a rectified flow, and what it writes draws in diffusers."""

import json

import torch
from diffusers import StableDiffusion3Pipeline

from craft_trl.cli.main import main

from ..processes import ROOT


def test_from_start_to_finish(in_tmp_path, tmp_path, capsys):
    arguments = [
        "run", str(ROOT / "recipes" / "tiny_flow"), "--candidates.num_prompts", "6", "--candidates.num_inference_steps",
        "2", "--evaluate.num_inference_steps", "2",
        "--filter_level", "image", "--filter_rewards", "aesthetic", "--train.max_steps", "2", "--global_batch_size", "4",
        "--per_device_train_batch_size", "4", "--warmup_steps", "0", "--guard_num_prompts", "8", "--guard_num_inference_steps",
        "2", "--evaluate.num_prompts", "8",
    ]  # fmt: skip
    assert main(arguments) == 0
    assert "Verdict: craft " in capsys.readouterr().out
    rows = json.loads((tmp_path / "runs/tiny_flow/evaluation/results.json").read_text())
    assert {row["metric"] for row in rows} >= {
        "hpsv2",
        "pickscore",
        "aesthetic",
        "imagereward",
        "alignment",
        "defects",
    }
    assert any(row["delta"] for row in rows if row["model"] == "craft")

    # diffusers (0.42) raises for a folder that says that parts are not there, unless it is told so too.
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "runs/tiny_flow/model", **absent)
    base = StableDiffusion3Pipeline.from_pretrained(ROOT / "recipes/tiny_flow/pipeline", **absent)
    trained, untrained = pipeline.transformer.state_dict(), base.transformer.state_dict()
    assert any(not torch.equal(trained[name], value.float()) for name, value in untrained.items())
    assert pipeline("a fox", height=64, width=64, num_inference_steps=2, max_sequence_length=0).images[0].size == (
        64,
        64,
    )
    assert "text_encoder_3=None, tokenizer_3=None" in (tmp_path / "runs/tiny_flow/model/README.md").read_text()
