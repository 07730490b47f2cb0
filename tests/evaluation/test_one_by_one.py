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


"""An evaluation on a device that holds a model or one judge: the same results, to the bit."""

import gc
import json
import shutil
import weakref

import pyarrow.parquet as pq
import pytest
import torch

from craft_trl.candidates.pool import CandidatePool
from craft_trl.errors import UsageError
from craft_trl.evaluation import evaluate as module
from craft_trl.evaluation.config import EvaluationConfig
from craft_trl.evaluation.evaluate import Evaluation
from craft_trl.scripts.evaluate import main

from .test_evaluation import make_config


SMALL = {"num_prompts": 3, "num_images_per_prompt": 2, "num_bootstrap": 50, "batch_size": 4, "num_inference_steps": 1}


@pytest.fixture
def other(tiny, tmp_path):
    """Another model: the same with another scheduler."""
    copy = shutil.copytree(tiny / "pipeline", tmp_path / "pipeline")
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("epsilon", "v_prediction"))
    return copy


def config(tiny, output_dir, other=None, **settings):
    # Equal models, the second of which has all its images when the first has drawn, unless there is another one.
    models = [f"base={tiny / 'pipeline'}", f"other={other or tiny / 'pipeline'}"]
    rewards = [f"aesthetic={tiny / 'rewards/aesthetic'}", f"pickscore={tiny / 'rewards/pick'}"]
    held_out = [f"all_atoms={tiny / 'inspector.py'}:all_atoms", f"imagereward={tiny / 'evaluators/imagereward'}"]
    settings = {**SMALL, "models": models, "rewards": rewards, "held_out_rewards": held_out, **settings}
    return make_config(tiny, templates=["{prompt}, sharp"], output_dir=str(output_dir), **settings)


@pytest.fixture
def alive(monkeypatch):
    """Who was there at the same time: models that draw, and judges."""
    there, most = weakref.WeakSet(), []

    def noted(load):
        def loaded(*args, **kwargs):
            gc.collect()
            made = load(*args, **kwargs)
            there.add(made)
            most.append(sorted(type(one).__name__ for one in there))
            return made

        return loaded

    monkeypatch.setattr(module, "load_reward", noted(module.load_reward))
    monkeypatch.setattr(module, "ImageGenerator", noted(module.ImageGenerator))
    return most


def rows(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_same_results(tiny, other, tmp_path, capsys, alive):
    # Some images are there already, as of a run with other prompts.
    for name in ("together", "offload"):
        main(config(tiny, tmp_path / name, other, num_prompts=1))
    main(config(tiny, tmp_path / "together", other))
    assert max(map(len, alive)) == 5
    capsys.readouterr()
    alive.clear()
    main(config(tiny, tmp_path / "offload", other, reward_device="offload"))
    assert (
        "[evaluate] the GPU does not hold a model and all judges: images first, then one judge"
        in capsys.readouterr().out
    )
    assert max(map(len, alive)) == 1 and len(alive) == 3 + 4 + 1  # the judge of diversity is loaded again
    assert rows(tmp_path / "together") == rows(tmp_path / "offload")
    # Files too, with the precision in which each image was drawn, and nothing is left that waited.
    files = {
        name: {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*.parquet")}
        for name in ("together", "offload")
    }
    assert files["together"] == files["offload"] and len(files["together"]) > 4
    assert not list(tmp_path.rglob("drawn"))


def test_what_is_drawn_is_not_drawn_again(tiny, tmp_path, monkeypatch):
    """Killed while the judges judge: the images wait."""
    settings = config(tiny, tmp_path / "out", reward_device="offload")
    load, names = module.load_reward, []

    def killed(spec, *args):
        names.append(spec.name)
        if spec.name == "all_atoms":
            raise KeyboardInterrupt
        return load(spec, *args)

    monkeypatch.setattr(module, "load_reward", killed)
    with pytest.raises(KeyboardInterrupt):
        main(settings)
    assert names == ["aesthetic", "pickscore", "all_atoms"]
    drawn = sorted(tmp_path.rglob("drawn/shard-*.parquet"))
    assert len(drawn) == 4 and not list(tmp_path.glob("out/images/*/shard-*"))

    def no_drawing(*args, **kwargs):
        raise AssertionError("drawn again")

    monkeypatch.setattr(module, "load_reward", load)
    monkeypatch.setattr(module, "ImageGenerator", no_drawing)
    main(settings)
    main(config(tiny, tmp_path / "out"))  # and is the same stage, done
    (folder,) = (tmp_path / "out" / "images").iterdir()
    assert (
        len(CandidatePool(folder, ["aesthetic"]))
        == 12
        == sum(pq.ParquetFile(p).metadata.num_rows for p in folder.iterdir())
    )


class TestSettings:
    def test_precision_of_the_judges(self, tiny, tmp_path):
        full, half = (
            Evaluation(config(tiny, tmp_path / "out", **settings)) for settings in ({}, {"reward_dtype": "bfloat16"})
        )
        assert {"dtype" in scorer for scorer in full.scorers.values()} == {False}
        dtypes = {name: scorer.get("dtype") for name, scorer in half.scorers.items()}
        assert dtypes == {
            "aesthetic": "bfloat16", "pickscore": "bfloat16", "all_atoms": None, "imagereward": "bfloat16"
        }  # fmt: skip
        assert half._load("imagereward", "cpu").dtype == torch.bfloat16
        # Images are drawn anew, since they lie with their scores.
        assert {arm.folder for arm in full.arms()}.isdisjoint(arm.folder for arm in half.arms())

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"reward_device": "cuda"}, "reward_device is cuda, and there is no CUDA device here: leave it at auto"),
            (
                {"reward_dtype": "float16", "rewards": [], "held_out_rewards": ["fast=http://127.0.0.1:1"]},
                "reward_dtype is float16, but fast choose their precision themselves: leave it out",
            ),
        ],
    )
    def test_mistakes(self, tiny, settings, message):
        with pytest.raises(UsageError, match=message):
            Evaluation(config(tiny, "out", **settings))

    def test_where_rewards_are_changes_no_settings(self, tiny):
        settings = [Evaluation(config(tiny, "out", reward_device=d)).settings() for d in ("auto", "cpu", "offload")]
        assert settings[0] == settings[1] == settings[2]
        assert "reward_device" in EvaluationConfig.__dataclass_fields__
