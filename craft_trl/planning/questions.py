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

"""What the judges of a run ask of models elsewhere, and what that costs, before anything is asked."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..rewards import RewardSpec
from ..rewards.vlm.readings import OF_WORDS


if TYPE_CHECKING:
    from .planner import Planner


PIXELS_PER_TOKEN = 32 * 32  # of Qwen3-VL
WORDS_OF_A_QUESTION = 60  # tokens, with what a chat template adds


def uncounted_lines(planner: "Planner") -> list[str]:
    """What the plan says of rewards whose work is not done here, or is not known, a line each."""
    evaluated = planner.evaluation.specs.values()
    lines = [line(spec, "generate", planner.images, planner.drawing.size) for spec in planner.rewards if spec.vlm]
    rows = planner.evaluation.prompt_rows
    lines += [line(spec, "evaluate", planner.evaluated, planner.judging.size, rows) for spec in evaluated if spec.vlm]
    if unknown := [name for name in planner.uncounted if not planner.evaluation.specs[name].vlm]:
        lines.append(f"Not counted, unless measured: {', '.join(unknown)}, whose size is not known.")
    return lines


def line(
    spec: RewardSpec, stage: str, images: int, size: Iterable[int], rows: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """
    How often a judge is asked.

    Args:
        spec ([`RewardSpec`]):
            The judge.
        stage (`str`):
            Who asks.
        images (`int`):
            How many images it sees.
        size (`tuple[int, int]`):
            Their height and width.
        rows (`Mapping[str, Mapping]`, *optional*):
            By prompt, what a benchmark asks of its images. Defaults to nothing, for templates that ask of all the same.
    """
    judge, template = spec.judge, spec.judge.template
    reading = judge.reading or template.reading
    if template.benchmark and not rows:
        return (
            f"{stage}: {spec.name} asks {judge.model} at {judge.host} about {images:,} images; its prompts say what."
        )
    rows = rows or {"": {}}
    known = [template.asked(prompt, row) for prompt, row in rows.items()]
    questions = round(images * sum(map(len, known)) / len(known) * judge.samples_of(reading))
    height, width = size
    tokens = questions * (height * width // PIXELS_PER_TOKEN + WORDS_OF_A_QUESTION)
    answered = questions * (template.max_tokens if reading in OF_WORDS else 1)
    cost = ""
    if judge.prices is not None:
        cost = f", for at most {(tokens * judge.prices[0] + answered * judge.prices[1]) / 1e6:.2f}"
    return (
        f"{stage}: {spec.name} asks {judge.model} at {judge.host} {questions:,} questions and 2 to try it, of about {tokens / 1e6:.3g} M "
        f"tokens (a token for 32 x 32 pixels, as Qwen3-VL reads) and answers of at most {answered / 1e6:.3g} M{cost}. Their time is "
        "not counted."
    )
