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

"""The recipes of a run, read and checked together."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..candidates.config import CandidatesConfig
from ..errors import UsageError
from ..evaluation.config import EvaluationConfig
from ..hub.config import PushConfig
from ..parser import CraftParser, at_home, describe_unexpected, split_path, suggest
from ..trainer.arguments import LaunchArguments, TrainArguments, training_parser


if TYPE_CHECKING:
    from ..trainer.craft_config import CraftConfig

RECIPES = {"candidates": "candidates.yaml", "train": "craft.yaml", "evaluate": "evaluate.yaml"}


@dataclass
class RunRecipes:
    """The configurations of a run, one per recipe file."""

    candidates: CandidatesConfig
    train: TrainArguments
    training: "CraftConfig"
    launch: LaunchArguments
    evaluation: EvaluationConfig
    train_argv: list[str] = field(default_factory=list)
    push: PushConfig | None = None

    @classmethod
    def load(cls, folder: Path, overrides: Sequence[str] = ()) -> "RunRecipes":
        """
        Read the recipes of a folder.

        Args:
            folder (`Path`):
                Folder with `candidates.yaml`, `craft.yaml` and `evaluate.yaml`.
            overrides (`Sequence[str]`, *optional*):
                Command line arguments: `--key value` where only one recipe knows the key, else `--stage.key value`
                with `candidates`, `train` or `evaluate`. `--output_dir` moves the whole run.
        """
        candidates, evaluate = CraftParser([CandidatesConfig]), CraftParser([EvaluationConfig])
        if not overrides:
            # A mistake in these is told before PyTorch is imported, with all options of a Trainer.
            candidates.parse_args_and_config(["--config", str(folder / RECIPES["candidates"])])
            evaluate.parse_args_and_config(["--config", str(folder / RECIPES["evaluate"])])
        from ..trainer.craft_config import CraftConfig

        parsers = {"candidates": candidates, "train": training_parser(CraftConfig), "evaluate": evaluate}
        routed, output_dir = route(overrides, parsers)
        parsed = {
            name: parsers[name].parse_args_and_config(["--config", str(folder / RECIPES[name]), *routed[name]])
            for name in parsers
        }
        recipes = cls(*parsed["candidates"], *parsed["train"], *parsed["evaluate"])
        recipes._check_consistent(folder)
        if output_dir is not None:
            recipes._move(recipes.candidates.output_dir, output_dir)
        recipes.train_argv = ["--config", str(folder / RECIPES["train"]), *routed["train"]]
        recipes.train_argv += ["--dataset_name", recipes.train.dataset_name]
        recipes.train_argv += ["--output_dir", recipes.training.output_dir]
        training = recipes.training
        if training.push_to_hub:
            # Not by the trainer: the card is to hold the results of the evaluation, which comes after it.
            if not training.hub_model_id:
                raise UsageError(f"{folder / RECIPES['train']}: push_to_hub needs hub_model_id: org/name.")
            recipes.push = PushConfig(
                training.hub_model_id,
                what="model",
                private=training.hub_private_repo,
                dataset_repo_id=recipes.candidates.hub_dataset_id,
            )
            training.push_to_hub = False
            recipes.train_argv += ["--push_to_hub", "False"]
        return recipes

    def _check_consistent(self, folder: Path) -> None:
        """The three recipes must speak of one run."""
        run_dir, dataset = Path(self.candidates.output_dir), self.train.dataset_name
        if Path(dataset) != run_dir / "dataset":
            raise UsageError(
                f"{folder / 'craft.yaml'}: dataset_name is {dataset}, but {folder / 'candidates.yaml'} writes "
                f"{run_dir / 'dataset'}."
            )
        if Path(self.training.output_dir) not in (Path(spec.source) for spec in self.evaluation.model_specs.values()):
            raise UsageError(
                f"{folder / 'evaluate.yaml'}: models does not name {self.training.output_dir}, which "
                f"{folder / 'craft.yaml'} writes."
            )
        named = [(RECIPES["candidates"], self.candidates.model_name_or_path, self.candidates.model_revision)]
        named += [(RECIPES["train"], self.train.model_name_or_path, self.train.model_revision)]
        named += [(RECIPES["evaluate"], *spec.whole) for spec in self.evaluation.model_specs.values()]
        first, model, revision = named[0]
        for recipe, other, other_revision in named:
            if other == model and other_revision != revision:
                raise UsageError(
                    f"{folder / recipe}: model_revision of {model} is {other_revision or 'missing'}, and in {first} it is "
                    f"{revision or 'missing'}: the three recipes must speak of one model."
                )

    def _move(self, old: str, new: str) -> None:
        """Replace the run's folder wherever it stands in a configuration."""

        def moved(value):
            if isinstance(value, list):
                return [moved(item) for item in value]
            if isinstance(value, str):
                prefix, path = split_path(value)
                if Path(path).is_relative_to(old):
                    return f"{prefix}{Path(new) / Path(path).relative_to(old)}"
            return value

        for config, names in (
            (self.candidates, ("output_dir",)),
            (self.train, ("dataset_name",)),
            (self.training, ("output_dir",)),
        ):
            for name in names:
                setattr(config, name, moved(getattr(config, name)))
        # A new one, since it has read its list of models.
        names = ("models", "run_dir", "output_dir")
        self.evaluation = replace(self.evaluation, **{name: moved(getattr(self.evaluation, name)) for name in names})


