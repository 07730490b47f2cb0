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


"""
What a run will take before anything is spent: images, survivors, GPU hours, money, memory and disk.

```bash
craft plan recipes/tiny --gpu h100:80 --price 2.5
craft plan recipes/tiny --gpu cpu --calibrate
craft plan recipes/sdxl --train_recipe craft_lora.yaml --gpu rtx4090:24
craft plan recipes/sdxl --rounds 3 --gpu h100:80
craft plan recipes/tiny --pass_rate 0.5 --candidates.num_prompts 10000 --json
```
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import yaml

from ..errors import UsageError
from ..parser import CraftParser, check_recipe
from ..ranges import NotNegative, Range, check_ranges
from .launch import find_accelerate_config, say


if TYPE_CHECKING:
    from ..planning.gpus import GPU
    from ..planning.memory import Profile
    from ..planning.recipes import RunRecipes


@dataclass
class PlanArguments:
    """
    What to plan for. Every option of a recipe may be given too, as to `craft run`.

    Args:
        gpu (`str`, *optional*):
            Such as `h100:80`, `rtx4090:24`, `t4:16` or `cpu`; a wrong one is told all known ones. Defaults to this
            machine's.
        price (`float`, *optional*):
            Price of a GPU hour.
        pass_rate (`float`, *optional*):
            Share of variants that beat their original on every filter reward. Defaults to what chance gives.
        calibrate (`bool`, *optional*, defaults to `False`):
            Measure a batch of candidates, its scores and a training step here, with the recipe's own models.
        json (`bool`, *optional*, defaults to `False`):
            Print the plan as JSON.
    """

    gpu: str | None = field(
        default=None,
        metadata={
            "help": "Such as h100:80, rtx4090:24, t4:16 or cpu; a wrong one is told all. Defaults to this machine's."
        },
    )
    price: NotNegative | None = field(default=None, metadata={"help": "Price of a GPU hour."})
    pass_rate: Annotated[float, Range(0, 1, "()")] | None = field(
        default=None,
        metadata={"help": "Share of variants that beat their original on every filter reward. Defaults to chance."},
    )
    calibrate: bool = field(
        default=False,
        metadata={"help": "Measure a batch, its scores and a training step here, with the recipe's models."},
    )
    json: bool = field(default=False, metadata={"help": "Print the plan as JSON."})

    def __post_init__(self):
        check_ranges(self)


def main(folder: Path, args: PlanArguments, overrides: Sequence[str] = ()) -> None:
    """Print the plan of a folder of recipes."""
    # Here: a wrong argument is told before the libraries are imported.
    from ..planning.gpus import find_gpu

    gpu = find_gpu(args.gpu)
    if args.calibrate and args.gpu is not None and (here := find_gpu(None)).name != gpu.name:
        raise UsageError(f"calibrate measures this machine, {here.name}: leave out --gpu {args.gpu}.")
    from ..planning.planner import Planner
    from ..planning.recipes import RunRecipes
    from ..planning.rounds import check_rounds

    recipes = RunRecipes.load(folder, overrides)
    check_rounds(recipes)
    planner = Planner(recipes, training_profile(recipes, gpu), gpu, args.pass_rate)
    measured = None
    if args.calibrate:
        from ..planning.calibration import calibrate

        measured = calibrate(planner)
    plan = planner.plan(args.price, measured)
    if args.json:
        say(json.dumps(plan.to_dict(), indent=1))
        return
    say(f"Plan of {folder} on {gpu.name}: {plan.denoiser_tflops:.4g} TFLOP a call of the denoiser, {plan.image_tflops:.4g} an "
        f"image, {plan.sample_tflops:.4g} a training sample\n")  # fmt: skip
    say(plan.table() + "\n")
    for line in plan.assumptions:
        say(f"- {line}")
    total = plan.to_dict()
    cost = "" if args.price is None else f", {total['cost']:,.2f} at {args.price:g} an hour"
    fits = "Every stage fits into its memory." if total["fits"] else "A stage does not fit into its memory."
    say(f"\nIn all {total['gpu_hours']:,.3g} GPU hours{cost}, and {total['disk'] / 1e9:,.3g} GB of disk. {fits}")


def training_profile(recipes: "RunRecipes", gpu: "GPU") -> "Profile":
    """How the training of a folder of recipes is spread out on GPUs of this kind."""
    from ..planning.memory import Profile

    launch, training = recipes.launch, recipes.training
    accelerate = {}
    if launch.accelerate_config is not None:
        accelerate = yaml.safe_load(find_accelerate_config(launch.accelerate_config).read_text(encoding="utf-8"))
    deepspeed = accelerate.get("deepspeed_config", {})
    zero_stage = deepspeed.get("zero_stage", 0)
    # What the configuration made of `bf16` is right for the machine that plans, not for the one that is planned for.
    wanted = check_recipe(recipes.files["train"]).get("bf16")
    half = training.bf16 if gpu.name == "cpu" else wanted is not False
    num_processes = launch.num_processes or accelerate.get("num_processes", 1)
    if num_processes < 1:
        raise UsageError(
            f"num_processes is missing: {launch.accelerate_config} says nothing of the processes of all machines together."
        )
    return Profile(
        num_processes=num_processes,
        zero_stage=zero_stage,
        dtype="float16" if training.fp16 or (half and not gpu.bfloat16) else "bfloat16" if half else "float32",
        offload_optimizer=deepspeed.get("offload_optimizer_device", "none") != "none",
        autocast=not zero_stage and (training.fp16 or half and (not gpu.bfloat16 or training.bf16_mode == "autocast")),
        fsdp=accelerate.get("distributed_type") == "FSDP",
    )


def split(argv: Sequence[str], parser: CraftParser | None = None) -> tuple[list[str], list[str]]:
    """Command line arguments of a command itself, by default the plan, and those of the recipes."""
    hints = (parser or make_parser()).hints
    own: list[str] = []
    others: list[str] = []
    target = others
    for arg in argv:
        if arg.startswith("--"):
            name = arg.removeprefix("--").split("=")[0].replace("-", "_")
            target = own if {name, name.removeprefix("no_")} & {*hints, "help"} else others
        target.append(arg)
    return own, others


def run(argv: Sequence[str]) -> None:
    """The command line: a folder of recipes, then options."""
    if argv and argv[0] in ("-h", "--help"):
        make_parser(prog="craft plan FOLDER").print_help()
        return
    if not argv or argv[0].startswith("-"):
        raise UsageError("craft plan needs a folder of recipes, such as recipes/tiny.")
    own, others = split(argv[1:])
    (args,) = make_parser(prog="craft plan FOLDER").parse_args_and_config(args=own)
    from ..planning.recipes import find_recipes

    main(find_recipes(argv[0]), args, others)


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([PlanArguments], prog=prog)


if __name__ == "__main__":
    import sys

    from ..errors import exit_code

    raise SystemExit(exit_code(lambda: run(sys.argv[1:])))
