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

"""A comparison that was killed with -9 and goes on with two processes ends with the numbers of an undisturbed one."""

import json
import time
from pathlib import Path

import pyarrow.parquet as pq

from craft_trl.cli.main import main

from ..processes import Program, launch


def arguments(tiny: Path, output_dir: str) -> list[str]:
    return [
        "--models", f"base={tiny / 'pipeline'}", "--templates", "{prompt}, sharp",
        "--prompts", str(tiny / "prompts" / "tiny-parti.jsonl"), "--num_prompts", "4", "--num_images_per_prompt", "2",
        "--rewards", f"aesthetic={tiny / 'rewards/aesthetic'}", f"clipscore={tiny / 'rewards/pick'}",
        "--held_out_rewards", f"quality={tiny / 'inspector.py'}:quality",
        "--num_inference_steps", "2", "--height", "64", "--width", "64", "--batch_size", "2", "--num_bootstrap", "50",
        "--output_dir", output_dir,
    ]  # fmt: skip


def test_killed_and_sharded(tiny, tmp_path):
    assert main(["evaluate", *arguments(tiny, "whole")]) == 0
    killed = Program(main, "evaluate", *arguments(tiny, "killed"))
    while not any((tmp_path / "killed" / "images").glob("*/shard-*.parquet")):
        assert killed.is_alive(), killed.output
        time.sleep(0.001)
    killed.kill()
    killed.finish(-9)
    assert not (tmp_path / "killed" / "results.json").exists()
    output = launch(None, "evaluate", *arguments(tiny, "killed")).finish()
    assert output.count("Verdict: ") == 1  # said by one process, not by both
    assert "(2 of 2)" in output

    rows = {name: json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed")}
    assert rows["whole"] == rows["killed"]
    assert {row["metric"] for row in rows["whole"]} >= {"clipscore", "diversity_aesthetic", "diversity_pixels"}
    tables = [pq.read_table(tmp_path / name / "scores.parquet") for name in rows]
    assert tables[0].equals(tables[1])


def test_started_by_craft(tiny, tmp_path, capfd):
    """`craft evaluate --num_processes 2` starts both processes itself, and what is wrong is told once, by none of them."""
    arguments_ = ["evaluate", *arguments(tiny, "both"), "--num_processes", "2"]
    assert main([*arguments_, "--group_by", "nothing"]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert main(arguments_) == 0
    output = capfd.readouterr()
    assert output.out.count("Verdict: ") == 1 and "(2 of 2)" in output.err
    assert main(["evaluate", *arguments(tiny, "one")]) == 0
    rows = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "both")]
    assert rows[0] == rows[1]
    tables = [pq.read_table(tmp_path / name / "scores.parquet") for name in ("one", "both")]
    assert tables[0].equals(tables[1])
