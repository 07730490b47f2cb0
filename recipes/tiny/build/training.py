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

"""The training loop that all networks share, and how they read rendered rows and write weights."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .checkpoints import Checkpoint, State
from .data import read_column
from .progress import progress_bar
from .settings import Run


RECORD_EVERY = 20  # steps between two readings of the loss, each of which waits for the device
HISTORY_EVERY = 500  # steps between two entries of the history

# Given the share of the run that is over, 0 to 1: the loss and the numbers to watch, all tensors without dimensions.
LossFunction = Callable[[float], tuple[torch.Tensor, dict[str, torch.Tensor]]]


@dataclass(frozen=True)
class Averaging:
    """Exponential moving average of the weights: after k updates the decay is `k / (k + lag)`, at most `max_decay`."""

    lag: int
    max_decay: float


@dataclass(frozen=True)
class Recipe:
    """AdamW with linear warmup and cosine decay; `floor` is added to the cosine's share of the learning rate."""

    learning_rate: float
    weight_decay: float
    beta2: float
    warmup_steps: int
    floor: float = 0.002
    averaging: Averaging | None = None

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of update `step`, counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warmup * (0.5 + 0.5 * math.cos(math.pi * step / steps) + self.floor)


def fit(
    name: str,
    parameters: Iterable[nn.Parameter],
    loss_function: LossFunction,
    run: Run,
    recipe: Recipe,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> dict:
    """
    Minimise a loss; where the recipe averages the weights, the parameters end up as the average.

    Args:
        name (`str`):
            Shown in front of the progress bar.
        parameters (iterable of `nn.Parameter`):
            What to train.
        loss_function (`Callable`):
            Draws a batch and returns its loss, see `LossFunction`.
        run ([`Run`]):
            Number of steps and batch size.
        recipe ([`Recipe`]):
            Optimizer and schedule.
        device (`torch.device`):
            Where the parameters are.
        checkpoint ([`Checkpoint`], *optional*):
            Where to keep the state of the training, and to go on from if there is one.

    Returns:
        `dict`: steps, batch_size, seconds, the watched numbers of the last batch, and the history of the loss as pairs
        of a step and the mean loss before it.
    """
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=recipe.learning_rate,
        betas=(0.9, recipe.beta2),
        weight_decay=recipe.weight_decay,
        fused=device.type == "cuda",
    )
    average = [parameter.detach().clone() for parameter in parameters] if recipe.averaging else []
    state, watched = State(), {}
    if checkpoint:
        state = checkpoint.read(parameters, average, optimizer)
    started = time.monotonic() - state.seconds
    with progress_bar(name, run.steps, "step", done=state.done) as progress:
        for step in range(state.done, run.steps):
            if checkpoint:
                torch.manual_seed(checkpoint.seed + step)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step, run.steps)
            with autocast(device):
                loss, watched = loss_function((step + 1) / run.steps)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            done = step + 1
            if recipe.averaging:
                decay = min(recipe.averaging.max_decay, done / (done + recipe.averaging.lag))
                with torch.no_grad():
                    torch._foreach_lerp_(average, parameters, 1 - decay)
            if done % RECORD_EVERY == 0 or done == run.steps:
                state.losses.append(loss.item())
                if not math.isfinite(state.losses[-1]):
                    raise FloatingPointError(
                        f"The loss of {name} is {state.losses[-1]} at step {done} of {run.steps}."
                    )
                progress.set_postfix(loss=f"{state.losses[-1]:.4f}", refresh=False)
            if done % HISTORY_EVERY == 0:
                state.history.append([done, round(sum(state.losses) / len(state.losses), 5)])
                state.losses.clear()
            progress.update()
            state.done, state.seconds = done, time.monotonic() - started
            if checkpoint and checkpoint.due:
                checkpoint.write(state, parameters, average, optimizer)
    if recipe.averaging:
        with torch.no_grad():
            for parameter, averaged in zip(parameters, average, strict=True):
                parameter.copy_(averaged)
    return {
        "steps": run.steps,
        "batch_size": run.batch_size,
        "seconds": round(state.seconds, 1),
        **{key: round(value.item(), 4) for key, value in watched.items()},
        "history": state.history,
    }


def autocast(device: torch.device, everywhere: bool = False) -> torch.autocast:
    """bfloat16 on CUDA, full precision elsewhere unless told otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=everywhere or device.type == "cuda")


def load_rows(folder: Path, column: str, rows: slice | np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy rows of a rendered column onto the device."""
    return torch.from_numpy(np.array(read_column(folder, column)[rows])).to(device)


def random_rows(count: int, batch_size: int, device: torch.device) -> torch.Tensor:
    """Row numbers below `count` drawn with replacement, shape `(batch_size,)`."""
    return torch.randint(0, count, (batch_size,), device=device)


def save_half(network: nn.Module, file: Path) -> None:
    """Write the weights of a network in half precision; integer buffers keep their type."""
    weights = {}
    for name, value in network.state_dict().items():
        value = value.half() if value.is_floating_point() else value
        weights[name] = value.detach().cpu().contiguous()
    save_file(weights, file, metadata={"format": "pt"})


def load_half(network: nn.Module, file: Path) -> nn.Module:
    """Read weights in half precision into a network, which computes in single precision."""
    weights = load_file(file)
    network.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in weights.items()})
    return network.eval()
