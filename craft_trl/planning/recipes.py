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

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..candidates.config import CandidatesConfig
from ..errors import UsageError
from ..evaluation.config import EvaluateArguments, EvaluationConfig
from ..hub.config import PushConfig
from ..parser import CraftParser, at_home, check_recipe, describe_unexpected, relative_to, split_path, suggest, without
from ..trainer.arguments import LaunchArguments, TrainArguments, training_parser


if TYPE_CHECKING:
    from ..trainer.craft_config import CraftConfig

RECIPES = {"candidates": "candidates.yaml", "train": "craft.yaml", "evaluate": "evaluate.yaml"}
# Options of a run itself, each with one value, and what that is.
OWN = {"output_dir": "folder", "candidates_recipe": "file", "train_recipe": "file", "rounds": "number"}
MOST_ROUNDS = 100


@dataclass
class RunRecipes:
    """The configurations of a run, one per recipe file."""

    candidates: CandidatesConfig
    train: TrainArguments
    training: "CraftConfig"
    launch: LaunchArguments
    evaluation: EvaluationConfig
    evaluate: EvaluateArguments
    files: dict[str, Path] = field(default_factory=dict)
    train_argv: list[str] = field(default_factory=list)
    evaluate_argv: list[str] = field(default_factory=list)
    push: PushConfig | None = None
    rounds: int = 1
    judged: str | None = None  # what the evaluation was made to judge instead of what its recipe names

    @classmethod
    def load(cls, folder: Path, overrides: Sequence[str] = ()) -> "RunRecipes":
        """
        Read the recipes of a folder.

        Args:
            folder (`Path`):
                Folder with `candidates.yaml`, `craft.yaml` and `evaluate.yaml`.
            overrides (`Sequence[str]`, *optional*):
                Command line arguments: `--key value` where only one recipe knows the key, else `--stage.key value`
                with `candidates`, `train` or `evaluate`. `--output_dir` moves the whole run, `--rounds` says how many it has, and `--candidates_recipe` and
                `--train_recipe` name other recipes of these stages, in the folder or elsewhere. The evaluation judges what the training
                writes: an adapter as one, and in another folder than that of `craft.yaml` too.
        """
        candidates = CraftParser([CandidatesConfig])
        evaluate = CraftParser([EvaluationConfig, EvaluateArguments], launched="craft_trl.scripts.evaluate")
        files = {name: folder / file for name, file in RECIPES.items()}
        if not overrides:
            # A mistake in these is told before PyTorch is imported, with all options of a Trainer.
            candidates.parse_args_and_config(["--config", str(files["candidates"])])
            evaluate.parse_args_and_config(["--config", str(files["evaluate"])])
        from ..trainer.craft_config import CraftConfig

        parsers = {"candidates": candidates, "train": training_parser(CraftConfig), "evaluate": evaluate}
        routed, own = route(overrides, parsers)
        for stage in ("candidates", "train"):
            if f"{stage}_recipe" in own:
                files[stage] = find_recipe(folder, stage, own[f"{stage}_recipe"])
        parsed = {
            name: parsers[name].parse_args_and_config(["--config", str(files[name]), *routed[name]])
            for name in parsers
        }
        recipes = cls(*parsed["candidates"], *parsed["train"], *parsed["evaluate"], files=files)
        recipes.rounds = read_rounds(own.get("rounds", "1"))
        recipes._follow(folder / RECIPES["train"])
        recipes._follow_candidates(folder / RECIPES["candidates"])
        recipes._check_consistent()
        if "output_dir" in own:
            recipes._move(recipes.candidates.output_dir, own["output_dir"])
        training, evaluation = recipes.training, recipes.evaluation
        recipes.train_argv = ["--config", str(files["train"]), *routed["train"]]
        recipes.train_argv += ["--dataset_name", recipes.train.dataset_name, "--output_dir", training.output_dir]
        if recipes.train.average_with:
            recipes.train_argv += ["--average_with", *recipes.train.average_with]
        recipes.evaluate_argv = ["--config", str(files["evaluate"]), *without({"models"}, routed["evaluate"])]
        recipes.evaluate_argv += ["--models", *evaluation.models, "--output_dir", evaluation.output_dir]
        if evaluation.run_dir is not None:
            recipes.evaluate_argv += ["--run_dir", evaluation.run_dir]
        if training.push_to_hub:
            # Not by the trainer: the card is to hold the results of the evaluation, which comes after it.
            if not training.hub_model_id:
                raise UsageError(f"{files['train']}: push_to_hub needs hub_model_id: org/name.")
            recipes.push = PushConfig(
                training.hub_model_id,
                what="model",
                private=training.hub_private_repo,
                dataset_repo_id=recipes.candidates.hub_dataset_id,
                model_dir=training.output_dir,
            )
            training.push_to_hub = False
            recipes.train_argv += ["--push_to_hub", "False"]
        return recipes

    def _follow(self, standard: Path) -> None:
        """
        Let the evaluation judge what the training writes where it names the folder of that, or of the standard recipe: as
        an adapter if it is one.
        """
        known = {Path(self.training.output_dir)}
        for path in (standard, self.files["train"]):
            written = check_recipe(path).get("output_dir") if path.is_file() else None
            if isinstance(written, str):
                known.add(Path(relative_to(path.parent, written)))
        kind = "lora:" if self.train.use_peft else ""
        models = list(self.evaluation.models)
        for number, text in enumerate(models):
            name, _, source = text.partition("=")
            if Path(split_path(text)[1]) not in known or source.startswith("results:"):
                continue
            strength = re.match("(strength:[^:]*:)?", source).group()
            models[number] = f"{name}={strength}{kind}{self.training.output_dir}"
            base = next(iter(self.evaluation.model_specs.values())).source
            if kind and Path(base).is_file():
                raise UsageError(
                    f"{self.files['evaluate']}: the training makes an adapter, which is judged on a base that is a folder or "
                    f"on the Hub, and {base} is a file: name its folder in models."
                )
            if models[number] != text:
                self.judged = models[number]
        # A new one, since it has read its list of models.
        self.evaluation = replace(self.evaluation, models=models)

    def _follow_candidates(self, standard: Path) -> None:
        """Let the evaluation write beside what other candidates than the standard recipe's write, and speak of that run."""
        written = check_recipe(standard).get("output_dir") if standard.is_file() else None
        if isinstance(written, str):
            self._move_evaluation(
                relative_to(standard.parent, written), self.candidates.output_dir, "run_dir", "output_dir"
            )

    def _check_consistent(self) -> None:
        """The three recipes must speak of one run."""
        run_dir, dataset = Path(self.candidates.output_dir), self.train.dataset_name
        if Path(dataset) != run_dir / "dataset":
            raise UsageError(
                f"{self.files['train']}: dataset_name is {dataset}, but {self.files['candidates']} writes "
                f"{run_dir / 'dataset'}."
            )
        if Path(self.training.output_dir) not in (Path(spec.source) for spec in self.evaluation.model_specs.values()):
            raise UsageError(
                f"{self.files['evaluate']}: models does not name {self.training.output_dir}, which {self.files['train']} "
                "writes."
            )
        draft = self.candidates.draft_adapter
        if draft is not None and Path(draft) == Path(self.training.output_dir):
            raise UsageError(
                f"{self.files['candidates']}: draft_adapter {draft} is what {self.files['train']} writes. It is one that draws in "
                "few steps, and is not trained."
            )
        length = self.candidates.max_sequence_length
        for name, config in (("train", self.training), ("evaluate", self.evaluation)):
            if config.max_sequence_length != length:
                raise UsageError(
                    f"{self.files[name]}: max_sequence_length is {_stated(config.max_sequence_length)}, and in "
                    f"{self.files['candidates'].name} it is {_stated(length)}: the model must read the same of a prompt in all "
                    "three recipes."
                )
        named = [(self.files["candidates"], self.candidates.model_name_or_path, self.candidates.model_revision)]
        named += [(self.files["train"], self.train.model_name_or_path, self.train.model_revision)]
        named += [(self.files["evaluate"], *spec.whole) for spec in self.evaluation.model_specs.values()]
        first, model, revision = named[0]
        for recipe, other, other_revision in named:
            if other == model and other_revision != revision:
                raise UsageError(
                    f"{recipe}: model_revision of {model} is {_stated(other_revision)}, and in {first.name} it is "
                    f"{_stated(revision)}: the three recipes must speak of one model."
                )

    def _move(self, old: str, new: str) -> None:
        """Replace the run's folder wherever it stands in a configuration."""
        for config, names in (
            (self.candidates, ("output_dir",)),
            (self.train, ("dataset_name", "average_with")),
            (self.training, ("output_dir",)),
        ):
            for name in names:
                setattr(config, name, _moved(getattr(config, name), old, new))
        self._move_evaluation(old, new, "models", "run_dir", "output_dir")
        self.judged = _moved(self.judged, old, new)

    def _move_evaluation(self, old: str, new: str, *names: str) -> None:
        # A new one, since it has read its list of models.
        values = {name: _moved(getattr(self.evaluation, name), old, new) for name in names}
        self.evaluation = replace(self.evaluation, **values)


