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


"""
One process, DDP and ZeRO-1, 2 and 3 on two processes train the same model on the same samples, and what is drawn meanwhile
is the same too.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from craft_trl.cli.main import main
from craft_trl.sources import ADAPTER

from ..processes import ROOT, Program, launch


@pytest.fixture(scope="module")
def workplace(tiny, tmp_path_factory):
    """A folder with a small dataset, and a run of one process to compare with."""
    from craft_trl import (
        CandidatePool,
        FilterConfig,
        ImageGenerator,
        PromptExpander,
        SamplingConfig,
        build_dataset_dict,
        generate_candidates,
        load_prompts,
        make_groups,
    )

    folder = tmp_path_factory.mktemp("distributed")
    prompts = load_prompts(str(tiny / "prompts" / "tiny-hpd-train.jsonl"), num_prompts=6)
    groups = make_groups(prompts, PromptExpander(["{prompt}, sharp", "{prompt}, high quality"])(prompts, 2))
    generator = ImageGenerator(str(tiny / "pipeline"), SamplingConfig(num_inference_steps=2, height=64, width=64))
    brightness = {"r": lambda images, prompts: np.array([np.asarray(image).mean() for image in images])}
    pool = CandidatePool(folder / "pool", brightness)
    generate_candidates(pool, groups, generator, brightness)
    build_dataset_dict(groups, pool, FilterConfig(filter_level="image")).save_to_disk(str(folder / "dataset"))
    (folder / "whiteness.py").write_text(
        "import numpy as np\ndef whiteness(images, prompts): return [np.asarray(i).mean() for i in images]\n"
    )
    arguments = ["--per_device_train_batch_size", "8", *watched(tiny), "--accelerate_config", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *options(tiny, "one", *arguments)]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_workplace(workplace, in_tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)


def watched(tiny) -> list[str]:
    """Options that have images drawn while training: three to watch, which two processes cannot share evenly, and the guard's."""
    return [
        "--validation_prompts", "a fox", "a red car", "a star", "--validation_num_inference_steps", "1",
        "--validation_steps", "4", "--held_out_rewards", "whiteness=whiteness.py:whiteness",
        "--guard_prompts", str(tiny / "prompts" / "tiny-parti.jsonl"), "--guard_num_prompts", "9",
        "--guard_num_images_per_prompt", "1", "--guard_steps", "4", "--guard_num_inference_steps", "1",
        "--guard_stop", "false",
    ]  # fmt: skip


def options(tiny, name, *arguments) -> list[str]:
    return [
        "--model_name_or_path", str(tiny / "pipeline"), "--dataset_name", "dataset", "--output_dir", name,
        "--max_steps", "4", "--global_batch_size", "8", "--lr_scheduler_type", "constant", "--learning_rate", "1e-4",
        "--save_steps", "2", *arguments,
    ]  # fmt: skip


