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
Baselines against each other: one pool of candidates, one budget of training, one evaluation.

```bash
craft bakeoff recipes/tiny/bakeoff.yaml
craft bakeoff recipes/tiny/bakeoff.yaml --arms sft craft --seeds 0 --output_dir runs/two_arms
craft bakeoff recipes/tiny/bakeoff.yaml --num_processes 2
```
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ..bakeoff.arms import (
    NO_NEGATIVES,
    Material,
    check_arms,
    make_seed_groups,
    method_of,
    parts_of,
    rate_of,
)
from ..bakeoff.comparison import compare_arms, format_arms, verdict
from ..bakeoff.config import BakeoffConfig
from ..candidates.config import CandidatesConfig
from ..candidates.groups import Group, load_groups
from ..candidates.pool import CandidatePool
from ..candidates.tree_config import check_trees
from ..conditions import split_conditions
from ..errors import UsageError
from ..evaluation.config import EvaluateArguments
from ..parser import CraftParser, check_recipe
from ..sources import model_hash
from ..stages import Stage, check_writable, fingerprint, read_record, read_timings, stopwatch, write_atomically
from . import dpo, evaluate, expand, generate, scored, spo, train, transitions
from .launch import describe_end, launch, run_stage, say
from .together import judge_together, train_together


if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation


