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

"""A plan of a run: what each stage takes, and the table that says so."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from .gpus import GIGA, GPU
from .odds import Odds


if TYPE_CHECKING:
    from .planner import Planner


@dataclass
class StagePlan:
    """
    One stage.

    Args:
        name (`str`):
            Name of the stage.
        work (`str`):
            What it does, in words.
        flops (`float`):
            Operations.
        seconds (`float`):
            GPU seconds at the assumed share of the peak.
        memory (`float`):
            Peak memory of one GPU in bytes.
        disk (`float`):
            Bytes written that stay.
        measured_seconds (`float`, *optional*):
            GPU seconds at the rates that were measured.
    """

    name: str
    work: str
    flops: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    measured_seconds: float | None = None


def later_rounds(planner: "Planner", stages: list[StagePlan]) -> list[StagePlan]:
    """
    A line for each round after the first that was asked for: the stages of the first one, of which the variants only are drawn,
    not the originals, and the images of one model only are new; as if as many variants passed as in the first.
    """
    evaluation = planner.evaluation
    new = len(evaluation.prompts) * evaluation.config.num_images_per_prompt / planner.evaluated
    shares = {"expand": 0.0, "generate": 1 - 1 / planner.odds.images, "evaluate": new}
    done = [(stage, shares.get(stage.name, 1.0)) for stage in stages]
    calibrated = any(stage.measured_seconds is not None for stage in stages)
    later = StagePlan(
        "",
        f"{planner.images * shares['generate']:,.0f} images by the last round's model, filter, train, evaluate one model more",
        flops=sum(share * stage.flops for stage, share in done),
        seconds=sum(share * stage.seconds for stage, share in done),
        memory=max(stage.memory for stage in stages),
        # An adapter is merged into a whole pipeline for the next round.
        disk=sum(share * stage.disk for stage, share in done) + 4 * planner.adapter * planner.pipeline_parameters,
        measured_seconds=sum(s * (stage.measured_seconds or 0.0) for stage, s in done) if calibrated else None,
    )
    return [replace(later, name=f"round {number}") for number in range(2, planner.recipes.rounds + 1)]


@dataclass
class Plan:
    """
    What a run will take.

    Args:
        gpu ([`GPU`]):
            The device.
        price (`float`, *optional*):
            Price of a GPU hour.
        stages (`list[StagePlan]`):
            The stages.
        odds ([`Odds`]):
            What the filter lets through.
        image_tflops (`float`):
            TFLOP of an image, all its steps.
        sample_tflops (`float`):
            TFLOP of a training sample, forward and backward.
        denoiser_tflops (`float`):
            TFLOP of one call of the denoiser for one image.
        assumptions (`list[str]`):
            What the numbers rest on.
    """

    gpu: GPU
    price: float | None
    stages: list[StagePlan]
    odds: Odds
    image_tflops: float
    sample_tflops: float
    denoiser_tflops: float
    assumptions: list[str]

    @property
    def calibrated(self) -> bool:
        return any(stage.measured_seconds is not None for stage in self.stages)

    def best(self, stage: StagePlan) -> float:
        """Seconds of a stage: measured ones where there are any."""
        return stage.seconds if stage.measured_seconds is None else stage.measured_seconds

    def to_dict(self) -> dict:
        """The plan as JSON values; times in seconds, sizes in bytes."""
        total = sum(map(self.best, self.stages))
        return {
            **asdict(self),
            "gpu_hours": total / 3600,
            "cost": None if self.price is None else self.price * total / 3600,
            "disk": sum(stage.disk for stage in self.stages),
            "fits": all(stage.memory <= self.gpu.memory * GIGA for stage in self.stages),
        }

    def table(self) -> str:
        """The plan for the terminal."""
        head = ["stage", "work", "PFLOP", *(["assumed", "measured"] if self.calibrated else ["GPU time"])]
        head += ["cost"] * (self.price is not None) + ["memory", "disk"]
        lines = [head]
        total = StagePlan("total", "")
        for stage in self.stages:
            total.flops += stage.flops
            total.seconds += stage.seconds
            total.disk += stage.disk
            if stage.measured_seconds is not None:
                total.measured_seconds = (total.measured_seconds or 0.0) + stage.measured_seconds
        for stage in (*self.stages, total):
            line = [stage.name, stage.work, f"{stage.flops / 1e15:,.3g}" if stage.flops else ""]
            line += [duration(stage.seconds)] + [duration(stage.measured_seconds or 0.0)] * self.calibrated
            if self.price is not None:
                line.append(f"{self.price * self.best(stage) / 3600:,.2f}")
            over = " (too much)" if stage.memory > self.gpu.memory * GIGA else ""
            line += [f"{stage.memory / GIGA:.1f} GB{over}" if stage.memory else "", gigabytes(stage.disk)]
            lines.append(line)
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        left = {0, 1}
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i in left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def duration(seconds: float) -> str:
    if seconds < 0.5:
        return ""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36000 else f"{seconds / 3600:,.1f} h"


def gigabytes(size: float) -> str:
    return "" if not size else f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / GIGA:,.1f} GB"
