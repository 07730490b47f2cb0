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

"""Processes that work together: each encodes its share, gradients meet in float32, and what ends one of them ends all."""

import hashlib
import re
import time
from pathlib import Path

import pytest
import yaml

from craft_trl import CraftTrainer
from craft_trl.scripts.train import load_training_data, make_parser

from ..helpers import make_dataset
from ..pipelines import make_pipeline
from ..processes import ROOT, launch


FROM_WITHIN = Path(__file__).parent / "from_within.py"


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A small model, and a dataset of which two processes have unequal shares."""
    folder = tmp_path_factory.mktemp("together")
    make_pipeline("sd", "epsilon", tiny).save_pretrained(folder / "model")
    make_dataset([1.0, 0.5, 2.0, 0.25, 1.5]).save_to_disk(str(folder / "dataset"))
    return folder


def options(folder, output_dir, *arguments) -> list[str]:
    return [
        "--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "dataset"), "--output_dir", output_dir,
        "--max_steps", "2", "--global_batch_size", "8", "--per_device_train_batch_size", "2", "--save_strategy", "no",
        "--lr_scheduler_type", "constant", *arguments,
    ]  # fmt: skip


def test_shares_and_buckets(folder, tmp_path):
    output = launch(None, *options(folder, "two"), script=FROM_WITHIN).finish()

    # What two processes encoded is what one encodes, to the byte.
    train_args, args, _ = make_parser().parse_args_and_config(options(folder, "one"))
    alone = CraftTrainer(train_args.model_name_or_path, args, load_training_data(train_args)).encoded
    assert f"encoded {hashlib.sha256(alone.read_bytes()).hexdigest()}\n" in output
    assert "beside it ['encoded.safetensors']" in output

    # Of the two micro-batches of a step the first adds to gradients of its own; the last moves them into DDP's buckets.
    lines = re.findall(r"synchronised (\w+): gradients in (\w+ ?\w*)", output)
    assert lines == [("False", "their own"), ("True", "buckets")] * 2


def test_deepspeed_sums_in_float32(folder, tmp_path):
    config = yaml.safe_load((ROOT / "accelerate_configs" / "zero2.yaml").read_text())
    (tmp_path / "zero.yaml").write_text(yaml.safe_dump(config | {"num_processes": 2, "mixed_precision": "bf16"}))
    arguments = options(folder, "zero", "--bf16", "true", "--max_steps", "1")
    output = launch(tmp_path / "zero.yaml", *arguments, script=FROM_WITHIN).finish()
    assert "sums in torch.float32 over torch.bfloat16" in output


def test_an_error_on_one_process_ends_both(folder, tiny, tmp_path):
    """A judge that only the main process asks, while the other one waits for what it says."""
    (tmp_path / "judge.py").write_text(
        "from craft_trl.errors import UsageError\n"
        "def absent(images, prompts): raise UsageError('The judge is not here.')\n"
    )
    arguments = [
        "--held_out_rewards", "quality=judge.py:absent", "--guard_prompts", str(tiny / "prompts" / "tiny-parti.jsonl"),
        "--guard_num_prompts", "8", "--guard_num_images_per_prompt", "1", "--guard_num_inference_steps", "1",
    ]  # fmt: skip
    start = time.monotonic()
    output = launch(None, "train", *options(folder, "broken", *arguments)).finish(1)
    assert output.count("craft: error: The judge is not here.\n") == 1 and "TimeoutError" not in output
    assert time.monotonic() - start < 300  # the time limit is seven days; most of this is the start of two processes
