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

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image

from ..candidates.drawing import fill_pool
from ..candidates.generation import ImageGenerator
from ..candidates.pool import CandidatePool, Key
from ..devices import on_main_process
from ..errors import UsageError
from ..expansion import PromptExpander
from ..progress import progress_bar
from ..rewards import Reward, parse_rewards
from ..rewards.geneval.judge import GenEval
from ..stages import fingerprint
from .config import EvaluationConfig
from .diversity import diversity, pixel_distance
from .models import Model
from .provenance import describe_scorer, judges_of_guard, settings_difference
from .statistics import compare


T = TypeVar("T")


@dataclass
class Arm:
    """
    A model to compare, and the images that are asked of it.

    Args:
        name (`str`):
            Name in the tables.
        spec ([`Model`]):
            The model.
        keys (`list[Key]`):
            Prompt, text given to the model, and seed of each image.
        folder (`Path`):
            Where its images and scores lie; of a model from earlier results, the folder of those.
    """

    name: str
    spec: Model
    keys: list[Key]
    folder: Path


class Evaluation:
    """
    A comparison of models, from its settings to its results.

    What can be wrong with the settings is found in the constructor, before any model is loaded. Under `accelerate
    launch` every process draws and scores a share of the images; the results do not depend on how many there are.

    Args:
        config ([`EvaluationConfig`]):
            Settings.
    """

    def __init__(self, config: EvaluationConfig):
        self.config = config
        self.state = PartialState()
        self.specs = {spec.name: spec for spec in parse_rewards([*config.rewards, *config.held_out_rewards])}
        training = {spec.name for spec in parse_rewards(config.rewards)}
        self.roles = {name: "training" if name in training else "held_out" for name in self.specs}
        rows, column, self.group_by = config.load_prompts()
        self.prompts = [" ".join(row[column].split()) for row in rows]
        self.prompt_rows = dict(zip(self.prompts, rows, strict=True))
        self.parts = [str(row[self.group_by]) for row in rows] if self.group_by else None

    @cached_property
    def models(self) -> dict[str, Model]:
        """The models by name, the base first."""
        return Model.parse_all(self.config.models)

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
        with self.state.main_process_first():  # what must be downloaded is downloaded once
            for spec in there.values():
                spec.check()
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
        return self._on_main(lambda: {name: describe_scorer(spec) for name, spec in self.specs.items()})

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
        }

    def arms(self) -> list[Arm]:
        """The models, the base first, each with a folder for its images under these settings."""
        config = self.config
        base, base_spec = next(iter(self.models.items()))
        texts = {name: (spec, self.prompts) for name, spec in self.models.items()}
        if config.templates:
            expanded = PromptExpander(config.templates, config.seed)(self.prompts, 1)
            texts[f"{base}+expansion"] = base_spec, [variants[0] for variants in expanded]
        arms, n = [], config.num_images_per_prompt
        for name, (spec, given) in texts.items():
            keys = [
                (prompt, text, config.seed + i * n + j)
                for i, (prompt, text) in enumerate(zip(self.prompts, given, strict=True))
                for j in range(n)
            ]
            # Named by what decides an image and its scores, so that another model or sampler finds no stale ones.
            model = self.model_hashes[name.removesuffix("+expansion")]
            drawn = Path(config.output_dir) / "images" / fingerprint([model, config.sampling(), self.scorers])[:12]
            arms.append(Arm(name, spec, keys, Path(spec.source) if spec.kind == "results" else drawn))
        return arms

    def run(self, device: torch.device | str) -> tuple[list[dict], dict[str, dict[str, np.ndarray]]]:
        """
        Draw and score what is missing, then compare.

        Args:
            device (`torch.device` or `str`):
                Device of this process.

        Returns:
            `tuple[list[dict], dict]`: the rows of `results.json`, and per model and metric the scores of shape
            `(prompts, images per prompt)`.
        """
        with self.state.main_process_first():
            rewards = {name: spec.load(device) for name, spec in self.specs.items()}
        for reward in rewards.values():
            if isinstance(reward, GenEval):
                reward.metadata = self.prompt_rows
        lower_is_better = {name for name, reward in rewards.items() if not getattr(reward, "higher_is_better", True)}
        mean_of_parts = {name for name, reward in rewards.items() if getattr(reward, "mean_of_parts", False)}
        embedder = next((name for name, reward in rewards.items() if hasattr(reward, "image_features")), None)
        shape = (len(self.prompts), self.config.num_images_per_prompt)
        metrics = list(rewards)
        if shape[1] > 1:
            metrics += [f"diversity_{embedder}", "diversity_pixels"] if embedder else ["diversity_pixels"]
        scores: dict[str, dict[str, np.ndarray]] = {}
        for arm in self.arms():
            if arm.spec.kind == "results":
                scores[arm.name] = self._earlier_scores(arm, metrics)
                continue
            pool = self._draw(arm, rewards, device)
            values = np.array([pool.scores[key] for key in arm.keys])  # (images, rewards)
            scores[arm.name] = {name: values[:, i].reshape(shape) for i, name in enumerate(rewards)}
            if shape[1] > 1:
                distances = self._diversity(arm, pool, rewards[embedder] if embedder else None)  # (prompts, 1 or 2)
                for i, name in enumerate(metrics[len(rewards) :]):
                    scores[arm.name][name] = np.broadcast_to(distances[:, i, None], shape)
        roles = self.roles | dict.fromkeys(metrics[len(rewards) :], "diversity")
        rows = compare(scores, roles, lower_is_better, self.parts, self.config.num_bootstrap, mean_of_parts)
        settings = self.settings()
        for row in rows:
            row["scorer"] = self.scorers.get(row["metric"], {}) | {
                "note": getattr(rewards.get(row["metric"]), "note", None)
            }
        return [row | {"settings": settings} for row in rows], scores

    def _draw(self, arm: Arm, rewards: dict[str, Reward], device: torch.device | str) -> CandidatePool:
        """The images and scores of a model, of which this process makes its share."""
        state, size = self.state, self.config.batch_size
        arm.folder.mkdir(parents=True, exist_ok=True)
        with state.main_process_first():  # opening a pool sets damaged files aside
            pool = CandidatePool(arm.folder, list(rewards))
        state.wait_for_everyone()  # all have seen the same files, before the first one writes
        # A batch is the same however many processes there are and wherever a run was killed, so that scores are too, to
        # the last bit.
        batches = [arm.keys[i : i + size] for i in range(0, len(arm.keys), size)]
        missing = [batch for batch in batches if any(key not in pool for key in batch)]
        mine = [key for batch in missing[state.process_index :: state.num_processes] for key in batch]
        if mine:
            generator = ImageGenerator(arm.spec.load(getattr(torch, self.config.dtype)), self.config, device=device)
            share = f" ({state.process_index + 1} of {state.num_processes})" if state.num_processes > 1 else ""
            fill_pool(pool, mine, generator, rewards, size, f"Images of {arm.name}{share}")
        state.wait_for_everyone()
        pool.refresh()  # what other processes have made
        return pool

    def _diversity(self, arm: Arm, pool: CandidatePool, embedder: Reward | None) -> np.ndarray:
        """
        How much the images of each prompt differ, in the embedder's space, if there is one, and in pixels: shape
        `(prompts, 2)` or `(prompts, 1)`. Every process looks at its share of the prompts.
        """
        state, n = self.state, self.config.num_images_per_prompt
        block = max(1, self.config.batch_size // n) * n
        starts = range(0, len(arm.keys), block)[state.process_index :: state.num_processes]
        distances = []
        for start in progress_bar(starts, desc=f"Diversity of {arm.name}", disable=not state.is_main_process):
            images = [Image.open(io.BytesIO(png)) for png in pool.images(arm.keys[start : start + block])]
            columns = [np.array([pixel_distance(images[i : i + n]) for i in range(0, len(images), n)])[:, None]]
            if embedder is not None:
                features = embedder.image_features(images).cpu().numpy()
                columns.insert(0, diversity(features.reshape(-1, n, features.shape[-1])))
            distances.append((start, np.hstack(columns)))
        return np.concatenate([values for _, values in sorted(gather_object(distances), key=lambda item: item[0])])

    def earlier_results(self, name: str) -> dict:
        """Settings of the earlier results that a model is taken from, which must be those of this comparison."""
        folder = Path(self.models[name].source)
        try:
            rows = json.loads((folder / "results.json").read_text())
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
