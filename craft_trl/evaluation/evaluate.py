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


"""Images of several models for the same prompts and seeds, their scores, and what the differences amount to."""

import json
import shutil
from collections.abc import Callable, Container
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ..candidates.drawing import fill_pool
from ..candidates.generation import ImageGenerator
from ..candidates.pool import CandidatePool, Key
from ..candidates.shared import open_shared
from ..candidates.turns import load_reward
from ..devices import main_process_first, on_main_process, process_state
from ..errors import UsageError
from ..families.checks import check_model
from ..rewards import Reward, RewardSpec, lower_is_better, parse_rewards
from ..stages import fingerprint
from .alternatives import alternative_counts, alternatives, at_guidance, guidance_scales, make_frontier
from .arms import Arm, Judges, arms_of, by_prompt
from .config import EvaluationConfig
from .diversity import mean_distances
from .frontier import Frontier
from .models import Model
from .one_by_one import DRAWN, WaitingImages
from .provenance import bill, describe_scorer, judges_of_guard, settings_difference
from .statistics import compare


T = TypeVar("T")


class Evaluation:
    """
    A comparison of models, from its settings to its results.

    What can be wrong with the settings is found in the constructor, before any model is loaded. Under `accelerate
    launch` every process draws and scores a share of the images; the results do not depend on how many there are.

    Args:
        config ([`EvaluationConfig`]):
            Settings.
        task (`tuple[int, int]`, *optional*):
            Number of a task, from 0, and how many there are: only its share is drawn, on this process alone.
        shared_dir (`str`, *optional*):
            Where the tasks' images lie, instead of `images/` in `output_dir`; see [`SharedFolder`].
    """

    def __init__(self, config: EvaluationConfig, task: tuple[int, int] | None = None, shared_dir: str | None = None):
        self.config, self.task, self.shared_dir = config, task, shared_dir
        self.drawn = DRAWN if task is None else f"{DRAWN}-{task[0]}"
        self.state = process_state()
        self.specs = {spec.name: spec for spec in parse_rewards([*config.rewards, *config.held_out_rewards])}
        config.check_scoring(list(self.specs.values()))
        training = {spec.name for spec in parse_rewards(config.rewards)}
        self.roles = {name: "training" if name in training else "held_out" for name in self.specs}
        rows, column, self.group_by = config.load_prompts()
        self.prompts = [" ".join(row[column].split()) for row in rows]
        self.prompt_rows = dict(zip(self.prompts, rows, strict=True))
        self.parts = [str(row[self.group_by]) for row in rows] if self.group_by else None
        self.frontier: Frontier | None = None  # of a `run` that was asked for it
        self.bills: dict[str, dict[str, float]] = {}  # of a `run`, of judges that are asked

    @cached_property
    def models(self) -> dict[str, Model]:
        """The models by name, the base first."""
        return Model.parse_all(self.config.models, self.config.model_revision, self.config.strengths or ())

    def check_models(self, yet_to_come: str | None = None) -> None:
        """
        Raise a [`UsageError`] if a model is not there, does not fit the base, or comes from results under other settings.
        Apart from the constructor, since a run makes its last model, `yet_to_come`, on its way.
        """
        there = {
            name: spec
            for name, spec in self.models.items()
            if yet_to_come is None or Path(spec.source) != Path(yet_to_come)
        }
        # What must be downloaded is downloaded once.
        main_process_first(lambda: [spec.check(self.config) for spec in there.values()])
        for scale in self.guidance_scales if self.config.frontier else ():
            check_model(*next(iter(self.models.values())).whole, at_guidance(self.config, scale))
        for name, spec in there.items():
            if spec.kind == "results":
                self.earlier_results(name)

    @cached_property
    def model_hashes(self) -> dict[str, str]:
        """Content of each model."""
        specs = self.models
        earlier = {n: self.earlier_results(n)["models"][n] for n, spec in specs.items() if spec.kind == "results"}
        return self._on_main(lambda: {name: earlier.get(name) or spec.hash() for name, spec in specs.items()})

    @cached_property
    def scorers(self) -> dict[str, dict[str, str | None]]:
        """Id and hash of the weights of each scorer."""

        def describe(spec: RewardSpec) -> dict[str, str | None]:
            rounded = {"dtype": self.config.reward_dtype} if self.config.is_rounded(spec) else {}
            return describe_scorer(spec) | rounded

        return self._on_main(lambda: {name: describe(spec) for name, spec in self.specs.items()})

    def _on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on the main process, for all: no file is hashed twice."""
        return on_main_process(work)

    def settings(self) -> dict:
        """What every result carries: what was drawn, how, and by which weights it was judged."""
        return {"models": self.model_hashes, "guards": self.guards, **self.settings_without_models}

    @cached_property
    def guards(self) -> dict[str, list[str]]:
        """By model whose training a guard watched: the judges here that were the guard's, too."""
        chosen = {}
        for name, spec in self.models.items():
            if spec.kind == "results":
                judges = self.earlier_results(name).get("guards", {}).get(name, [])
                chosen[name] = [judge for judge in judges if judge in self.specs]
            else:
                chosen[name] = judges_of_guard(spec, self.specs)
        return {name: judges for name, judges in chosen.items() if judges}

    @cached_property
    def settings_without_models(self) -> dict:
        config = self.config
        return {
            "templates": config.templates,
            "prompts": {"name": Path(config.prompts).name, "n": len(self.prompts), "hash": fingerprint(self.prompts)},
            "num_images_per_prompt": config.num_images_per_prompt,
            "seed": config.seed,
            "sampling": config.sampling(),
            "rewards": self.scorers,
            "roles": self.roles,
            "group_by": self.group_by,
            "num_bootstrap": config.num_bootstrap,
            # An option that came later and is not used is left out: it makes no older results others.
            **({"frontier": [config.frontier_images, self.guidance_scales]} if config.frontier else {}),
        }

    def arms(self) -> list[Arm]:
        """The models, the base first, each with a folder for its images under these settings."""
        return arms_of(self)

    def frontier_arms(self) -> list[Arm]:
        """The base again, if a frontier is asked for: many images to choose from, then at each other guidance scale."""
        return alternatives(self) if self.config.frontier else []

    @cached_property
    def guidance_scales(self) -> list[float]:
        """Guidance scales of the frontier."""
        return guidance_scales(self.config, *next(iter(self.models.values())).whole)

    def image_counts(self) -> list[int]:
        """Images of each model, and of the base again for a frontier, whether they are there or not."""
        n, config = len(self.prompts), self.config
        counts = [n * config.num_images_per_prompt] * (len(self.models) + bool(config.templates))
        return counts + alternative_counts(self)

    def run(
        self, device: torch.device | str, one_by_one: bool = False
    ) -> tuple[list[dict], dict[str, dict[str, np.ndarray]]]:
        """
        Draw and score what is missing, then, unless this is a task, compare.

        Args:
            device (`torch.device` or `str`):
                Device of this process.
            one_by_one (`bool`, *optional*, defaults to `False`):
                Draw the images of all models first, then load one judge after the other, for a device that does not hold
                a model and all judges. The results are the same.

        Returns:
            `tuple[list[dict], dict]`: the rows of `results.json`, and per model and metric the scores of shape
            `(prompts, images per prompt)`.
        """
        arms, besides = self.arms(), self.frontier_arms()
        own = [arm for arm in (*arms, *besides) if arm.spec.kind != "results"]
        waiting = self._draw_only(own, device) if one_by_one else []
        rewards: dict[str, Reward | None] = {}
        lower, mean_of_parts, notes, embedders, usages = set(), set(), {}, [], {}
        for name in self.specs:
            reward = self._load(name, device)
            for images in waiting:
                images.score(name, reward, show_progress=self.state.is_main_process)
            lower |= lower_is_better({name: reward})
            mean_of_parts |= {name} if getattr(reward, "mean_of_parts", False) else set()
            notes[name] = getattr(reward, "note", None)
            embedders += [name] if hasattr(reward, "image_features") else []
            usages |= {name: reward.usage} if self.specs[name].vlm else {}
            rewards[name] = None if one_by_one else reward
            del reward
            torch.cuda.empty_cache()
        for images in waiting:
            images.store()
        self.state.wait_for_everyone()
        varieties, embedder = [], None
        if self.config.num_images_per_prompt > 1 and self.task is None:
            varieties = [f"diversity_{name}" for name in embedders[:1]] + ["diversity_pixels"]
            embedder = rewards[embedders[0]] or self._load(embedders[0], device) if embedders else None
        judges = Judges(rewards, frozenset(lower), embedder, varieties, device)
        if self.task is not None:
            for arm in own:
                self.draw(arm, judges)
            return [], {}
        scores: dict[str, dict[str, np.ndarray]] = {}
        for arm in arms:
            if arm.spec.kind == "results":
                scores[arm.name] = self._earlier_scores(arm, [*rewards, *varieties])
                continue
            scores[arm.name] = self.measure(arm, judges)
        roles = self.roles | dict.fromkeys(varieties, "diversity")
        rows = compare(scores, roles, lower, self.parts, self.config.num_bootstrap, mean_of_parts)
        settings = self.settings()
        for row in rows:
            row["scorer"] = self.scorers.get(row["metric"], {}) | {"note": notes.get(row["metric"])}
        if besides:
            self.frontier = make_frontier(self, besides, scores, judges)
        images = sum(len(arm.keys) for arm in own)
        self.bills = {name: bill(self.specs[name], usage, images) for name, usage in usages.items() if usage["images"]}
        return [row | {"settings": settings} for row in rows], scores

    def measure(self, arm: Arm, judges: Judges) -> dict[str, np.ndarray]:
        """Scores of a model's images, and how much those of a prompt differ, shape `(prompts, images)`; all are made if need be."""
        pool, shape = self.draw(arm, judges), (len(self.prompts), arm.images)
        values = np.array([pool.scores[key] for key in arm.keys])  # (images, rewards)
        scores = {name: values[:, i].reshape(shape) for i, name in enumerate(judges.rewards)}
        if arm.images > 1:
            distances = by_prompt(
                arm, pool, judges.embedder, mean_distances, self.config.batch_size
            )  # (prompts, 1 or 2)
            for i, name in enumerate(judges.varieties):
                scores[name] = np.broadcast_to(distances[:, i, None], shape)
        return scores

    def _load(self, name: str, device: torch.device | str) -> Reward:
        """A judge, ready to score."""
        # What must be downloaded is downloaded once.
        reward = main_process_first(lambda: load_reward(self.specs[name], self.config, device))
        if self.specs[name].needs:
            reward.metadata = self.prompt_rows
        return reward

    def draw(self, arm: Arm, judges: Judges) -> CandidatePool:
        """The images and scores of a model, of which this process makes its share."""
        pool = self._open(arm.folder, list(self.specs))
        self._fill(arm, pool, self._share(arm, pool), judges.rewards, judges.device)
        if self.state.is_main_process:  # images that waited here are in the pool, or were drawn again
            shutil.rmtree(arm.folder / self.drawn, ignore_errors=True)
        return pool

    def _draw_only(self, arms: list[Arm], device: torch.device | str) -> list[WaitingImages]:
        """Images of models that wait for their scores, of which this process makes its share."""
        waiting: dict[Path, WaitingImages] = {}
        for arm in arms:
            if arm.folder not in waiting:  # equal models share theirs
                pools = self._open(arm.folder, list(self.specs)), self._open(arm.folder / self.drawn, [])
                waiting[arm.folder] = WaitingImages(*pools, self.config.batch_size)
            images = waiting[arm.folder]
            mine = self._share(arm, images)
            self._fill(arm, images.drawn, mine, {}, device)
            images.add(mine, arm.keys)
        return list(waiting.values())

    def _open(self, folder: Path, rewards: list[str]) -> CandidatePool:
        """The pool in a folder."""
        if self.task is not None and rewards:
            return open_shared(f"{self.shared_dir}/{folder.name}" if self.shared_dir else folder, rewards)
        folder.mkdir(parents=True, exist_ok=True)
        # Opening a pool sets damaged files aside. All have seen the same files when this returns, before the first one writes.
        return main_process_first(lambda: CandidatePool(folder, rewards))

    def batches(self, arm: Arm) -> list[list[Key]]:
        """
        What is drawn and scored together. A batch is the same however many processes there are and wherever a run was killed,
        so that scores are too, to the last bit.
        """
        return [arm.keys[i : i + self.config.batch_size] for i in range(0, len(arm.keys), self.config.batch_size)]

    def tasks_left(self, tasks: int) -> set[int]:
        """Of so many tasks those that have something to do yet."""
        left = set()
        for arm in (*self.arms(), *self.frontier_arms()):
            if arm.spec.kind != "results":
                pool = CandidatePool(arm.folder, list(self.specs), verify=False)
                batches = enumerate(self.batches(arm))
                left |= {i % tasks for i, batch in batches if any(key not in pool for key in batch)}
        return left

    def _share(self, arm: Arm, there: Container[Key]) -> list[Key]:
        """The images of a model that this process is to make, beside those that are there."""
        state = self.state
        batches = self.batches(arm)
        if self.task is not None:  # by number: what is missing changes while others work
            number, tasks = self.task
            return [key for batch in batches[number::tasks] for key in batch]
        missing = [batch for batch in batches if any(key not in there for key in batch)]
        return [key for batch in missing[state.process_index :: state.num_processes] for key in batch]

    def _fill(
        self, arm: Arm, pool: CandidatePool, keys: list[Key], rewards: dict[str, Reward], device: torch.device | str
    ) -> None:
        """Draw those of the images that are not in a pool, and score them."""
        state, config = self.state, self.config
        if any(key not in pool for key in keys):
            generator = ImageGenerator(arm.spec.load(getattr(torch, config.dtype)), arm.sampling, device=device)
            share = f" ({state.process_index + 1} of {state.num_processes})" if state.num_processes > 1 else ""
            fill_pool(pool, keys, generator, rewards, config.batch_size, f"Images of {arm.name}{share}")
            del generator
            torch.cuda.empty_cache()
        state.wait_for_everyone()
        pool.refresh()  # what other processes have made

    def earlier_results(self, name: str) -> dict:
        """Settings of the earlier results that a model is taken from, which must be those of this comparison."""
        folder = Path(self.models[name].source)
        try:
            rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            settings = rows[0]["settings"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UsageError(f"Model {name}: {folder} has no readable results.json of `craft evaluate`.") from error
        if name not in {row["model"] for row in rows}:
            known = ", ".join(dict.fromkeys(row["model"] for row in rows))
            raise UsageError(f"Model {name}: {folder / 'results.json'} knows no such model. It has {known}.")
        # Scores by judges that are not asked for here do no harm.
        theirs = {**settings, "rewards": {k: v for k, v in settings["rewards"].items() if k in self.specs}}
        if different := settings_difference(theirs, self.settings_without_models):
            raise UsageError(
                f"Model {name}: {folder} was made under other settings and cannot stand in one table: {different}."
            )
        return settings

    def _earlier_scores(self, arm: Arm, metrics: list[str]) -> dict[str, np.ndarray]:
        path = arm.folder / "scores.parquet"
        table = pq.read_table(path) if path.is_file() else None
        if table is None or not {"model", "prompt", "seed", *metrics} <= set(table.column_names):
            raise UsageError(f"Model {arm.name}: {path} does not hold the scores {', '.join(metrics)}.")
        table = table.filter(pc.equal(table["model"], arm.name))
        order = list(zip(table["prompt"].to_pylist(), table["seed"].to_pylist(), strict=True))
        if order != [(prompt, seed) for prompt, _, seed in arm.keys]:
            raise UsageError(f"Model {arm.name}: {path} is not of the prompts and seeds of its results.json.")
        shape = (len(self.prompts), self.config.num_images_per_prompt)
        return {name: table[name].to_numpy().reshape(shape) for name in metrics}
