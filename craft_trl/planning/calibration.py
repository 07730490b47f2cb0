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

"""A short real run of a recipe's own model and rewards on this machine: how fast its work goes here."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import datasets
import torch
from datasets import Dataset, Features, Value
from peft import LoraConfig
from PIL import Image
from transformers import PrinterCallback, TrainerCallback

from ..candidates.generation import ImageGenerator
from ..candidates.pool import CandidatePool
from ..devices import accelerator, default_device
from ..evaluation.models import load_drawing
from ..rewards import score
from ..trainer.arguments import training_parser
from ..trainer.craft_config import CraftConfig
from ..trainer.craft_trainer import CraftTrainer
from ..trainer.training_samples import encode_dataset
from .planner import Planner, Rates
from .recipes import RunRecipes


T = TypeVar("T")


def calibrate(planner: Planner) -> Rates:
    """
    Measure what [`Planner.assumed_rates`] assumes: a batch of candidates, its scores, and a step of training.

    Each is done twice and the second time counts, since the first one loads, allocates and compiles.

    Args:
        planner ([`Planner`]):
            The plan, with the operations that the work takes.
    """
    recipes, config = planner.recipes, planner.recipes.candidates
    device, size = default_device(), config.batch_size
    prompts, _ = config.load_prompts(config.seed)
    prompts = (prompts * size)[:size]

    images, seconds, loading = draw(planner, prompts, device)
    sampling = size * planner.image_flops / seconds

    rewards, rewards_loading = timed(lambda: {spec.name: spec.load(device) for spec in planner.rewards})
    scoring = scoring_seconds(rewards, images, prompts)
    rewards.clear()
    judges, judges_loading = timed(
        lambda: {name: spec.load(device) for name, spec in planner.evaluation.specs.items()}
    )
    # Under prompts of its own: a benchmark knows no others.
    for name, judge in judges.items():
        if planner.evaluation.specs[name].needs:
            judge.metadata = planner.evaluation.prompt_rows
    judging = scoring_seconds(judges, images, (planner.evaluation.prompts * size)[:size])
    judges.clear()

    known = planner.judging.score_flops
    encoding, step, saving, train_loading = training_seconds(recipes, planner.training.lora, images, prompts)
    return Rates(
        sampling=sampling,
        scoring=scoring,
        judging=judging,
        encoding=encoding,
        training=recipes.training.global_batch_size * planner.training.flops / step,
        storing=storing_seconds(images),
        saving=planner.model_bytes / saving,
        watching=judging * planner.watching.judge_flops / known if known else 0.0,
        loading={
            "generate": loading + rewards_loading,
            "train": train_loading,
            "evaluate": len(planner.evaluation.config.model_specs) * loading + judges_loading,
        },
    )


def draw(planner: Planner, prompts: list[str], device: torch.device) -> tuple[list[Image.Image], float, float]:
    """A batch of candidates, the seconds it took, and those of loading the model."""
    config = planner.recipes.candidates
    generator, loading = timed(lambda: ImageGenerator(load_drawing(config), config, config.model_revision, device))
    generator.config = dataclasses.replace(config, num_inference_steps=2)
    generator(prompts, range(len(prompts)))
    generator.config = config
    generator.encoded.clear()  # every prompt of the run is encoded once
    images, seconds = timed(lambda: generator(prompts, range(len(prompts))))
    return images, seconds, loading


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Result of some work and the seconds it took, the GPU's included."""
    start = time.perf_counter()
    result = work()
    if accelerator() is not None:
        torch.accelerator.synchronize()
    return result, time.perf_counter() - start


def scoring_seconds(rewards: dict, images: list[Image.Image], prompts: list[str]) -> float:
    """Seconds per image. The first pass remembers the prompts, as those of a group are but once encoded."""
    score(rewards, images, prompts)
    return timed(lambda: score(rewards, images, prompts))[1] / len(images)


def storing_seconds(images: list[Image.Image]) -> float:
    """Seconds per image of writing a shard."""
    keys = [("a prompt", "a prompt", seed) for seed in range(len(images))]
    with tempfile.TemporaryDirectory() as folder:
        pool = CandidatePool(folder, [])
        return timed(lambda: pool.write(0, keys, images, {}))[1] / len(images)


class _StepTimes(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if accelerator() is not None:
            torch.accelerator.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def training_seconds(
    recipes: RunRecipes, lora: LoraConfig | None, images: list[Image.Image], prompts: list[str]
) -> tuple[float, float, float, float]:
    """
    Seconds of encoding an image, of an optimizer step of the recipe's global batch, of saving the model, and of getting
    ready.
    """
    features = {"image": datasets.Image(), "prompt": Value("string"), "expanded_prompt": Value("string")}
    dataset = Dataset.from_dict(
        {"image": images, "prompt": prompts, "expanded_prompt": prompts, "advantage": [1.0] * len(images)},
        features=Features({**features, "advantage": Value("float32")}),
    )
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["--max_steps", "2", "--output_dir", folder, "--save_strategy", "no", "--disable_tqdm", "True"]
        overrides += ["--report_to", "none", "--warmup_steps", "0"]
        argv = [*recipes.train_argv, *overrides]
        train_args, training_args, _ = training_parser(CraftConfig).parse_args_and_config(argv)
        callback = _StepTimes()
        trainer, getting_ready = timed(
            lambda: CraftTrainer(
                train_args.model_name_or_path,
                training_args,
                dataset,
                revision=train_args.model_revision,
                peft_config=lora,
                callbacks=[callback],
            )
        )
        trainer.remove_callback(PrinterCallback)
        encoding = encoding_seconds(trainer, dataset, Path(folder) / "again.safetensors")
        trainer.train()
        _, saving = timed(trainer.save_model)
    return encoding / len(images), callback.seconds[-1], saving, max(getting_ready - encoding, 0.0)


def encoding_seconds(trainer: CraftTrainer, dataset: Dataset, path: Path) -> float:
    """Seconds of encoding a dataset that the trainer has encoded before, while it got ready."""
    frozen = trainer.load_frozen().to(trainer.args.device)
    options = trainer.args.max_sequence_length, trainer.args.train_guidance_scale
    return timed(lambda: encode_dataset(dataset, "prompt", trainer.family, lambda: frozen, path, "again", *options))[1]