class Bakeoff:
    """
    The settings of a comparison, checked.

    Args:
        config ([`BakeoffConfig`]):
            Settings.
    """

    def __init__(self, config: BakeoffConfig):
        self.config = config
        self.folder = Path(config.output_dir)
        several = config.num_processes if config.num_processes > 1 else None  # else as the recipe has it
        candidates = _given(
            num_prompts=config.num_prompts, output_dir=config.output_dir, generate_all="true", num_processes=several
        )
        self.candidates: CandidatesConfig = _parse(expand, config.candidates, candidates)[0]
        check_arms(config.arms, self.candidates.reward_names)
        self.trained = [arm for arm in config.arms if parts_of(arm) == [arm]]  # the others are means of these
        if limits := split_conditions(self.candidates.conditions(self.candidates.reward_names))[1]:
            raise UsageError(
                f"{config.candidates}: filter_rewards has the limit {limits[0]}, but the arms of a bake-off have filters of "
                "their own, without limits: leave it out."
            )
        expand.check(self.candidates)
        generate.check(self.candidates)
        if self.draws_trees:
            check_trees(self.candidates)
        self.devices: list[dict[str, str]] = []
        if several:
            from ..devices import check_devices, single_devices

            check_devices(several)
            self.devices = single_devices()
        for arm in self.trained:
            train_args, training_args, launch_args = self.training(arm, config.seeds[0])
            if train_args.average_with:
                raise UsageError(
                    f"{config.training}: average_with is of one training. The mean of arms is an arm such as craft+sft: leave it out."
                )
            if several and launch_args.given:
                raise UsageError(
                    f"num_processes is {several}, but each training of {config.training} is launched on processes of its own: leave "
                    "one of the two out."
                )
            train.check(train_args, launch_args, training_args, on_one_machine="craft bakeoff")
        self.evaluation_argv = _given(
            num_prompts=config.num_test_prompts,
            output_dir=str(self.folder / "evaluation"),
            num_images_per_prompt=config.num_images_per_prompt,
            frontier="true" if config.frontier else None,
        )
        from ..evaluation.evaluate import Evaluation

        settings, places = _parse(evaluate, config.evaluation, self.evaluation_argv)
        nothing = vars(EvaluateArguments())
        if where := [name for name, value in vars(places).items() if value not in (nothing[name], 1)]:
            raise UsageError(
                f"{config.evaluation}: {where[0]} says where an evaluation is done. A bake-off does its own here, in as many "
                "processes as its own num_processes says: leave it out."
            )
        judged = Evaluation(settings)
        if "held_out" not in judged.roles.values():
            raise UsageError(f"{config.evaluation}: held_out_rewards is missing, and they decide a comparison.")
        check_writable(self.folder)

    @property
    def draws_trees(self) -> bool:
        """Whether an arm learns from trees of transitions."""
        return any(method_of(arm).unit == "transitions" for arm in self.trained)

    def folder_of(self, arm: str, seed: int) -> Path:
        """Where an arm's model of one training seed goes."""
        return self.folder / "arms" / arm / f"seed-{seed}" / "model"

    def training(self, arm: str, seed: int) -> tuple:
        """Arguments of a training, as its script takes them."""
        return _script(arm).make_parser().parse_args_and_config(self.training_argv(arm, seed))

    def training_argv(self, arm: str, seed: int) -> list[str]:
        """The command line of a training."""
        config, script = self.config, _script(arm)
        argv = ["--config", config.training]
        # No guard: it would choose each arm's step by judges like those that decide here, and give the arms unequal budgets.
        argv += ["--held_out_rewards", "none"]
        argv += _given(
            dataset_name=str(self.folder / "arms" / arm / "dataset"),
            output_dir=str(self.folder_of(arm, seed)),
            seed=seed,
            max_steps=config.max_steps,
            learning_rate=rate_of(arm),
            beta=config.beta if script is dpo else None,
            **((NO_NEGATIVES if script is train else {}) | method_of(arm).options),
        )
        _, recipe, launch = script.make_parser().parse_args_and_config(argv)
        stated = config.global_batch_size or check_recipe(Path(config.training)).get("global_batch_size")
        if launch.given and not stated:
            raise UsageError(
                f"global_batch_size is missing: name it here or in {config.training}, as that is launched."
            )
        size = config.global_batch_size or recipe.global_batch_size
        micro = recipe.per_device_train_batch_size
        if method_of(arm).unit == "pairs" and size % 2:
            raise UsageError(f"global_batch_size must be even, got {size}: a pair is two images.")
        images = method_of(arm).images_of(1 + self.candidates.num_variants)
        if size < images:
            raise UsageError(
                f"global_batch_size must be at least {images}, got {size}: {arm} trains on lists of so many."
            )
        size, micro = size // images, max(1, micro // images)
        sizes = _given(global_batch_size=size, per_device_train_batch_size=micro, gradient_accumulation_steps=1)
        return [*argv, *sizes]

    def train(self, arm: str, seed: int) -> None:
        """Train an arm, here or as the recipe has it launched."""
        script, (train_args, training_args, launch_args) = _script(arm), self.training(arm, seed)
        if launch_args.given:
            launch(script.__name__, self.training_argv(arm, seed), launch_args)
        else:
            script.main(train_args, training_args, launch_args)

    def is_trained(self, arm: str, seed: int) -> bool:
        """Whether a training is done, on the arm's training set as it is now."""
        record = read_record(self.folder_of(arm, seed))
        if record is None or not record["finished"]:
            return False
        train_args, training_args, _ = self.training(arm, seed)
        settings = train.settings_of(train_args, training_args, train.load_training_data(train_args))
        settings |= {key: value for key, value in record["settings"].items() if key == "trainer"}  # an arm has one
        return Stage("train", self.folder_of(arm, seed), settings).finished

    def evaluation(self) -> "Evaluation":
        """The evaluation of the base model and of every arm's models."""
        from ..evaluation.evaluate import Evaluation

        models = [f"base={self.candidates.model_name_or_path}"]
        models += [
            f"{arm}-{seed}={self.folder_of(arm, seed)}" for arm in self.config.arms for seed in self.config.seeds
        ]
        argv = [*self.evaluation_argv, "--models", *models]
        return Evaluation(_parse(evaluate, self.config.evaluation, argv)[0])


def _script(arm: str) -> ModuleType:
    """The script that trains an arm."""
    return {"train": train, "dpo": dpo, "scored": scored, "spo": spo}[method_of(arm).script]


def _given(**values) -> list[str]:
    """Command line arguments of the values that are given."""
    return [text for name, value in values.items() if value is not None for text in (f"--{name}", str(value))]


def _parse(script, recipe: str, argv: Sequence[str]) -> tuple:
    return script.make_parser().parse_args_and_config(["--config", recipe, *argv])


