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

"""Which settings make a pool another one, and which only ask for more of it."""

import dataclasses
import shutil
import subprocess
import sys
import textwrap

import pytest

from craft_trl.candidates.config import CandidatesConfig, SamplingConfig
from craft_trl.errors import UsageError
from craft_trl.scripts.generate import begin, make_parser, make_stage


def parse(tiny, **options) -> CandidatesConfig:
    argv = [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]
    config, _ = make_parser().parse_args_and_config(["--config", str(tiny / "candidates.yaml"), *argv])
    return config


@pytest.fixture
def vae(tiny, tmp_path):
    return shutil.copytree(tiny / "pipeline" / "vae", tmp_path / "vae")


@pytest.fixture
def model(tiny, tmp_path):
    """The same model with another scheduler."""
    copy = shutil.copytree(tiny / "pipeline", tmp_path / "model")
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("epsilon", "v_prediction"))
    return copy


def test_every_setting(tiny, model, vae):
    folder = tiny / "rewards"
    rewards = f"hpsv2={folder / 'hps'} pickscore={folder / 'hps'} aesthetic={folder / 'aesthetic'}"
    other = {
        "model_name_or_path": (model, "model was"),
        "model_revision": None,  # of a model on the Hub
        "rewards": (rewards, "rewards.pickscore was"),
        "scheduler": ("DDIMScheduler", "sampling.scheduler was"),
        "num_inference_steps": (11, 'sampling.num_inference_steps was 10, is now 11'),
        "guidance_scale": (3.0, "sampling.guidance_scale was 2.0, is now 3.0"),
        "guidance_rescale": (0.5, "sampling.guidance_rescale was null, is now 0.5"),
        "negative_prompt": ("blurry", 'sampling.negative_prompt was null, is now "blurry"'),
        "height": (128, "sampling.height was 64, is now 128"),
        "width": (128, "sampling.width was 64, is now 128"),
        "dtype": ("bfloat16", 'sampling.dtype was "float32", is now "bfloat16"'),
        "vae_name_or_path": (vae, "sampling.vae_name_or_path was null"),
    }  # fmt: skip
    same = {
        "prompts": tiny / "prompts" / "tiny-hpd-train.jsonl", "num_prompts": 5, "num_variants": 1, "seed": 7,
        "group_seeds": "distinct", "seed_by": "prompt", "filter_level": "image", "filter_rewards": "hpsv2", "generate_all": True,
        "target_groups": 3, "scale_rewards": "none", "reward_weights": "1 2 3", "advantage_eps": 1.0,
        "batch_size": 3, "torch_compile": True, "num_processes": 2, "templates": "a{prompt}",
    }  # fmt: skip
    make_stage(parse(tiny)).begin()
    for name, case in other.items():
        if case is not None:
            value, message = case
            assert message in make_stage(parse(tiny, **{name: value})).difference(), name
    for name, value in same.items():
        assert make_stage(parse(tiny, **{name: value})).difference() is None, name
    # An option that is in neither list has not been thought about.
    assert {field.name for field in dataclasses.fields(SamplingConfig)} <= {*other, *same}


def test_a_pool_in_use_is_not_set_aside(tiny):
    stage = make_stage(parse(tiny))
    stage.begin()
    script = """
        import sys
        from craft_trl.candidates.pool import CandidatePool
        pool = CandidatePool(sys.argv[1], [])
        print(pool.claim(("a fox", "a fox", 1)), flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(stage.folder)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "True\n"
    changed = make_stage(parse(tiny, num_inference_steps=3))
    with pytest.raises(UsageError, match="another process is filling it under other settings"):
        begin(changed, set_aside=True)
    begin(stage, set_aside=True)
    other.communicate()
    begin(changed, set_aside=True)
    assert (stage.folder.parent / "set_aside").is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_groups": 0}, "target_groups must be at least 1, got 0"),
        ({"num_processes": 0}, "num_processes must be at least 1, got 0"),
        ({"target_groups": 3, "filter_level": "image"}, "target_groups is 3, but groups pass or fail only under"),
        ({"target_groups": 3, "generate_all": True}, "leave one of them out"),
        ({"guidance_rescale": 2.0}, "guidance_rescale must be from 0 to 1, got 2.0"),
        ({"vae_name_or_path": "./nowhere"}, "no folder with the config.json of a VAE, and no Hub id org/name"),
    ],
)
def test_mistakes(tiny, options, message):
    with pytest.raises(UsageError, match=message):
        parse(tiny, **options)
