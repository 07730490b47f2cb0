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
The whole of CRAFT from a folder of recipes: expand, generate, filter, train, evaluate; and with `--rounds` all but the first
again, with the model of the round before.

```bash
craft run recipes/tiny
craft run recipes/tiny --rounds 3
craft run recipes/tiny --output_dir runs/mine --train.max_steps 50
craft run recipes/sdxl --train_recipe craft_lora.yaml
```
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import NothingToDoError, UsageError
from ..planning.recipes import RunRecipes
from ..sources import FACTS
from ..stages import Stage, check_writable, move_into
from . import evaluate, expand, generate, push, train
from . import filter as filter_script
from .launch import run_stage, say, start


def check(recipes: RunRecipes) -> expand.Checked:
    """Find what is wrong with any stage before the first one spends its time; return what the first one works with."""
    checked = expand.check(recipes.candidates)
    generate.check(recipes.candidates)
    filter_script.check(recipes.candidates)
    train.check(recipes.train, recipes.launch, recipes.training, on_one_machine="craft run")
    train.check_agreement(recipes.candidates.sampling(), recipes.training)
    if recipes.push is not None:
        from huggingface_hub import HfApi

        from ..hub.upload import check_repository

        check_repository(HfApi(), recipes.push.repo_id, "model", recipes.push.private)
    from ..evaluation.evaluate import Evaluation

    evaluation = Evaluation(recipes.evaluation)
    evaluation.check_models(yet_to_come=recipes.training.output_dir)
    for folder in (recipes.candidates.output_dir, recipes.training.output_dir, recipes.evaluation.output_dir):
        check_writable(Path(folder))
    return checked


def main(recipes: RunRecipes) -> None:
    """Run every stage that is not done. Each leaves the device's memory to the next one, which may be other processes."""
    from ..planning.rounds import check_rounds

    checked = [check(recipes)]
    check_rounds(recipes)
    if recipes.judged is not None:
        say(f"[run] the evaluation judges {recipes.judged}")
    if recipes.rounds > 1:
        recipes = run_rounds(recipes, checked)
    else:
        work_through(stages(recipes, checked))
    if recipes.push is not None:
        push.main(recipes.candidates.output_dir, recipes.push)


def work_through(stages: Iterator[Callable[[], None]]) -> None:
    from ..devices import release_memory

    for stage in stages:
        stage()
        release_memory()


def stages(recipes: RunRecipes, checked: list[expand.Checked]) -> Iterator[Callable[[], None]]:
    """The stages in order. What the first one works with is taken from `checked`, so that it lives no longer than that."""
    yield from candidates(recipes, checked)
    yield from training(recipes)


def candidates(recipes: RunRecipes, checked: list[expand.Checked]) -> Iterator[Callable[[], None]]:
    """The stages that make the training set; without the expansion where `checked` is empty."""
    if checked:
        yield lambda: expand.main(recipes.candidates, checked.pop())
    yield lambda: _generate(recipes)
    yield lambda: filter_script.main(recipes.candidates)


def training(recipes: RunRecipes) -> Iterator[Callable[[], None]]:
    """The stages that follow it."""
    yield lambda: start(train, recipes.train_argv, (recipes.train, recipes.training, recipes.launch))
    yield lambda: start(evaluate, recipes.evaluate_argv, (recipes.evaluation, recipes.evaluate))


def run_rounds(recipes: RunRecipes, checked: list[expand.Checked]) -> RunRecipes:
    """Run round after round as long as one is worth it, by [`rounds.RULE`], and return the recipes of the best one."""
    import numpy as np

    from ..evaluation.rounds import RULE, Rounds, name_of, pass_shares
    from ..planning.rounds import folder_of, model_of, name_in_recipe, recipes_of_round, whole_of

    rounds = Rounds(recipes.candidates.output_dir, recipes.rounds)
    say(f"[run] up to {recipes.rounds} rounds. {RULE}")
    for number in range(1, recipes.rounds + 1):
        folder, current, name = folder_of(recipes, number), recipes, name_in_recipe(recipes)
        if number > 1:
            merge(recipes, number - 1)
            current, name = recipes_of_round(recipes, number), name_of(number)
            say(f"[run] round {number}: {current.candidates.model_name_or_path} draws and is trained, in {folder}")
            link_prompts(folder)
        try:
            work_through(candidates(current, checked))
            passing = pass_shares(folder / "dataset")
        except NothingToDoError:
            if number == 1:
                raise
            passing = np.zeros_like(rounds.passing[-1])
        if not rounds.filtered(current.training.output_dir, passing):
            say(f"[run] {rounds.describe()}")
            break
        train_stage, evaluate_stage = training(current)
        work_through(iter([train_stage]))
        if number > 1:
            merge(recipes, number)  # as what it is judged
        work_through(iter([evaluate_stage]))
        going_on = rounds.evaluated(Path(current.evaluation.output_dir), name)
        say(f"[run] {rounds.describe()}")
        if not going_on:
            break
    best = rounds.best.round
    where = model_of(recipes, 1) if best == 1 else whole_of(recipes, best)
    say(f"[run] the best of {len(rounds.rounds)} rounds is round {best}, {where}")
    return recipes if best == 1 else recipes_of_round(recipes, best)


def link_prompts(folder: Path) -> None:
    """Give a round the prompts of the run: a link, so that they are the same whatever is done to them."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "prompts"
    if not link.is_symlink():
        if link.exists():
            raise UsageError(f"{link} is not a round's: move it away.")
        link.symlink_to(Path("..", "prompts"), target_is_directory=True)


def merge(recipes: RunRecipes, number: int) -> None:
    """Write the model of a round as a whole pipeline, if it is an adapter: what the next round begins with."""
    if not recipes.train.use_peft:
        return
    import torch

    from ..devices import release_memory
    from ..evaluation.models import Model
    from ..families.adapters import merge_adapter
    from ..planning.rounds import model_of, recipes_of_round, whole_of
    from ..quiet import quiet_logs

    trained = recipes if number == 1 else recipes_of_round(recipes, number)
    base = trained.train.model_name_or_path, trained.train.model_revision
    model = Model(f"of round {number}", "lora", str(model_of(recipes, number)), *base)
    stage = Stage("merge", whole_of(recipes, number), {"model": model.hash()})

    def work() -> dict:
        temporary = stage.folder.with_name(f".{stage.folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        pipeline = model.load(torch.float32)
        merge_adapter(pipeline)
        with quiet_logs():  # diffusers warns of each part that is not there
            pipeline.save_pretrained(temporary, max_shard_size="10GB")
        facts = json.loads((model_of(recipes, number) / FACTS).read_text(encoding="utf-8"))
        (temporary / FACTS).write_text(json.dumps(facts | {"lora": None}, indent=2) + "\n", encoding="utf-8")
        move_into(temporary, stage.folder)
        return {}

    run_stage(stage, work, lambda _: f"{model.source} merged, in {stage.folder}")
    release_memory()


def _generate(recipes: RunRecipes) -> None:
    if generate.main(recipes.candidates, set_aside=True):
        raise UsageError("The pool is not complete: wait for the other process, then run the same command again.")
