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


"""The `craft` command."""

import importlib
import os
import sys
from collections.abc import Sequence

from .. import __version__


STAGES = {
    "expand": "write variants of every prompt",
    "generate": "draw and score candidates: the pool",
    "filter": "filter the pool into a training set, in seconds and without a GPU",
    "train": "fine-tune the model on the training set",
    "evaluate": "compare models on held-out prompts",
}
TOOLS = {
    "dpo": "fine-tune on preference pairs or ranked lists instead: Diffusion-DPO and its kin",
    "scored": "fine-tune on scored images, good and bad ones, instead: DiffusionNFT, AWM, TGO",
    "transitions": "draw pairs of denoising steps, the better against the worse, for SPO",
    "spo": "fine-tune on pairs of denoising steps instead: SPO",
    "sheet": "write a page of all candidates, to look at and to veto",
    "export": "write a trained model in the format of another tool",
    "export-dataset": "write what the filter keeps as a folder for other trainers, or as pairs",
}
SOURCES = {"score": "image", "pick": "model", "import": "source", "blind": "folder"}
MODULES = {"import": "import_dataset"}  # of commands whose name cannot be that of a module
USAGE = """\
usage: craft <command> [options]

  craft run FOLDER [--output_dir DIR] [--rounds N] [--KEY VALUE ...]
{run:>12}    do everything below in order, from a folder of recipes, and go on where it stopped; in rounds, with the tuned model

{stages}

{tools}
  craft plan FOLDER [--gpu NAME] [--price P] [--calibrate] [--KEY VALUE ...]
{run:>12}    print what a run will take: images, GPU hours, money, memory and disk
  craft fetch FOLDER [--dry_run] [--KEY VALUE ...]
{run:>12}    download all that a run needs from the Hub, so that it needs no network
  craft score IMAGE|FOLDER|DATASET ... --rewards NAME[=SOURCE] ... --output_dir DIR
{run:>12}    score images that are there already: a table, and a page of the best and the worst
  craft import FOLDER|DATASET ... --what images|pairs|pool --output_dir DIR
{run:>12}    make a training set, preference pairs or a pool of images that are there already
  craft pick MODEL ... --config EVALUATE.yaml --output_dir DIR
{run:>12}    which of several checkpoints or adapters, of any trainer, draws best on your prompts
  craft blind EVALUATION --output_dir DIR | craft blind DIR --votes FILE ...
{run:>12}    two models side by side for people who do not know which is which; and what their votes say
  craft bakeoff RECIPE.yaml
{run:>12}    baselines against each other, from one pool and at one training budget
  craft push RUN --repo_id ORG/NAME [--private true] [--what model|dataset]
{run:>12}    put the dataset and the model of a run on the Hub, with their cards
  craft serve-reward NAME[=SOURCE] [--port PORT]
{run:>12}    score images for runs elsewhere, which name it as NAME=http://HOST:PORT
  craft env     print versions, devices and downloaded reward models, for bug reports

Every stage reads its settings from a recipe, `craft STAGE --config RECIPE.yaml`; options on the command line win.
`craft STAGE --help` lists them.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `craft` command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if command in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in (
        known := ("run", *STAGES, *TOOLS, "plan", "fetch", *SOURCES, "bakeoff", "push", "serve-reward", "env")
    ):
        print(f"craft: error: there is no command {command!r}. Known are {', '.join(known)}.", file=sys.stderr)
        return 2
    # Read when PyTorch is imported. Threads that wait for each other spin for a moment, then sleep. GNU OpenMP lets them
    # spin for so long that two programs on two cores slow each other down twentyfold; not at all is half as fast.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if not sys.stderr.isatty():
        # In a log file, every refresh of a progress bar is a line. Set before tqdm is imported.
        os.environ.setdefault("TQDM_MININTERVAL", "15")
    from ..errors import exit_code
    from ..quiet import quiet_offline
    from ..scripts.launch import run_script, start

    quiet_offline()
    if command == "run":
        return exit_code(lambda: _run(rest))
    if command in ("plan", "fetch"):
        script = importlib.import_module(f"..scripts.{command}", package=__package__)
        return exit_code(lambda: script.run(rest))
    if command in SOURCES:
        return exit_code(lambda: _with_sources(command, SOURCES[command], rest))
    if command == "bakeoff":
        return exit_code(lambda: _bakeoff(rest))
    if command == "push":
        return exit_code(lambda: _push(rest))
    if command == "serve-reward":
        return exit_code(lambda: _serve_reward(rest))
    if command == "env":
        return exit_code(lambda: _env(rest))
    script = importlib.import_module(f"..scripts.{command.replace('-', '_')}", package=__package__)
    if command in ("train", "dpo", "scored", "spo", "evaluate"):
        from ..scripts.train import CheckedArguments

        checked = {} if command == "evaluate" else {"arguments": CheckedArguments}
        parser = script.make_parser
        return exit_code(
            lambda: start(script, rest, parser(f"craft {command}", **checked).parse_args_and_config(args=rest))
        )
    return run_script(script.main, lambda: script.make_parser(prog=f"craft {command}"), rest)


def _run(argv: list[str]) -> None:
    from ..errors import UsageError

    if not argv or argv[0].startswith("-"):
        if argv and argv[0] in ("-h", "--help"):
            print(_usage())
            return
        raise UsageError("craft run needs a folder of recipes, such as recipes/tiny.")
    from ..planning.recipes import RunRecipes, find_recipes
    from ..scripts.run import main

    main(RunRecipes.load(find_recipes(argv[0]), argv[1:]))


def _bakeoff(argv: list[str]) -> None:
    from ..errors import UsageError
    from ..scripts.bakeoff import main, make_parser

    parser = make_parser(prog="craft bakeoff RECIPE")
    if argv and argv[0] in ("-h", "--help"):
        parser.print_help()
        return
    if not argv or argv[0].startswith("-"):
        raise UsageError("craft bakeoff needs a recipe, such as recipes/tiny/bakeoff.yaml.")
    (config,) = parser.parse_args_and_config(args=["--config", *argv])
    main(config)


def _with_sources(command: str, what: str, argv: list[str]) -> None:
    """`craft score`, `craft pick`, `craft import` and `craft blind`, whose first words are what they look at."""
    from ..errors import UsageError
    from ..parser import at_home

    script = importlib.import_module(f"..scripts.{MODULES.get(command, command)}", package=__package__)
    parser = script.make_parser(prog=f"craft {command} {what.upper()} ...")
    if argv and argv[0] in ("-h", "--help"):
        parser.print_help()
        return
    count = next((i for i, word in enumerate(argv) if word.startswith("--")), len(argv))
    if not count:
        raise UsageError(f"craft {command} needs {what}s before its options: `craft {command} --help`.")
    (config,) = parser.parse_args_and_config(args=argv[count:])
    script.main(at_home(argv[:count]), config)


def _push(argv: list[str]) -> None:
    from ..errors import UsageError
    from ..parser import at_home
    from ..scripts.push import main, make_parser

    parser = make_parser(prog="craft push RUN")
    if not argv or argv[0].startswith("-"):
        if argv and argv[0] in ("-h", "--help"):
            parser.print_help()
            return
        raise UsageError("craft push needs the folder of a run, such as runs/tiny.")
    (args,) = parser.parse_args_and_config(args=argv[1:])
    main(at_home(argv[0]), args)


def _serve_reward(argv: list[str]) -> None:
    from ..errors import UsageError
    from ..parser import at_home
    from ..rewards import RewardSpec
    from ..scripts.serve_reward import main, make_parser

    parser = make_parser(prog="craft serve-reward NAME[=SOURCE]")
    if not argv or argv[0].startswith("-"):
        if argv and argv[0] in ("-h", "--help"):
            parser.print_help()
            return
        raise UsageError("craft serve-reward needs a reward, such as pickscore or hpsv2=./folder.")
    (args,) = parser.parse_args_and_config(args=argv[1:])
    main(RewardSpec.parse(at_home(argv[0])), args)


def _env(argv: list[str]) -> None:
    from ..errors import UsageError

    if argv and argv[0] in ("-h", "--help"):
        print(_usage())
        return
    if argv:
        raise UsageError(f"craft env takes no arguments, got {argv[0]!r}.")
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from ..devices import default_device
    from ..rewards import REWARDS

    print(f"craft_trl {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in (
        "torch",
        "diffusers",
        "transformers",
        "trl",
        "accelerate",
        "datasets",
        "peft",
        "deepspeed",
        "open_clip_torch",
    ):
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            print(f"{name} not installed")
    for i in range(torch.cuda.device_count()):
        print(
            f"GPU {i}: {torch.cuda.get_device_name(i)}, {torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB"
        )
    if not torch.cuda.is_available():
        print(f"no GPU, {os.cpu_count()} CPU cores")
    print(f"works on {default_device()}")
    for name, reward in REWARDS.items():
        for weights in reward.weights:
            path = weights.cached()
            state = f"{path.stat().st_size / 1e6:.1f} MB in the cache" if path else "not downloaded"
            print(f"reward {name}: {weights.name}, {state}")


def _usage() -> str:
    stages, tools = ("\n".join(f"  craft {name:<16}{text}" for name, text in part.items()) for part in (STAGES, TOOLS))
    return USAGE.format(stages=stages, tools=tools, run="")


if __name__ == "__main__":
    raise SystemExit(main())
