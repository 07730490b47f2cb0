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


from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import numpy as np

from ..candidates.config import SamplingConfig
from ..candidates.executors import ExecutorArguments
from ..errors import UsageError
from ..families.strength import Strength
from ..prompts.benchmarks import load_evaluation_prompts
from ..ranges import Count, NotNegative, Processes, Range, Seed
from ..rewards import check_asked, parse_rewards
from ..rewards.config import ScoringConfig
from .specs import ModelSpec


@dataclass
class EvaluationConfig(SamplingConfig, ScoringConfig):
    """
    Configuration of `craft evaluate`.

    Parameters:
        models (`list[str]`):
            Models to compare, see [`ModelSpec`]: `NAME=FOLDER` or `NAME=HUB_ID`, and parts that go into the first one's
            pipeline, `NAME=unet:SOURCE` or `NAME=transformer:SOURCE`, and `NAME=lora:SOURCE`. The first is the base that the others are
            compared with.
        strengths (`list[float]`, *optional*):
            The last model is evaluated at these strengths too, as `NAME-0.5`: 0 is the base, 1 the model itself, and above it
            is led on. Each takes the images of a model.
        model_revision (`str`, *optional*):
            Revision on the Hub of the base, alone and with the parts that go into it.
        templates (`list[str]`, *optional*):
            Template rules. If given, the base model is also evaluated on prompts expanded by them, as
            `NAME+expansion`: what expansion reaches at inference, without any training.
        prompts (`str`):
            Held-out prompts: the name of a published set (`hpdv2-test`, `hpdv2-benchmark`, `drawbench`, `partiprompts`,
            `geneval`, `geneval2`, `dpg`, `pickapic-test`), `NAME=PATH` for a copy of one, a file, or a dataset on the Hub.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column of the prompt.
        group_by (`str`, *optional*):
            Column of the prompts, such as a style or a category, by which results are broken down as well. Defaults to that
            of a published set.
        num_prompts (`int`, *optional*):
            Number of prompts, evenly spaced over the file. Defaults to all.
        num_images_per_prompt (`int`, *optional*, defaults to `1`):
            Images per prompt and model. With two or more, diversity is measured too.
        seed (`int`, *optional*, defaults to `3000000000`):
            Image `j` of prompt `i` starts from noise `seed + i * num_images_per_prompt + j` in every model.
        rewards (`list[str]`, *optional*):
            Rewards that the training set was filtered with, as `NAME` or `NAME=SOURCE`.
        held_out_rewards (`list[str]`, *optional*):
            Judges that training never saw. They decide whether it worked.
        num_bootstrap (`int`, *optional*, defaults to `2000`):
            Bootstrap samples of the 95 % intervals.
        frontier (`bool`, *optional*, defaults to `False`):
            Also hold what every model gains against what it costs in variety, beside the base model where the best of k images is
            kept, with more guidance and with expanded prompts, see [`Frontier`]. It draws more images of the base.
        frontier_images (`int`, *optional*, defaults to `16`):
            Images per prompt of the base from which the best of k is taken, for k up to half as many.
        frontier_guidance (`list[float]`, *optional*):
            Guidance scales at which the base is drawn too. Defaults to one and a half and two and a half times `guidance_scale`.
        images_dir (`str`, *optional*):
            Folder of another evaluation's images, `images/` in its `output_dir`, to look up and to add to: what both draw is drawn
            once. Defaults to a folder of its own.
        run_dir (`str`, *optional*):
            Folder of the run that trained the last model; the report then shows candidates, loss and time per stage.
        output_dir (`str`):
            Where to write `results.json`, `scores.parquet`, `report.html` and the images.

        The parameters of the sampler and of the judges are those of [`SamplingConfig`] and [`ScoringConfig`].
    """

    models: list[str] = field(
        default=None,
        metadata={
            "help": "Models to compare: NAME=FOLDER, NAME=HUB_ID, NAME=unet:SOURCE, NAME=transformer:SOURCE or "
            "NAME=lora:SOURCE. The first is the base."
        },
    )
    strengths: list[Strength] | None = field(
        default=None,
        metadata={
            "help": "Strengths from 0 to 2 at which the last model is evaluated too: 0 is the base, 1 the model itself."
        },
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Revision on the Hub of the base, alone and with the parts that go into it."}
    )
    templates: list[str] | None = field(
        default=None,
        metadata={"help": "Template rules; the base model is also evaluated on prompts expanded by them."},
    )
    prompts: str = field(
        default=None, metadata={"help": "Held-out prompts: a published set by name, a file or a dataset on the Hub."}
    )
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompt."})
    group_by: str | None = field(
        default=None, metadata={"help": "Column of the prompts by which results are broken down as well."}
    )
    num_prompts: Count | None = field(
        default=None, metadata={"help": "Number of prompts, evenly spaced over the file. Defaults to all."}
    )
    num_images_per_prompt: Count = field(
        default=1, metadata={"help": "Images per prompt and model. With two or more, diversity is measured too."}
    )
    seed: Seed = field(
        default=3_000_000_000,  # far from the seeds that candidates are drawn from
        metadata={"help": "Image j of prompt i starts from noise seed + i * num_images_per_prompt + j."},
    )
    rewards: list[str] = field(
        default_factory=list, metadata={"help": "Rewards the training set was filtered with, NAME or NAME=SOURCE."}
    )
    held_out_rewards: list[str] = field(
        default_factory=list, metadata={"help": "Judges that training never saw, NAME or NAME=SOURCE."}
    )
    num_bootstrap: Count = field(default=2000, metadata={"help": "Bootstrap samples of the 95 %% intervals."})
    frontier: bool = field(
        default=False, metadata={"help": "Also hold every model's gain against what it costs in variety."}
    )
    frontier_images: Annotated[int, Range(4, 256)] = field(
        default=16, metadata={"help": "Images per prompt of the base from which the best of k is taken, k up to half."}
    )
    frontier_guidance: list[NotNegative] | None = field(
        default=None,
        metadata={
            "help": "Guidance scales at which the base is drawn too. Defaults to 1.5 and 2.5 times guidance_scale."
        },
    )
    images_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of another evaluation's images, to look up and to add to. Defaults to one of its own."
        },
    )
    run_dir: str | None = field(
        default=None, metadata={"help": "Folder of the run that trained the last model, for the report."}
    )
    output_dir: str = field(default=None, metadata={"help": "Where to write the results, the report and the images."})

    def __post_init__(self):
        super().__post_init__()
        for name in ("models", "prompts", "output_dir"):
            if not getattr(self, name):
                raise UsageError(f"{name} is missing: give it in the recipe or as --{name}.")
        if not self.rewards and not self.held_out_rewards:
            raise UsageError("Nothing to measure: give rewards, held_out_rewards or both.")
        self._check_frontier()
        self.model_specs  # noqa: B018 - parsed now, so that a mistake is found now

    def _check_frontier(self) -> None:
        """Raise a [`UsageError`] if the frontier lacks what it is made of, or is not asked for."""
        if not self.frontier:
            if self.frontier_guidance is not None or self.frontier_images != 16:
                raise UsageError("frontier_images and frontier_guidance have no effect without frontier: true.")
            return
        if self.num_images_per_prompt < 2:
            raise UsageError(
                "frontier needs num_images_per_prompt of 2 or more: variety is between images of a prompt."
            )
        if not self.rewards:
            raise UsageError("frontier needs rewards, by which the best of k images is chosen.")
        scales = self.frontier_guidance or []
        if self.guidance_scale in scales or len({*scales}) != len(scales):
            raise UsageError(
                f"frontier_guidance must be other scales than guidance_scale {self.guidance_scale:g}, each once; got "
                f"{', '.join(f'{scale:g}' for scale in scales)}."
            )

    def load_prompts(self) -> tuple[list[dict], str, str | None]:
        """Rows of the prompts, the column of the prompt, and the one by which results are broken down, if any."""
        rows, column, part = load_evaluation_prompts(self.prompts, self.prompt_column)
        if self.num_prompts is not None:
            if self.num_prompts > len(rows):
                limits = f"from 1 to {len(rows)}, the prompts in {self.prompts}"
                raise UsageError(f"num_prompts must be {limits}; got {self.num_prompts}.")
            # Evenly spaced: benchmark files are sorted by style or category.
            rows = [rows[i] for i in np.linspace(0, len(rows) - 1, self.num_prompts).round().astype(int)]
        specs = parse_rewards([*self.rewards, *self.held_out_rewards])
        for spec in specs:
            if not all(column in row for row in rows for column in spec.needs):
                named = spec.judge.template.prompts if spec.vlm else spec.name
                raise UsageError(
                    f"{spec.name} judges prompts of its own format only, and {self.prompts} is not: prompts: {named}."
                )
        check_asked(specs, [row[column] for row in rows], self.prompts)
        group_by = self.group_by or part
        if group_by is not None and not all(group_by in row for row in rows):
            raise UsageError(f"group_by: not every prompt has a column {group_by!r}; it has {', '.join(rows[0])}.")
        return rows, column, group_by

    @cached_property
    def model_specs(self) -> dict[str, ModelSpec]:
        """The models by name, the base first."""
        return ModelSpec.parse_all(self.models, self.model_revision, self.strengths or ())


@dataclass
class EvaluateArguments(ExecutorArguments):
    """
    How many processes to start, and where. Read by the `craft` command.

    Args:
        num_processes (`int`, *optional*):
            Processes on this machine, each with a GPU of its own and a share of the images. The results do not depend on
            it. Defaults to one.

        The others are those of [`ExecutorArguments`].
    """

    num_processes: Processes | None = field(
        default=None, metadata={"help": "Processes on this machine, each with a share of the images."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.given and self.in_tasks:
            raise UsageError(
                "num_processes starts processes that work together, and tasks do not: leave one of them out."
            )

    @property
    def given(self) -> bool:
        return (self.num_processes or 1) > 1
