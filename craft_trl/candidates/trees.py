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

"""Trees of transitions: how a model goes on from the same noisy latents, and what its rewards say of each way."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

from ..arithmetic import exact_float32
from ..errors import UsageError
from ..noise import DiffusionNoise
from ..progress import progress_bar
from ..rewards import Reward, lower_is_better
from ..stages import write_atomically
from .generation import ImageGenerator
from .loading import make_scheduler
from .storing import part_size, score_batch
from .tree_config import TreeConfig, tree_file
from .turns import Turns


class Tree(NamedTuple):
    """
    A walk through noise levels with its branches.

    Args:
        timesteps, next_timesteps (`torch.Tensor` of shape `(S,)`, int64):
            Of each of the S steps that branch: noise levels before it and after it.
        latents (`torch.Tensor` of shape `(S, C, h, w)`, float16):
            What the walk was at before the step.
        branches (`torch.Tensor` of shape `(S, K, C, h, w)`, float16):
            What was drawn from that. One of them is where the walk went on.
        images (`list[list[PIL.Image.Image]]`):
            Of each step and branch, the image that the model sees in it.
        end (`PIL.Image.Image`):
            The image that the walk came to.
        evaluations (`int`):
            Samples that went through the denoiser.
    """

    timesteps: torch.Tensor
    next_timesteps: torch.Tensor
    latents: torch.Tensor
    branches: torch.Tensor
    images: list[list[Image.Image]]
    end: Image.Image
    evaluations: int


@torch.no_grad()
@exact_float32()
def draw_tree(generator: ImageGenerator, config: TreeConfig, prompt: str, seed: int) -> Tree:
    """
    A tree of transitions of SPO (https://huggingface.co/papers/2406.04314), a walk of DDIM with `eta = 1`.

    From a step on, several next latents are drawn from the same ones. What the denoiser sees in each, its `x0-hat` with guidance,
    is decoded, to be judged; and one of them, drawn at random, is where the walk goes on, so that nothing is computed twice.
    The last step ends at timestep 0 and not in the clean image: that step would have no chance in it.

    A tree goes through the denoiser by itself, so that it depends on prompt and seed alone. Chance is keyed by seed and step.
    Latents are rounded to 16 bits where they are drawn, and the walk goes on from that, so that what is kept is what was.
    """
    walk = _Walk(generator, prompt)
    pipeline, family = generator.pipeline, generator.family
    levels = noise_levels(generator, config)
    process = DiffusionNoise(pipeline.scheduler.config)
    factor = family.pixels_per_latent(pipeline.vae.config)
    shape = family.latent_channels(pipeline.vae.config), generator.height // factor, generator.width // factor
    # As the pipeline draws the start of the image of this seed.
    states = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
    rows, images, chosen = [], [], 0
    for step, (level, lower) in enumerate(zip(levels, levels[1:], strict=False)):
        level, lower = torch.tensor([level]), torch.tensor([lower])
        predictions = walk.predict(states, level)  # (K, C, h, w), of all branches of the step before
        if len(states) > 1:
            seen, _ = process.implied(states, predictions, level)
            images.append(walk.decode(seen))
        mean = process.transition(states[[chosen]], predictions[[chosen]], level, lower)
        rng = np.random.default_rng((seed, step))
        count = config.num_branches if step >= config.first_branch else 1
        noise = torch.from_numpy(rng.standard_normal((count, *shape), dtype=np.float32))
        branches = (mean + process.transition_std(level, lower) * noise).half()  # (K, C, h, w)
        if not branches.isfinite().all():
            raise UsageError(
                f"A step of {prompt!r} from seed {seed} is no number in {generator.config.dtype}: draw in float32."
            )
        if count > 1:
            rows.append((level, lower, states[[chosen]].half(), branches[None]))
        states, chosen = branches.float(), int(rng.integers(count))
    images.append(walk.decode(states))
    timesteps, next_timesteps, latents, branches = map(torch.cat, zip(*rows, strict=True))
    return Tree(timesteps, next_timesteps, latents, branches, images, images[-1][chosen], walk.evaluations)


def noise_levels(generator: ImageGenerator, config: TreeConfig) -> list[int]:
    """The timesteps of DDIM, from the highest on, and 0, where the last step ends."""
    pipeline = generator.pipeline
    own = {"_class_name": type(pipeline.scheduler).__name__, **pipeline.scheduler.config}
    scheduler = make_scheduler("DDIMScheduler", own, generator.config.timestep_spacing)
    scheduler.set_timesteps(config.tree_steps)
    levels = [int(t) for t in scheduler.timesteps if t > 0] + [0]
    if config.first_branch >= len(levels) - 1:  # where the scheduler's last timestep is 0
        raise UsageError(
            f"first_branch is {config.first_branch}, and there are {len(levels) - 1} steps: none would branch."
        )
    return levels


class _Walk:
    """What the denoiser says on a walk for a prompt, and what its pipeline shows of it."""

    def __init__(self, generator: ImageGenerator, prompt: str):
        self.generator, self.prompt, self.evaluations = generator, prompt, 0
        denoiser = self.denoiser = getattr(generator.pipeline, generator.family.denoiser)
        positive, negative = generator._encode([prompt], 1)
        self.scale = generator.config.guidance_scale
        self.texts = [positive] if generator.family.calls(self.scale) == 1 else [negative, positive]
        size = generator.height, generator.width
        self.image = generator.family.image_conditioning(denoiser.config, *size, self.scale)

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The prediction with guidance, on the CPU in float32, `(K, C, h, w)`, of latents of this shape."""
        family, device, dtype = self.generator.family, self.denoiser.device, self.denoiser.dtype
        count = len(self.texts) * len(latents)
        conditioning = {name: value.expand(count, *value.shape) for name, value in self.image.items()}
        for name in self.texts[0]:
            texts = [text[name].expand(len(latents), *text[name].shape[1:]) for text in self.texts]
            conditioning[name] = torch.cat(texts)
        conditioning = {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in conditioning.items()}
        noisy = torch.cat([latents] * len(self.texts)).to(device, dtype)
        said = family.predict(self.denoiser, noisy, timestep.expand(count).to(device), conditioning).float().cpu()
        self.evaluations += count
        return guided(said, len(self.texts), self.scale)

    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        generator = self.generator
        pixels, broken = generator._decode_all(latents.to(self.denoiser.device))
        if any(broken):
            raise UsageError(
                f"What the model sees on its way to {self.prompt!r} is broken: no numbers, or all pixels alike. Draw in float32, "
                "and look whether the VAE goes with the model."
            )
        return [Image.fromarray(image) for image in pixels]


def guided(predictions: torch.Tensor, calls: int, scale: float | torch.Tensor) -> torch.Tensor:
    """
    What classifier-free guidance makes of a denoiser's calls: of one call what it says, of two, the first half without the
    prompt and the second with it, `e_u + g (e_c - e_u)`.
    """
    if calls == 1:
        return predictions
    without, with_prompt = predictions.chunk(2)
    return without + scale * (with_prompt - without)


def draw_trees(
    folder: Path,
    settings: Mapping,
    prompts: Sequence[tuple[str, int]],
    generator: ImageGenerator,
    rewards: Mapping[str, Reward],
    config: TreeConfig,
    batch_size: int,
    turns: Turns | None = None,
) -> None:
    """
    Draw and score those trees of prompts and seeds that are not in a folder yet. Stopped at any moment, it has all that were
    finished.

    Args:
        folder (`Path`):
            Where each tree goes into a file of its own.
        settings (`Mapping`):
            Of [`tree_settings`].
        prompts (`Sequence[tuple[str, int]]`):
            Prompts with their seeds.
        generator ([`ImageGenerator`]):
            What draws.
        rewards (`Mapping[str, Reward]`):
            What scores every branch, under the prompt.
        config ([`TreeConfig`]):
            How trees are drawn.
        batch_size (`int`):
            Images that are scored at once.
        turns ([`Turns`], *optional*):
            How pipeline and rewards take turns on a GPU that does not hold both: once for each tree.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [key for key in prompts if not tree_file(folder, settings, *key).exists()]
    with progress_bar(total=len(prompts), initial=len(prompts) - len(missing), unit="tree", desc="Trees") as bar:
        for prompt, seed in missing:
            tree = draw_tree(generator, config, prompt, seed)
            scores = _score(tree, prompt, rewards, batch_size, turns)
            calls = generator.family.calls(generator.config.guidance_scale)
            scale = generator.config.guidance_scale if calls > 1 else 1.0
            facts = {"prompt": prompt, "seed": seed, "guidance_scale": scale, "passes": tree.evaluations}
            write_atomically(tree_file(folder, settings, prompt, seed), _pack(tree, scores, facts))
            bar.update()


def _score(
    tree: Tree, prompt: str, rewards: Mapping[str, Reward], batch_size: int, turns: Turns | None
) -> dict[str, np.ndarray]:
    """Scores of each step and branch, `(S, K)` for each reward, turned so that larger is better."""
    images = [image for step in tree.images for image in step]
    keys = [(prompt, prompt, 0)] * len(images)
    if turns is None:
        scores = score_batch(dict(rewards), keys, images, part_size(batch_size))
    else:
        scores = {}
        with turns.scoring():
            for name, reward in rewards.items():
                with turns.reward(name):
                    scores |= score_batch({name: reward}, keys, images, part_size(batch_size))
    turned = lower_is_better(rewards)
    return {n: (-v if n in turned else v).reshape(len(tree.images), -1) for n, v in scores.items()}


def _pack(tree: Tree, scores: Mapping[str, np.ndarray], facts: Mapping[str, str | int | float]) -> bytes:
    """
    A tree as the bytes of a safetensors file; the image that it ends in is a PNG in it. What is known of it is one text of JSON:
    of several, safetensors (0.8) writes them in an order that changes, and equal trees are to be equal files.
    """
    png = io.BytesIO()
    tree.end.save(png, "PNG")
    tensors = {name: getattr(tree, name) for name in ("timesteps", "next_timesteps", "latents", "branches")}
    tensors |= {f"score/{name}": torch.from_numpy(np.ascontiguousarray(values)) for name, values in scores.items()}
    tensors["end"] = torch.frombuffer(bytearray(png.getvalue()), dtype=torch.uint8)
    return save({name: value.contiguous() for name, value in tensors.items()}, {"facts": json.dumps(facts)})


def read_facts(file: safe_open) -> dict[str, str | int | float]:
    """What a file says of its tree: `prompt`, `seed`, `guidance_scale` and `passes`."""
    return json.loads(file.metadata()["facts"])


def tree_passes(files: Sequence[Path]) -> int:
    """Samples that the trees in these files passed through the denoiser."""
    total = 0
    for path in files:
        with safe_open(path, "np") as file:
            total += read_facts(file)["passes"]
    return total