def main(config: BakeoffConfig) -> None:
    """Fill the pool, train every arm with every seed, evaluate, and write the report. What is done is not done again."""
    bakeoff = Bakeoff(config)
    from ..bakeoff.frontier import of_arms
    from ..bakeoff.report import write_bakeoff_report
    from ..candidates.trees import tree_passes
    from ..devices import default_device, release_memory
    from ..evaluation.alternatives import price
    from ..evaluation.figure import frontier_svg
    from ..evaluation.frontier import in_words

    expand.main(bakeoff.candidates)
    release_memory()
    if generate.main(bakeoff.candidates):
        raise UsageError("The pool is not complete: wait for the other process, then run the same command again.")
    groups = load_groups(bakeoff.folder / "prompts" / "groups.jsonl")
    seed_groups = make_seed_groups(groups)
    release_memory()
    pool = draw_seeds(bakeoff.candidates, seed_groups)
    release_memory()
    trees = transitions.draw(bakeoff.candidates, config, groups) if bakeoff.draws_trees else []
    release_memory()
    material = Material(
        groups, seed_groups, pool, bakeoff.candidates, trees=trees, min_preference=config.min_preference
    )

    if config.num_processes > 1:
        for arm in bakeoff.trained:
            dataset_stage(bakeoff, arm, material)
        train_together(bakeoff)
    arms = {}
    for arm in bakeoff.trained:
        if config.num_processes == 1:
            dataset_stage(bakeoff, arm, material)
            for seed in config.seeds:
                bakeoff.train(arm, seed)
                release_memory()
        arms[arm] = describe_training(bakeoff, arm)
        if method_of(arm).unit == "transitions":
            arms[arm]["tree_passes"] = tree_passes(trees)
            say(f"[bakeoff] {arm}: {transitions.describe(trees, arms[arm]['rows'], config)}")
    for arm in config.arms:
        if arm not in arms:
            arms[arm] = average(bakeoff, arm, arms)

    evaluation = bakeoff.evaluation()
    evaluation.check_models()
    if config.frontier:
        say(f"[bakeoff] {price(evaluation)}")
    if config.num_processes > 1:
        judge_together(evaluation, config.num_processes)
    results, scores = evaluation.run(default_device(), evaluate.judges_one_by_one(evaluation))
    rows, said = judge(config, results, scores)
    content = {"verdict": said, "arms": arms, "rows": rows, "seeds": config.seeds, "settings": evaluation.settings()}
    if evaluation.frontier is not None:
        frontier = of_arms(evaluation.frontier, config.arms, config.seeds)
        content["frontier"] = frontier.results(evaluation.config.num_bootstrap)
        write_atomically(bakeoff.folder / "frontier.svg", frontier_svg(content["frontier"]))
    write_atomically(bakeoff.folder / "bakeoff.json", json.dumps(content, indent=1) + "\n")
    report = bakeoff.folder / "bakeoff.html"
    write_bakeoff_report(content, evaluation, config.arms, config.seeds, report)
    say(format_arms(rows, said["ranking"], arms))
    if "frontier" in content:
        say("\n" + "\n".join(in_words(content["frontier"], said["ranking"])))
    say(f"\n{' '.join(said['sentences'])}\nReport: {report}")


def draw_seeds(config: CandidatesConfig, seed_groups: Sequence[Group]) -> CandidatePool:
    """Add the images of [`make_seed_groups`] to the pool, and return it."""
    stage = generate.make_stage(config)
    pool, failed = CandidatePool(stage.folder, config.reward_names), {}
    if generate.unfinished(pool, seed_groups, config):
        with stopwatch(stage):
            failed = generate.draw_all(config, seed_groups, pool, "Seeds")
        pool.refresh()
    for number, code in failed.items():
        say(f"[bakeoff] process {number} ended {describe_end(code)}")
    if left := generate.unfinished(pool, seed_groups, config):
        say(
            f"[bakeoff] images of {left} prompts from other seeds are left. Run the same command again to go on from here."
        )
        raise SystemExit(2 if 2 in failed.values() else 1)
    return pool


