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

"""What a training needs to go on after it was killed as if it had not been."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


@dataclass
class State:
    """How far a training is."""

    done: int = 0  # steps
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # read since the last entry of the history
    history: list[list[float]] = field(default_factory=list)


class Checkpoint:
    """
    The newest state of a training, in one file that is whole at any moment.

    Args:
        file (`Path`):
            A safetensors file with the parameters, their average and the optimizer's state.
        seed (`int`):
            Step k takes its random numbers, and with them its batch, from seed `seed + k`.
        interval (`float`):
            Seconds between two states.
    """

    def __init__(self, file: Path, seed: int, interval: float):
        self.file, self.seed, self.interval = file, seed, interval
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the newest state has become old."""
        return time.monotonic() - self._written >= self.interval

    def write(
        self,
        state: State,
        parameters: list[nn.Parameter],
        average: list[torch.Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Replace the file."""
        tensors = {}
        for number, parameter in enumerate(parameters):
            tensors[f"{number}.parameter"] = parameter.detach()
            for name, value in optimizer.state[parameter].items():
                tensors[f"{number}.optimizer.{name}"] = value
        tensors |= {f"{number}.average": averaged for number, averaged in enumerate(average)}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        unfinished = self.file.with_name(self.file.name + ".unfinished")
        save_file(tensors, unfinished, metadata={"state": json.dumps(asdict(state))})
        unfinished.replace(self.file)
        self._written = time.monotonic()

    def read(
        self, parameters: list[nn.Parameter], average: list[torch.Tensor], optimizer: torch.optim.Optimizer
    ) -> State:
        """Take the state over from the file, if there is one."""
        if not self.file.exists():
            return State()
        states: dict[int, dict[str, torch.Tensor]] = {}
        with safe_open(self.file, "pt") as opened, torch.no_grad():
            for key in opened.keys():
                number, name = key.split(".", maxsplit=1)
                value = opened.get_tensor(key)
                if name == "parameter":
                    parameters[int(number)].copy_(value)
                elif name == "average":
                    average[int(number)].copy_(value)
                else:
                    states.setdefault(int(number), {})[name.removeprefix("optimizer.")] = value
            state = State(**json.loads(opened.metadata()["state"]))
        # A copy of the state on the device of each parameter; its groups are those that the optimizer has.
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        return state


def read_average(file: Path, parameters: list[nn.Parameter]) -> int:
    """Copy the average of a checkpoint into the parameters; returns the number of steps done."""
    with safe_open(file, "pt") as opened, torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter.copy_(opened.get_tensor(f"{number}.average"))
        return json.loads(opened.metadata()["state"])["done"]
