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


"""`craft transitions` and `craft spo`: from a pool to a model, and what is refused."""

from datasets import load_from_disk

from craft_trl.cli.main import main


def test_from_a_pool_to_a_model(recipes, tmp_path, capsys):
    candidates = str(recipes("candidates", num_prompts=3, batch_size=4, num_inference_steps=2, num_variants=1))
    options = ["--tree_steps", "4", "--first_branch", "2", "--num_branches", "2", "--min_preference", "0"]
    assert main(["transitions", "--config", candidates, *options]) == 2
    assert "groups.jsonl: run `craft expand` first" in capsys.readouterr().err
    for command in ("expand", "generate"):
        assert main([command, "--config", candidates]) == 0
    assert main(["transitions", "--config", candidates, *options]) == 0
    run, out = tmp_path / "runs" / "tiny", capsys.readouterr().out
    transitions = load_from_disk(str(run / "transitions"))
    assert f"3 trees, 30 denoiser passes, {len(transitions)} of at most 6 pairs kept" in out
    assert set(transitions["prompt"]) <= {path["prompt"] for path in load_groups(run)} and set(transitions["t"]) <= {
        251,
        1,
    }
    assert main(["transitions", "--config", candidates, *options]) == 0
    assert "[transitions] done before: 3 trees" in capsys.readouterr().out
    # More is asked of a pair: no tree is drawn again.
    stamps = {path: path.stat().st_mtime_ns for path in (run / "trees").glob("*.safetensors")}
    assert main(["transitions", "--config", candidates, *options[:-1], "0.01"]) == 0
    assert "min_preference was 0.0, is now 0.01" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (run / "trees").glob("*.safetensors")} == stamps

    craft = str(
        recipes("craft", dataset_name=str(run / "transitions"), output_dir="spo", max_steps=1, global_batch_size=2)
    )
    assert main(["spo", "--config", craft]) == 0
    assert "[train] 1 steps on" in capsys.readouterr().out and (tmp_path / "spo" / "model_index.json").exists()
    assert main(["spo", "--config", craft, "--ratio_clip", "2"]) == 2
    assert "ratio_clip must be between 0 and 1, got 2.0" in capsys.readouterr().err


def load_groups(run):
    import json

    return [json.loads(line) for line in (run / "prompts" / "groups.jsonl").read_text().splitlines()]


def test_a_flow_is_refused(recipes, tiny, capsys, tmp_path):
    flow = str(tiny.parent / "tiny_flow" / "pipeline")
    candidates = str(recipes("candidates", model_name_or_path=flow, scheduler="DELETE"))
    craft = str(recipes("craft", model_name_or_path=flow, dataset_name=str(tmp_path)))
    for arguments in (["transitions", "--config", candidates], ["spo", "--config", craft]):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("craft: error: A StableDiffusion3Pipeline is of flow matching") and err.count("\n") == 1