def accelerate_config(mode: str) -> Path | None:
    """The packaged configuration for two processes without GPUs; none for DDP."""
    if mode == "ddp":
        return None
    config = yaml.safe_load((ROOT / "accelerate_configs" / f"{mode}.yaml").read_text())
    config.update(num_processes=2, mixed_precision="no")
    path = Path(f"{mode}.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def train(tiny, mode: str, name: str, *arguments) -> str:
    """Train on two processes and return what they say."""
    return launch(accelerate_config(mode), "train", *options(tiny, name, *arguments)).finish()


def losses(folder: Path, name: str) -> list[float]:
    history = json.loads((folder / name / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def difference(folder: Path, name: str, other: str) -> float:
    a, b = (load_file(folder / n / "unet" / "diffusion_pytorch_model.safetensors") for n in (name, other))
    assert a.keys() == b.keys()
    return max((a[key].float() - b[key].float()).abs().max().item() for key in a)


@pytest.mark.parametrize("mode", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_mode(workplace, tiny, mode):
    # ZeRO-1 alone is not watched: that must not change what is learnt.
    arguments = ["--per_device_train_batch_size", "2", *(watched(tiny) if mode != "zero1" else [])]
    output = train(tiny, mode, mode, *arguments)
    assert output.count("[train] 4 steps") == 1  # said by one process, not by both
    np.testing.assert_allclose(losses(workplace, mode), losses(workplace, "one"), rtol=1e-5)
    # Four steps of AdamW at 1e-4 move a weight by up to 4e-4.
    assert difference(workplace, mode, "one") < 1e-5
    pipeline = StableDiffusionXLPipeline.from_pretrained(workplace / mode)
    assert pipeline("a fox", height=64, width=64, num_inference_steps=1).images[0].size == (64, 64)
    if mode == "zero1":
        return
    for step in (0, 4):
        seen, expected = (measurements(workplace, name)[str(step)] for name in (mode, "one"))
        assert seen.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(seen[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
        a, b = (
            np.asarray(Image.open(workplace / name / "validation" / f"step-{step:05d}.png")).astype(int)
            for name in (mode, "one")
        )
        assert a.shape == (64, 3 * 64, 3) and np.abs(a - b).max() <= 1


def measurements(folder: Path, name: str) -> dict:
    return json.loads((folder / name / "guard" / "measurements.json").read_text())["steps"]


def test_bfloat16(workplace, tiny):
    """The same micro-batches one after the other and side by side: their gradients are added in float32 either way."""
    # Two steps, as a CPU is slow in bfloat16; the loss of the first is before any weight has changed.
    arguments = ["--bf16", "true", "--per_device_train_batch_size", "4", "--max_steps", "2"]
    alone = Program(main, "train", *options(tiny, "one_bf16", *arguments))
    train(tiny, "ddp", "ddp_bf16", *arguments)
    train(tiny, "fsdp2", "fsdp2_bf16", *arguments, "--activation_checkpointing", "true")
    alone.finish()
    np.testing.assert_allclose(losses(workplace, "ddp_bf16"), losses(workplace, "one_bf16"), rtol=1e-5)
    assert difference(workplace, "ddp_bf16", "one_bf16") < 1e-5
    assert abs(losses(workplace, "one_bf16")[0] / losses(workplace, "one")[0] - 1) > 1e-4
    # What FSDP gathers, once more for the backward pass, is what one process casts; where it lies in memory, a CPU rounds its
    # gradients otherwise (cosine .999999), and AdamW makes whole steps of the smallest of them.
    np.testing.assert_allclose(losses(workplace, "fsdp2_bf16")[0], losses(workplace, "one_bf16")[0], rtol=1e-5)
    np.testing.assert_allclose(losses(workplace, "fsdp2_bf16"), losses(workplace, "one_bf16"), rtol=2e-3)
    assert cosine_of_changes(tiny / "pipeline", workplace / "fsdp2_bf16", workplace / "one_bf16") > 0.9, (
        cosine_of_changes(tiny / "pipeline", workplace / "fsdp2_bf16", workplace / "one_bf16")
    )


def cosine_of_changes(base: Path, one: Path, other: Path) -> float:
    """Of what two trainings have changed in the weights."""
    name = "unet/diffusion_pytorch_model.safetensors"
    start, a, b = (load_file(folder / name) for folder in (base, one, other))
    a, b = (np.concatenate([(new[key] - start[key].float()).numpy().ravel() for key in start]) for new in (a, b))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("mode", ["zero2", "zero3", "fsdp2"])
def test_resuming_under_zero_is_exact(workplace, tiny, mode):
    """Training that was killed while it saved step 4, and goes on from step 2, equals training that went through."""
    folder = workplace / mode
    assert folder.exists(), "test_mode has trained it"
    whole = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    record = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps({**record, "finished": False}))
    (folder / "checkpoint-4" / "trainer_state.json").unlink()
    output = train(tiny, mode, mode, "--per_device_train_batch_size", "2", *watched(tiny))
    assert f"goes on from {mode}/checkpoint-2" in output
    resumed = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all((whole[key] == resumed[key]).all() for key in whole)


def test_an_adapter_under_fsdp(workplace, tiny):
    """Killed while it saved step 2, it goes on from step 1 and ends as one process does."""
    arguments = ["--per_device_train_batch_size", "4", "--max_steps", "2", "--save_steps", "1", "--use_peft", "true"]
    alone = Program(main, "train", *options(tiny, "one_lora", *arguments))
    train(tiny, "fsdp2", "fsdp2_lora", *arguments)
    folder = workplace / "fsdp2_lora"
    assert not (folder / "checkpoint-2" / "pytorch_model_fsdp.bin").exists()
    whole = load_file(folder / ADAPTER)
    record = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps({**record, "finished": False}))
    (folder / "checkpoint-2" / "trainer_state.json").unlink()
    assert "goes on from fsdp2_lora/checkpoint-1" in train(tiny, "fsdp2", "fsdp2_lora", *arguments)
    alone.finish()
    resumed, expected = load_file(folder / ADAPTER), load_file(workplace / "one_lora" / ADAPTER)
    assert whole.keys() == resumed.keys() == expected.keys()
    assert all((whole[key] == resumed[key]).all() for key in whole)
    # Two steps of AdamW at 1e-4 move a weight by up to 2e-4.
    assert max((expected[key] - resumed[key]).abs().max().item() for key in expected) < 1e-5


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, ["--use_ema", "true"], "use_ema needs whole parameters, and FSDP shards them: use ZeRO-2."),
        ({"fsdp_version": 1, "fsdp_reshard_after_forward": "FULL_SHARD"}, [], "fsdp_version must be 2, got 1"),
        ({"fsdp_state_dict_type": "SHARDED_STATE_DICT"}, [], "fsdp_state_dict_type must be FULL_STATE_DICT"),
        ({"fsdp_cpu_ram_efficient_loading": True}, [], "fsdp_cpu_ram_efficient_loading must be false, got true"),
    ],
)
def test_what_fsdp_cannot(tiny, settings, arguments, message):
    path = accelerate_config("fsdp2")
    config = yaml.safe_load(path.read_text())
    config["fsdp_config"].update(settings)
    path.write_text(yaml.safe_dump(config))
    output = launch(path, "train", *options(tiny, "refused", *arguments)).finish(1)
    assert output.count(f"craft: error: {message}") == 1 and "Encoding" not in output