def route(overrides: Sequence[str], parsers: dict[str, CraftParser]) -> tuple[dict[str, list[str]], str | None]:
    """Command line arguments by recipe, and the run's folder if it was given."""
    routed: dict[str, list[str]] = {name: [] for name in parsers}
    # The words of the run's own option, and where the words after an option go.
    output_dir: list[str] | None = None
    target: list[str] | None = None
    for arg in overrides:
        if not arg.startswith("--"):
            if target is None:
                known = {hint for parser in parsers.values() for hint in parser.hints}
                raise UsageError(describe_unexpected(arg, known))
            target.append(arg)
            continue
        key, equals, value = arg.removeprefix("--").partition("=")
        stage, dot, name = key.replace("-", "_").rpartition(".")
        if not dot and name == "output_dir":
            output_dir = target = [value] if equals else []
            continue
        arg = f"--{key}"
        if dot and stage not in parsers:
            raise UsageError(f"Unknown argument {arg}. Before the dot goes one of {', '.join(parsers)}.")
        knowing = [
            s for s, parser in parsers.items() if name in parser.hints or name.removeprefix("no_") in parser.hints
        ]
        knowing = [s for s in knowing if s == stage] if dot else knowing
        if not knowing:
            known = {hint for s, parser in parsers.items() if not dot or s == stage for hint in parser.hints}
            raise UsageError(f"Unknown argument {arg}. {suggest(name, known, prefix='--')}")
        if len(knowing) > 1:
            choices = " or ".join(f"--{s}.{name}" for s in knowing)
            raise UsageError(f"{arg} is known to several stages: say {choices}.")
        target = routed[knowing[0]]
        target.append(f"--{name}{equals}{value}")
    if output_dir is None:
        return routed, None
    if len(output_dir) != 1 or not output_dir[0]:
        raise UsageError(f"--output_dir needs one folder, got {' '.join(output_dir) or 'none'}.")
    return routed, at_home(output_dir[0])


def find_recipes(name: str) -> Path:
    """A folder of recipes: a path, or the name of one of the packaged folders, such as `recipes/tiny`."""
    packages = Path(__file__).parents[1]
    for folder in (Path(at_home(name)), packages.parent / name, packages / name):
        if (folder / "candidates.yaml").is_file():
            return folder
    raise UsageError(f"{name} is no folder with {', '.join(RECIPES.values())}.")
