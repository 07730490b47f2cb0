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


"""A run that is killed with -9 in each of its stages and started again ends with what an undisturbed run ends with."""

import json
import time
from pathlib import Path

from safetensors.torch import load_file

from craft_trl.cli.main import main

from ..processes import Program


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_killed_in_every_stage(recipes, tmp_path):
    recipes("candidates", num_prompts=8, batch_size=4)
    recipes("craft", max_steps=6, save_steps=2)
    Program(main, "run", recipes.folder, "--output_dir", "runs/whole").finish()

    killed = tmp_path / "runs" / "killed"
    moments = {
        "expand": lambda: (killed / "prompts").exists(),
        "generate": lambda: len(list((killed / "pool").glob("shard-*.parquet"))) >= 2,
        "filter": lambda: (killed / ".dataset.tmp").exists(),
        "train": lambda: (killed / "model" / "checkpoint-2" / "trainer_state.json").exists(),
        "evaluate": lambda: any((killed / "evaluation" / "images").glob("*/shard-*.parquet")),
    }
    for stage, moment in moments.items():
        program = Program(main, "run", recipes.folder, "--output_dir", "runs/killed")
        while not moment():
            assert program.is_alive(), f"ended before it could be killed in {stage}: {program.output}"
            time.sleep(0.0005)
        program.kill()
        program.finish(-9)
    output = Program(main, "run", recipes.folder, "--output_dir", "runs/killed").finish()
    assert output.count("done before") == 4 and "Verdict: " in output

    whole = tmp_path / "runs" / "whole"
    assert files(whole / "dataset") == files(killed / "dataset")
    unet = "model/unet/diffusion_pytorch_model.safetensors"
    expected, got = load_file(whole / unet), load_file(killed / unet)
    assert all((expected[name] == got[name]).all() for name in expected)
    assert json.loads((whole / "evaluation/results.json").read_text()) == json.loads(
        (killed / "evaluation/results.json").read_text()
    )
    leftovers = [p for p in killed.rglob("*") if p.name.endswith(".tmp") and p.is_file()]
    assert len(leftovers) <= len(moments)
