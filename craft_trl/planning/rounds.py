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

"""The recipes of later rounds: the last round's model draws and is trained, and the base model's originals stay the measure."""

import copy
from dataclasses import replace
from pathlib import Path

from ..errors import UsageError
from ..evaluation.rounds import name_of
from ..parser import without
from ..sources import model_hash
from .recipes import RunRecipes


def folder_of(recipes: RunRecipes, number: int) -> Path:
    """Folder of a round: of the first one that of the run."""
    run = Path(recipes.candidates.output_dir)
    return run if number == 1 else run / name_of(number)


def model_of(recipes: RunRecipes, number: int) -> Path:
    """What the training of a round writes."""
    first = Path(recipes.training.output_dir)
    return first if number == 1 else folder_of(recipes, number) / first.name


def whole_of(recipes: RunRecipes, number: int) -> Path:
    """The model of a round as a whole pipeline: of an adapter, with that merged into what it was trained on."""
    return folder_of(recipes, number) / "merged" if recipes.train.use_peft else model_of(recipes, number)


def check_rounds(recipes: RunRecipes) -> None:
    """Raise a [`UsageError`] if recipes cannot have several rounds."""
    if recipes.rounds == 1:
        return
    draws, files = recipes.candidates.model_name_or_path, recipes.files
    base = next(iter(recipes.evaluation.model_specs.values()))
    for recipe, what, name, revision in (
        (files["train"], "trains", recipes.train.model_name_or_path, recipes.train.model_revision),
        (files["evaluate"], "compares with", base.source, base.whole[1]),
    ):
        if model_hash(name, revision) != model_hash(draws, recipes.candidates.model_revision):
            raise UsageError(
                f"rounds is {recipes.rounds}, but {recipe} {what} {name}, and {files['candidates'].name} draws with {draws}: they must be one "
                "model, the first round's."
            )
    if not recipes.evaluation.held_out_rewards:
        raise UsageError(
            f"rounds is {recipes.rounds}, but {files['evaluate']} has no held_out_rewards, which decide whether another round follows."
        )
    if recipes.evaluation.strengths:
        raise UsageError(
            f"rounds is {recipes.rounds}, but strengths are of the way from the base, and a later round begins with another model: leave "
            "strengths out, and run `craft evaluate` with them afterwards."
        )
    if recipes.train.average_with:
        raise UsageError(
            f"rounds is {recipes.rounds}, but average_with is of trainings of the base, and a later round begins with another model: "
            "leave it out."
        )
    if recipes.candidates.originals_from is not None:
        raise UsageError(
            f"rounds is {recipes.rounds}, but originals_from is {recipes.candidates.originals_from}: the originals are those of the first "
            "round, leave it out."
        )
    if name_in_recipe(recipes) is None:
        raise UsageError(
            f"rounds is {recipes.rounds}, but {files['evaluate']} names {recipes.training.output_dir} at a strength only."
        )
    for number in range(2, recipes.rounds + 1):
        recipes_of_round(recipes, number)  # what is wrong with any of them


def recipes_of_round(recipes: RunRecipes, number: int) -> RunRecipes:
    """
    The recipes of a round after the first. The model of the round before draws the variants and is trained on; where it was saved as a
    moving average (`use_ema`), or is the guard's choice among its steps, that is what both begin with. The originals, their images
    and scores, are those of the first round.
    """
    folder, model = folder_of(recipes, number), str(whole_of(recipes, number - 1))
    run = folder_of(recipes, 1)
    candidates = replace(
        recipes.candidates,
        model_name_or_path=model,
        model_revision=None,
        originals_from=str(run),
        output_dir=str(folder),
        push_to_hub=False,
    )
    dataset, output_dir = str(folder / "dataset"), str(model_of(recipes, number))
    train = replace(recipes.train, model_name_or_path=model, model_revision=None, dataset_name=dataset)
    training = copy.copy(recipes.training)  # making a new one resets accelerate's distributed state
    training.output_dir = output_dir
    changed = {
        "models": models_of(recipes, number),
        "images_dir": recipes.evaluation.images_dir or str(Path(recipes.evaluation.output_dir) / "images"),
        "output_dir": str(folder / Path(recipes.evaluation.output_dir).name),
        "run_dir": None if recipes.evaluation.run_dir is None else str(folder),
    }
    evaluation = replace(recipes.evaluation, **changed)
    argv = []
    for name, value in changed.items():
        argv += [] if value is None else [f"--{name}", *([value] if isinstance(value, str) else value)]
    return replace(
        recipes,
        candidates=candidates,
        train=train,
        training=training,
        evaluation=evaluation,
        train_argv=[
            *without({"model_name_or_path", "model_revision", "dataset_name", "output_dir"}, recipes.train_argv),
            "--model_name_or_path", model, "--model_revision", "", "--dataset_name", dataset, "--output_dir", output_dir,
        ],
        evaluate_argv=[*without({*changed}, recipes.evaluate_argv), *argv],
        push=None if recipes.push is None else replace(recipes.push, model_dir=str(whole_of(recipes, number)), dataset_repo_id=None),
        judged=None,
    )  # fmt: skip


def models_of(recipes: RunRecipes, number: int) -> list[str]:
    """Models of a round's evaluation: those of the recipe, with the rounds so far instead of the one that is trained."""
    trained = name_in_recipe(recipes)
    others = [text for text in recipes.evaluation.models if text.partition("=")[0] != trained]
    kind = "lora:" if recipes.train.use_peft else ""
    sources = [f"{kind}{model_of(recipes, 1)}", *(str(whole_of(recipes, k)) for k in range(2, number + 1))]
    return others + [f"{name_of(k)}={source}" for k, source in enumerate(sources, 1)]


def name_in_recipe(recipes: RunRecipes) -> str | None:
    """What the evaluation's recipe calls the model that is trained; `None` if it is there at another strength only."""
    specs = recipes.evaluation.model_specs.values()
    trained = (spec.name for spec in specs if Path(spec.source) == model_of(recipes, 1) and spec.strength == 1)
    return next(trained, None)
