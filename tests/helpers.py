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

"""Small datasets, configurations and candidates that several test files work with."""

import contextlib
import hashlib
import logging

import numpy as np
from PIL import Image as PILImage

from craft_trl.candidates.groups import make_groups


def make_dataset(advantages=(1.0, 0.5, 0.0, -1.0, 2.0, 0.25), size=64):
    """Coloured squares, one per advantage, under three prompts."""
    from datasets import Dataset, Features, Image, Value

    rng = np.random.default_rng(0)
    features = {
        "image": Image(),
        "prompt": Value("string"),
        "expanded_prompt": Value("string"),
        "advantage": Value("float32"),
    }
    prompts = [("a fox", "a red car", "a star")[i % 3] for i in range(len(advantages))]
    return Dataset.from_dict(
        {
            "image": [PILImage.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in advantages],
            "prompt": prompts,
            "expanded_prompt": [f"{prompt}, sharp" for prompt in prompts],
            "advantage": list(advantages),
        },
        features=Features(features),
    )


def config(tmp_path, name="out", **settings):
    from craft_trl import CraftConfig  # here: it imports all of the training, which not every test needs

    defaults = {
        "output_dir": str(tmp_path / name),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return CraftConfig(**{**defaults, **settings})


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


@contextlib.contextmanager
def warnings_of(library):
    """Warnings that a library logs inside, as a list. Those of diffusers and transformers do not reach the root logger."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger(library).addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger(library).removeHandler(handler)


REWARDS = ("hpsv2", "pickscore")


def number(*parts) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


class Draw:
    """Images that depend on text and seed alone, as a real generator's do, and a count of what was asked for."""

    def __init__(self):
        self.batches = []

    def __call__(self, prompts, seeds):
        self.batches.append(len(prompts))
        colors = [number(p, s) for p, s in zip(prompts, seeds, strict=True)]
        return [PILImage.new("RGB", (8, 8), (c % 256, c // 256 % 256, c // 65536 % 256)) for c in colors]


def reward(name, levels=50):
    def score(images, prompts):
        return np.array([number(name, i.getpixel((0, 0)), p) % levels for i, p in zip(images, prompts, strict=True)])

    return score


SCORERS = {name: reward(name) for name in REWARDS}


def groups_of(n, variants):
    prompts = [f"prompt {i}" for i in range(n)]
    return make_groups(prompts, [[f"{p}, v{j}" for j in range(variants)] for p in prompts], seed=5)


def stack(trainer, ks):
    """The samples of a trainer's stream with these numbers, as a batch."""
    import torch

    samples = [trainer.train_dataset[k] for k in ks]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
