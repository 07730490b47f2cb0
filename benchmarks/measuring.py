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


"""What the benchmarks share: the machine, its ceiling, and cases that take turns in one process."""

import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch


def save(result: Mapping, path: Path | None) -> None:
    """Write figures, so that a kill leaves those of before or these, if there is a place for them."""
    if path is None:
        return
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def machine(device: str, packages: Sequence[str]) -> dict:
    """What the figures were measured on: device, cores, threads, load, and versions of Python and of `packages`."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def heading(machine: Mapping) -> str:
    """The machine in a line."""
    return (
        f"{machine['device']}, {machine['cores']} cores, load {machine['load_average']:.1f}, torch {machine['torch']}"
    )


def ceiling(device: str, dtype: torch.dtype) -> float:
    """TFLOP/s of a matrix product of random numbers here and now, the best of several."""
    side = 8192 if device == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return max(2 * side**3 / timed(lambda: a @ b, device) / 1e12 for _ in range(10 if device == "cuda" else 3))


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of some work, the device's part in it included."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def take_turns(cases: Mapping[str, Callable[[], int]], device: str, deadline: float) -> dict[str, list[float]]:
    """
    Rates of cases that take turns until `time.monotonic()` reaches the deadline, so that whatever else the machine does hits
    them alike.

    Args:
        cases (`Mapping[str, Callable[[], int]]`):
            Cases by name; each returns how many things it did.
        device (`str`):
            Device that they run on.
        deadline (`float`):
            When to stop. There is one round at least, after a first one that compiles and warms up and does not count.

    Returns:
        `dict[str, list[float]]`: things per second of each case, a value for every round.
    """
    rates: dict[str, list[float]] = {name: [] for name in cases}
    rounds, longest = 0, 0.0
    while rounds < 2 or time.monotonic() + longest < deadline:
        begun = time.monotonic()
        for name, run in cases.items():
            synchronise(device)
            start = time.perf_counter()
            number = run()
            synchronise(device)
            if rounds:
                rates[name].append(number / (time.perf_counter() - start))
        # The first round may be slow; what it took says nothing about the next one.
        longest, rounds = max(longest, time.monotonic() - begun) if rounds else 0.0, rounds + 1
    return rates


class Parts:
    """Seconds of CPU by part, of functions and methods that it wraps. What a part calls of other parts is not its own."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self.rounds: dict[str, list[float]] = defaultdict(list)
        self.inside: list[str] = []
        self.last = time.process_time()

    def _now(self) -> None:
        now = time.process_time()
        self.seconds[self.inside[-1] if self.inside else "the rest"] += now - self.last
        self.last = now

    def begin(self, part: str) -> None:
        """What follows is this part."""
        self._now()
        self.inside.append(part)

    def end(self) -> None:
        """What follows is the part that was before the last."""
        self._now()
        self.inside.pop()

    def run(self, part: str, function: Callable, *args, **kwargs):
        """Call a function, as this part."""
        self.begin(part)
        try:
            return function(*args, **kwargs)
        finally:
            self.end()

    def wrap(self, owner: object, name: str, part: str) -> None:
        """Count the calls of an attribute, from now on, as a part."""
        function = getattr(owner, name)

        def counted(*args, **kwargs):
            return self.run(part, function, *args, **kwargs)

        setattr(owner, name, counted)

    def end_round(self) -> None:
        """What was counted since the last round is one."""
        self._now()
        for part in {*self.seconds, *self.rounds}:
            self.rounds[part].append(self.seconds.pop(part, 0.0))

    def skip(self) -> None:
        """What was done since the last count was not one of the parts."""
        self.last = time.process_time()

    def median(self) -> dict[str, float]:
        """Seconds of a round by part."""
        return {part: float(np.median(seconds)) for part, seconds in self.rounds.items()}