def dataset_stage(bakeoff: Bakeoff, arm: str, material: Material) -> None:
    """Write an arm's training set."""
    say(f"[bakeoff] {arm}: {method_of(arm).title}")
    keys = [group.keys for group in (*material.groups, *material.seed_groups)]
    config = bakeoff.candidates
    settings = {
        "arm": arm.partition("@")[0],  # whatever its learning rate
        "pool": read_record(bakeoff.folder / "pool")["fingerprint"],
        "keys": keys,
        "scale_rewards": config.scale_rewards,
        "reward_weights": config.reward_weights,
        "advantage_eps": config.advantage_eps,
    }
    if method_of(arm).unit == "transitions":
        settings["trees"] = fingerprint([path.name for path in material.trees])
        settings["min_preference"] = material.min_preference
    stage = Stage("arm", bakeoff.folder / "arms" / arm / "dataset", settings)

    def work() -> dict:
        with TemporaryDirectory(dir=stage.folder.parent) as scratch:
            dataset = method_of(arm).build(dataclasses.replace(material, scratch=Path(scratch)))
            dataset.save_to_disk(str(stage.folder))
            # Of pairs and lists as rows of images, those of a group are one.
            lists = method_of(arm).unit in ("pairs", "lists")
            return {"rows": len(dataset), "samples": len(set(dataset["group_id"])) if lists else len(dataset)}

    run_stage(stage, work, lambda summary: f"{summary['rows']} rows in {stage.folder}")


def describe_training(bakeoff: Bakeoff, arm: str) -> dict:
    """What an arm was trained on, how, and what that took, for `bakeoff.json`."""
    models = [bakeoff.folder_of(arm, seed) for seed in bakeoff.config.seeds]
    made = read_record(bakeoff.folder / "arms" / arm / "dataset")["summary"]
    trained = [read_record(model)["summary"] for model in models]
    training_args = bakeoff.training(arm, bakeoff.config.seeds[-1])[1]
    return {
        "title": method_of(arm).title,
        "rows": made.get("samples", made["rows"]),
        "unit": method_of(arm).unit,
        "learning_rate": training_args.learning_rate,
        "batch": training_args.global_batch_size,
        "steps": training_args.max_steps,
        "seconds": [read_timings(model.parent).get("train", {}).get("seconds", 0.0) for model in models],
        "passes": [[summary.get(name) for name in ("passes", "passes_without_gradient")] for summary in trained],
    }


def average(bakeoff: Bakeoff, arm: str, arms: Mapping[str, dict]) -> dict:
    """Write the mean of arms' models, of each seed, and return what it is and what its parts took, for `bakeoff.json`."""
    from ..trainer.export import export_pipeline

    parts = parts_of(arm)
    for seed in bakeoff.config.seeds:
        models = [str(bakeoff.folder_of(part, seed)) for part in parts]
        stage = Stage("average", bakeoff.folder_of(arm, seed), {"models": [model_hash(model) for model in models]})

        def work(models: list[str] = models, stage: Stage = stage) -> dict:
            export_pipeline(models[0], stage.folder, "diffusers", average=models[1:])
            return {"models": models}

        run_stage(stage, work, lambda summary: f"the mean of {' and '.join(summary['models'])}")
    of_parts = [arms[part] for part in parts]
    passes = [[[n or 0 for n in of_seed] for of_seed in part["passes"]] for part in of_parts]
    trees = [part["tree_passes"] for part in of_parts if "tree_passes" in part]  # the same ones, drawn once
    return {
        "title": f"the mean of the models of {' and '.join(parts)}",
        **({"tree_passes": trees[0]} if trees else {}),
        "seconds": np.sum([part["seconds"] for part in of_parts], axis=0).tolist(),
        "passes": np.sum(passes, axis=0).tolist(),
    }


def judge(config: BakeoffConfig, results: Sequence[dict], scores: dict) -> tuple[list[dict], dict]:
    """Scores of single models to rows and verdict over arms."""
    roles = {row["metric"]: row["role"] for row in results if row["role"] != "diversity"}
    higher = {row["metric"]: row["higher_is_better"] for row in results}

    def of(names: Sequence[str]) -> dict[str, np.ndarray]:
        return {metric: np.stack([scores[name][metric].mean(axis=1) for name in names]) for metric in roles}

    by_arm = {"base": of(["base"])} | {arm: of([f"{arm}-{seed}" for seed in config.seeds]) for arm in config.arms}
    rows = compare_arms(by_arm, roles, {metric: higher[metric] for metric in roles})
    return rows, verdict(rows)


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([BakeoffConfig], prog=prog)
