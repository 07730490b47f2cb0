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
import json
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from craft_trl.candidates.config import CandidatesConfig, SamplingConfig
from craft_trl.candidates.sizes import image_size, native_size
from craft_trl.errors import UsageError
from craft_trl.rewards.config import ScoringConfig
from craft_trl.scripts.expand import main as expand
from craft_trl.scripts.generate import begin, check, main, make_parser, make_stage


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


def test_every_setting(tiny, model, vae, tmp_path):
    adapter = tmp_path / "adapter.safetensors"
    adapter.write_bytes(b"layers")
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
        "guidance_cutoff": (0.5, "sampling.guidance_cutoff was null, is now 0.5"),
        "timestep_spacing": ("trailing", 'sampling.timestep_spacing was null, is now "trailing"'),
        "cache_interval": (3, "sampling.cache_interval was null, is now 3"),
        "draft_adapter": (adapter, "sampling.draft_adapter was null"),
        "negative_prompt": ("blurry", 'sampling.negative_prompt was null, is now "blurry"'),
        "height": (128, "sampling.height was 64, is now 128"),
        "width": (128, "sampling.width was 64, is now 128"),
        "dtype": ("bfloat16", 'sampling.dtype was "float32", is now "bfloat16"'),
        "vae_name_or_path": (vae, "sampling.vae_name_or_path was null"),
        "max_sequence_length": (77, "sampling.max_sequence_length was null, is now 77"),
        "reward_dtype": ("bfloat16", "rewards.hpsv2 was"),
    }  # fmt: skip
    same = {
        "prompts": tiny / "prompts" / "tiny-hpd-train.jsonl", "num_prompts": 5, "num_variants": 1, "seed": 7,
        "group_seeds": "distinct", "seed_by": "prompt", "filter_level": "image", "filter_rewards": "hpsv2", "generate_all": True,
        "target_groups": 3, "scale_rewards": "none", "reward_weights": "1 2 3", "advantage_eps": 1.0,
        "batch_size": 3, "torch_compile": True, "num_processes": 2, "templates": "a{prompt}",
        "reward_device": "offload",
    }  # fmt: skip
    make_stage(parse(tiny)).begin()
    for name, case in other.items():
        if case is not None:
            value, message = case
            assert message in make_stage(parse(tiny, **{name: value})).difference(), name
    for name, value in same.items():
        assert make_stage(parse(tiny, **{name: value})).difference() is None, name
    # An option that is in neither list has not been thought about.
    assert {field.name for part in (SamplingConfig, ScoringConfig) for field in dataclasses.fields(part)} <= {
        *other,
        *same,
    }


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
        (
            {"target_groups": 281},
            "target_groups is 281, but num_prompts is 280, and each makes one group: lower the one",
        ),
        ({"guidance_rescale": 2.0}, "guidance_rescale must be from 0 to 1, got 2.0"),
        ({"vae_name_or_path": "./nowhere"}, "no folder with the config.json of a VAE, and no Hub id org/name"),
    ],
)
def test_mistakes(tiny, options, message):
    with pytest.raises(UsageError, match=message):
        parse(tiny, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_device": "cuda"}, "reward_device is cuda, and there is no CUDA device here: leave it at auto"),
        ({"reward_device": "gpu"}, "invalid choice: 'gpu'"),
        ({"reward_dtype": "half"}, "invalid choice: 'half'"),
        (
            {"reward_dtype": "float16", "rewards": "mine=math:sqrt"},
            "reward_dtype is float16, but mine choose their precision themselves: leave it out",
        ),
    ],
)
def test_mistakes_of_rewards(tiny, options, message):
    with pytest.raises(UsageError, match=message):
        check(parse(tiny, **options))


def test_room_on_the_disk(tiny, vae, monkeypatch):
    """For images of the model's own size, a PNG of 1.6 bytes a pixel, and as many as early rejection leaves."""
    asked = []
    monkeypatch.setattr("craft_trl.scripts.generate.check_writable", lambda folder, size=0: asked.append(size))
    monkeypatch.setattr("craft_trl.scripts.generate.draw", lambda *args, **kwargs: None)
    config = parse(tiny, num_prompts=5)
    expand(config)
    for size, pixels in (((64, 64), 64 * 64), ((None, None), 64 * 64), ((None, 128), 64 * 128)):
        config.height, config.width = size
        asked.clear()
        shutil.rmtree("runs/tiny/pool", ignore_errors=True)
        main(config)
        assert asked[-1] == pytest.approx(5 * 3 * pixels * 1.6)


def test_size_of_a_model(tiny, tmp_path):
    """From its configuration, as its pipeline has it."""
    assert native_size(str(tiny / "pipeline")) == (64, 64)
    copy = shutil.copytree(tiny / "pipeline", tmp_path / "model")
    for sample_size, size in ((64, (256, 256)), ([96, 32], (384, 128))):
        path = copy / "unet" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": sample_size}))
        assert native_size(str(copy)) == size
    # A single file has the size that lies beside it, else that of its architecture.
    names = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}
    save_file(names, copy / "m.safetensors")
    assert native_size(str(copy / "m.safetensors")) == (384, 128)
    (copy / "model_index.json").unlink()
    assert native_size(str(copy / "m.safetensors")) == (512, 512)
    embeds_size = {"model.diffusion_model.label_emb.0.0.weight": torch.ones(1)}  # which SDXL alone does
    save_file(names | embeds_size, copy / "m.safetensors")
    assert native_size(str(copy / "m.safetensors")) == (1024, 1024)
    assert image_size(SamplingConfig(height=8), str(tiny / "pipeline")) == (8, 64)
