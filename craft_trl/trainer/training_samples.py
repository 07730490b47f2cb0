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


"""What a diffusion model is trained on: encoded images and prompts, and the endless, seeded stream of samples."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from ..devices import on_all_processes, on_main_process, process_state
from ..errors import UsageError
from ..families import Family
from ..families.latents import normalise
from ..filtering.images import TrainingImages
from ..progress import progress_bar
from .encoded import Index, RowWriter, join


if TYPE_CHECKING:
    from accelerate import PartialState


def encode_dataset(
    dataset: Dataset,
    prompt_column: str,
    family: Family,
    load_frozen: Callable[[], DiffusionPipeline],
    path: Path,
    fingerprint: str,
    max_sequence_length: int | None = None,
    guidance_scale: float | None = None,
) -> None:
    """
    Encode all images and prompts into a safetensors file, unless it is there with this fingerprint.

    Per image `latent_mean` and `latent_std`, the parameters of the VAE's posterior (a sample of it is drawn anew each
    time the image is trained on), `prompt_index`, and the family's conditioning as `image/...`; per distinct prompt, and
    last for the empty one, its conditioning as `prompt/...`. Each process encodes a share, and the file does not depend on
    how many there are. All must call this.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `image` and the prompt.
        prompt_column (`str`):
            Column of the prompt to train on.
        family ([`Family`]):
            Model family.
        load_frozen (`Callable[[], DiffusionPipeline]`):
            Loads the VAE and the text encoders. They are dropped before this function returns.
        path (`Path`):
            File to write.
        fingerprint (`str`):
            What identifies dataset, model and the options below.
        max_sequence_length (`int`, *optional*):
            Tokens of a prompt that are read. Defaults to the pipeline's own.
        guidance_scale (`float`, *optional*):
            Scale of a guidance that is an input of the denoiser.
    """
    if on_main_process(lambda: _holds(path, fingerprint)):
        return
    state = process_state()
    parts = [path.with_suffix(f".part-{rank}") for rank in range(state.num_processes)]
    own = parts[state.process_index]
    options = max_sequence_length, guidance_scale
    shares = on_all_processes(lambda: _encode_share(dataset, prompt_column, family, load_frozen, own, state, *options))

    def write() -> None:
        temporary = path.with_suffix(".tmp")
        _, statistics = shares[0]
        join(parts, [index for index, _ in shares], temporary, {"fingerprint": fingerprint, **statistics})
        temporary.replace(path)
        for part in parts:
            part.unlink()

    on_main_process(write)


def _holds(path: Path, fingerprint: str) -> bool:
    if not path.exists():
        return False
    with safe_open(path, "pt") as file:
        return file.metadata()["fingerprint"] == fingerprint


def _encode_share(
    dataset: Dataset,
    prompt_column: str,
    family: Family,
    load_frozen: Callable[[], DiffusionPipeline],
    path: Path,
    state: "PartialState",
    max_sequence_length: int | None,
    guidance_scale: float | None,
) -> tuple[Index, dict[str, str]]:
    """
    Encode this process's share of the images and prompts, neighbours all, so that the shares need only be joined. Returns what
    is in the file, and what latents are normalised with.
    """

    def share(count: int) -> list[int]:
        return np.array_split(np.arange(count), state.num_processes)[state.process_index].tolist()

    pipeline = load_frozen()
    vae, denoiser = pipeline.vae, getattr(pipeline, family.denoiser)
    encode = torch.no_grad()(lambda texts: family.encode_prompts(pipeline, texts, max_sequence_length))
    encode_empty = torch.no_grad()(lambda: family.encode_empty_prompt(pipeline, max_sequence_length))
    prompts = list(dict.fromkeys(dataset[prompt_column]))
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    shown = {"disable": not state.is_main_process}
    with RowWriter(path) as rows:
        # One at a time: an encoding depends on its image or prompt alone, not on what it was batched with. Each leaves the memory
        # at once, which thousands would fill.
        for number in progress_bar(share(len(prompts)), desc="Encoding prompts", unit="prompt", **shown):
            for name, value in encode([prompts[number]]).items():
                rows.add(f"prompt/{name}", value[0])
        if state.is_last_process:
            for name, value in encode_empty().items():
                rows.add(f"prompt/{name}", value[0])
        images, image_prompts = TrainingImages(dataset), dataset[prompt_column]
        for number in progress_bar(share(len(dataset)), desc="Encoding images", unit="image", **shown):
            image = images[number]
            pixels = pipeline.image_processor.preprocess(image).to(vae.device, vae.dtype)  # (1, 3, H, W) in [-1, 1]
            with torch.no_grad():
                mean, std = family.encode_images(pipeline, pixels)
            rows.add("latent_mean", mean[0])
            rows.add("latent_std", std[0])
            rows.add("prompt_index", torch.tensor(numbers[image_prompts[number]]))
            given = (image.height, image.width, guidance_scale)
            for name, value in family.image_conditioning(denoiser.config, *given).items():
                rows.add(f"image/{name}", value)
    return rows.index, {name: json.dumps(value) for name, value in family.latent_statistics(vae).items()}


class TrainingSamples(TorchDataset):
    """
    The `k`-th training sample, whatever process asks for it and whenever.

    Everything random about sample `k` (which row, VAE sample, noise, timestep) is drawn from generators seeded with
    `(seed, k)`. One GPU with sixteen micro-steps, eight GPUs, another micro-batch size or a resumed run all see the
    same samples. Rows come in an order that is shuffled anew each time all have been seen, so that the stream is not
    cut at the end of a dataset smaller than a batch.

    Args:
        path (`Path`):
            File of [`encode_dataset`].
        advantages (`torch.Tensor` of shape `(N,)`):
            Weight of each row in the loss.
        num_samples (`int`):
            Length of the stream.
        draw_timestep (`Callable[[np.random.Generator], torch.Tensor]`):
            Draws a timestep, see [`noise_process`].
        seed (`int`):
            Seed of the stream.
        proportion_empty_prompts (`float`, *optional*, defaults to `0.0`):
            Chance that a sample's prompt is replaced by the empty one. Drawn anew for every sample.
        every_row (`bool`, *optional*, defaults to `False`):
            Whether rows of weight 0 count in the loss as well, so that none may be left out, see [`StepBatches`].
    """

    def __init__(
        self,
        path: Path,
        advantages: torch.Tensor,
        num_samples: int,
        draw_timestep: Callable[[np.random.Generator], torch.Tensor],
        seed: int,
        proportion_empty_prompts: float = 0.0,
        every_row: bool = False,
    ):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        self.statistics = {name: json.loads(value) for name, value in metadata.items() if name != "fingerprint"}
        self.path = path
        self.encoded = load_file(path)  # not read, but mapped into memory: a row is read when it is used
        self.advantages = advantages
        self.num_samples, self.draw_timestep, self.seed = num_samples, draw_timestep, seed
        self.proportion_empty_prompts, self.every_row = proportion_empty_prompts, every_row
        self.order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getstate__(self) -> dict:
        # PyTorch would copy the whole of a tensor to give it to a worker that does not begin as a copy of this process.
        return {name: value for name, value in vars(self).items() if name != "encoded"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, encoded=load_file(state["path"]))

    def __len__(self) -> int:
        return self.num_samples

    @property
    def count(self) -> int:
        """What the stream is drawn from: so many rows."""
        return len(self.advantages)

    def place(self, k: int) -> int:
        """Which of [`count`] sample `k` is drawn from."""
        epoch, position = divmod(k, self.count)
        if self.order[0] != epoch:
            self.order = epoch, np.random.default_rng((self.seed, 1, epoch)).permutation(self.count)
        return int(self.order[1][position])

    def row(self, k: int) -> int:
        """Row of the dataset that sample `k` is drawn from."""
        return self.place(k)

    def weightless(self, k: int) -> bool:
        """Whether sample `k` adds nothing to the loss, nor to its gradient."""
        return not self.every_row and bool(self.advantages[self.row(k)] == 0)

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        row = self.row(k)
        rng = np.random.default_rng((self.seed, 0, k))
        mean, std = self.encoded["latent_mean"][row], self.encoded["latent_std"][row]  # (C, h, w)
        posterior_noise, noise = torch.from_numpy(rng.standard_normal((2, *mean.shape), dtype=np.float32))
        latents = mean.float() + std.float() * posterior_noise
        timestep = self.draw_timestep(rng)
        # The empty prompt is the last one encoded.
        prompt = -1 if rng.random() < self.proportion_empty_prompts else self.encoded["prompt_index"][row]
        conditioning = {
            name.partition("/")[2]: values[prompt if name.startswith("prompt/") else row]
            for name, values in self.encoded.items()
            if "/" in name
        }
        return {
            "latents": normalise(latents, self.statistics),
            "noise": noise,
            "timesteps": timestep,
            "advantage": self.advantages[row],
            **conditioning,
        }


class ListSamples(TrainingSamples):
    """
    The `k`-th training list, see [`TrainingSamples`]: `m` images, the best first, at the same noise, timestep and prompt, each with
    a posterior noise of its own. `latents` are of shape `(m, C, h, w)`, `advantage` and `mask` of shape `(m,)`; a list shorter
    than the longest is filled up with zeros, and `mask` says what is an image. A pair is a list of two.

    Args:
        lists (`Sequence[Sequence[int]]`):
            Rows of each list.
        **kwargs:
            Of [`TrainingSamples`]. `advantages` ranks the images of a list.
    """

    def __init__(self, *args, lists: Sequence[Sequence[int]], **kwargs):
        super().__init__(*args, **kwargs)
        self.lists = [sorted(rows, key=lambda row: -self.advantages[row]) for rows in lists]
        self.longest = max(map(len, self.lists))

    @property
    def count(self) -> int:
        """What the stream is drawn from: so many lists."""
        return len(self.lists)

    def row(self, k: int) -> int:
        """Row of the best image of sample `k`."""
        return self.lists[self.place(k)][0]

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        rows, sample = self.lists[self.place(k)], super().__getitem__(k)
        latents = sample["latents"].new_zeros(self.longest, *sample["latents"].shape)
        latents[0] = sample["latents"]
        for i, row in enumerate(rows[1:], start=1):
            mean, std = self.encoded["latent_mean"][row], self.encoded["latent_std"][row]  # (C, h, w)
            posterior_noise = np.random.default_rng((self.seed, 1 + i, k)).standard_normal(
                mean.shape, dtype=np.float32
            )
            latents[i] = normalise(mean.float() + std.float() * torch.from_numpy(posterior_noise), self.statistics)
        advantages = torch.zeros(self.longest)
        advantages[: len(rows)] = self.advantages[rows]
        mask = torch.arange(self.longest) < len(rows)
        return sample | {"latents": latents, "advantage": advantages, "mask": mask}


def needed_micro_batches(
    samples: TrainingSamples, global_batch_size: int, micro_batch_size: int, num_processes: int = 1
) -> int:
    """
    Micro-batches that each process needs in every step of a stream for its samples that have a weight, see
    [`StepBatches`]: those of the step that has most of them. Known before training begins, and to all processes alike.
    """
    weighted = torch.tensor([not samples.weightless(k) for k in range(len(samples))])
    most = int(weighted.view(-1, global_batch_size).sum(1).max())
    return max(1, -(-most // (micro_batch_size * num_processes)))


def check_shared_memory(sample: dict[str, torch.Tensor], count: int) -> None:
    """
    Raise a [`UsageError`] unless there is room for so many samples where the workers of a data loader leave them. A worker that
    finds none ends in a bus error.
    """
    count *= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    needed, room = count * sum(value.nbytes for value in sample.values()), Path("/dev/shm")
    if room.is_dir() and shutil.disk_usage(room).free < needed:
        raise UsageError(
            f"dataloader_num_workers keeps {needed / 1e6:.0f} MB in /dev/shm, which has "
            f"{shutil.disk_usage(room).free / 1e6:.0f} MB free: set it to 0, or start the container with a larger --shm-size."
        )


class StepBatches(Sampler[list[int]]):
    """
    Micro-batches of one process, step by step.

    Step `s` trains on samples `s * global_batch_size` and on. Those of weight 0 add nothing to its gradient and are left
    out; the others are dealt to the micro-batches of all processes as evenly as possible: 32 samples on two processes
    at a micro-batch size of 6 make six micro-batches, of 6, 6, 5 | 5, 5, 5. No micro-batch is ever empty, because
    the processes must agree on whether there is a gradient to average: where too few samples have a weight, some
    of weight 0 stay.

    Args:
        samples ([`TrainingSamples`]):
            The stream. Its length is a multiple of `global_batch_size`.
        global_batch_size (`int`):
            Samples per step over all processes.
        micro_batch_size (`int`):
            Largest micro-batch.
        process_index (`int`, *optional*, defaults to `0`):
            This process.
        num_processes (`int`, *optional*, defaults to `1`):
            Number of processes. Divides `global_batch_size`.
        micro_batches (`int`, *optional*):
            Micro-batches of each process in a step, see [`needed_micro_batches`]. Defaults to what a step without samples of
            weight 0 needs.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        global_batch_size: int,
        micro_batch_size: int,
        process_index: int = 0,
        num_processes: int = 1,
        micro_batches: int | None = None,
    ):
        self.samples, self.global_batch_size = samples, global_batch_size
        self.process_index, self.num_processes = process_index, num_processes
        self.micro_batches = micro_batches or -(-global_batch_size // (micro_batch_size * num_processes))

    def __len__(self) -> int:
        return len(self.samples) // self.global_batch_size * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        total, first = self.num_processes * self.micro_batches, self.process_index * self.micro_batches
        for start in range(0, len(self.samples), self.global_batch_size):
            step = range(start, start + self.global_batch_size)
            weightless = {k: self.samples.weightless(k) for k in step}
            count = max(total, len(step) - sum(weightless.values()))
            taken = sorted(sorted(step, key=weightless.get)[:count])
            for micro_batch in np.array_split(taken, total)[first : first + self.micro_batches]:
                yield micro_batch.tolist()
