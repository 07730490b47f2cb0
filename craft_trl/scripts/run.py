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
The whole of CRAFT from a folder of recipes: expand, generate, filter, train, evaluate.

```bash
craft run recipes/tiny
craft run recipes/tiny --output_dir runs/mine --train.max_steps 50
craft run recipes/sdxl --train_recipe craft_lora.yaml
```
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import UsageError
from ..planning.recipes import RunRecipes
from ..stages import check_writable
from . import evaluate, expand, generate, push, train
from . import filter as filter_script
from .launch import say, start


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
    checked = [check(recipes)]
    from ..devices import release_memory

    if recipes.judged is not None:
        say(f"[run] the evaluation judges {recipes.judged}")
    for stage in stages(recipes, checked):
        stage()
        release_memory()


def stages(recipes: RunRecipes, checked: list[expand.Checked]) -> Iterator[Callable[[], None]]:
    """The stages in order. What the first one works with is taken from `checked`, so that it lives no longer than that."""
    yield lambda: expand.main(recipes.candidates, checked.pop())
    yield lambda: _generate(recipes)
    yield lambda: filter_script.main(recipes.candidates)
    yield lambda: start(train, recipes.train_argv, (recipes.train, recipes.training, recipes.launch))
    yield lambda: start(evaluate, recipes.evaluate_argv, (recipes.evaluation, recipes.evaluate))
    if recipes.push is not None:
        yield lambda: push.main(recipes.candidates.output_dir, recipes.push)


def _generate(recipes: RunRecipes) -> None:
    if generate.main(recipes.candidates, set_aside=True):
        raise UsageError("The pool is not complete: wait for the other process, then run the same command again.")