def _moved(value: object, old: str, new: str) -> object:
    """A path in a recipe, or a list of such, in another folder if it was in the old one."""
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    if isinstance(value, str):
        prefix, path = split_path(value)
        if Path(path).is_relative_to(old):
            return f"{prefix}{Path(new) / Path(path).relative_to(old)}"
    return value


def _stated(value: object) -> str:
    """A setting in words."""
    return "missing" if value is None else str(value)


def route(overrides: Sequence[str], parsers: dict[str, CraftParser]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Command line arguments by recipe, and the options of the run itself."""
    routed: dict[str, list[str]] = {name: [] for name in parsers}
    # The words of the run's own options, and where the words after an option go.
    own: dict[str, list[str]] = {}
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
        if not dot and name in OWN:
            own[name] = target = [value] if equals else []
            continue
        arg = f"--{key}"
        if dot and stage not in parsers:
            raise UsageError(f"Unknown argument {arg}. Before the dot goes one of {', '.join(parsers)}.")
        knowing = [
            s for s, parser in parsers.items() if name in parser.hints or name.removeprefix("no_") in parser.hints
        ]
        knowing = knowing or [s for s, parser in parsers.items() if parser.passes_on(name)]
        knowing = [s for s in knowing if s == stage] if dot else knowing
        if not knowing:
            asked = [parser for s, parser in parsers.items() if not dot or s == stage]
            known = {hint for parser in asked for hint in parser.hints} | ({*OWN} if not dot else set())
            said = next(filter(None, (parser.of_accelerate(name) for parser in asked)), None)
            raise UsageError(f"Unknown argument {arg}. {said or suggest(name, known, prefix='--')}")
        if len(knowing) > 1:
            choices = " or ".join(f"--{s}.{name}" for s in knowing)
            raise UsageError(f"{arg} is known to several stages: say {choices}.")
        target = routed[knowing[0]]
        target.append(f"--{name}{equals}{value}")
    for name, values in own.items():
        if len(values) != 1 or not values[0]:
            raise UsageError(f"--{name} needs one {OWN[name]}, got {' '.join(values) or 'none'}.")
    return routed, {name: at_home(value) for name, (value,) in own.items()}


def read_rounds(text: str) -> int:
    """The number of rounds that was asked for."""
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= MOST_ROUNDS:
        raise UsageError(f"rounds must be a whole number from 1 to {MOST_ROUNDS}, got {text}.")
    return number


def find_recipe(folder: Path, stage: str, name: str) -> Path:
    """Another recipe of a stage: a file in the folder of recipes, with or without its ending, or a path."""
    for path in (folder / name, folder / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    others = {*RECIPES.values()} - {RECIPES[stage]}
    stem = RECIPES[stage].removesuffix(".yaml")
    known = sorted(path.name for path in folder.glob(f"{stem}*.yaml") if path.name not in others)
    raise UsageError(f"{stage}_recipe: there is no {folder / name}. {suggest(name, known)}")


def find_recipes(name: str) -> Path:
    """A folder of recipes: a path, or the name of one of the packaged folders, such as `recipes/tiny`."""
    packages = Path(__file__).parents[1]
    for folder in (Path(at_home(name)), packages.parent / name, packages / name):
        if (folder / "candidates.yaml").is_file():
            return folder
    raise UsageError(f"{name} is no folder with {', '.join(RECIPES.values())}.")
