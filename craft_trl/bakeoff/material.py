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

"""What the arms of a comparison choose their training sets from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..candidates.filter_config import FilterConfig
from ..candidates.groups import Group
from ..candidates.pool import CandidatePool
from ..candidates.tree_config import TreeConfig
from ..crf import total_rewards
from ..errors import NothingToDoError
from ..filtering.filter import explain_nothing, filter_candidates, train_rows, vetoed_itself


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Material:
    """
    What the arms choose from.

    Args:
        groups (`Sequence[Group]`):
            Prompts with their expanded variants.
        seed_groups (`Sequence[Group]`):
            The same prompts, drawn from as many seeds instead, see [`make_seed_groups`].
        pool ([`CandidatePool`]):
            Images and scores of both.
        config ([`FilterConfig`]):
            The filter of the recipe.
        scratch (`Path`, *optional*):
            Where images lie that are too many for the memory, see [`with_images`].
        trees (`Sequence[Path]`, *optional*):
            Files of trees of transitions, see [`draw_trees`].
        min_preference (`float`, *optional*, defaults to `0.3`):
            Which pairs are taken from them, see [`TreeConfig`].
    """

    groups: Sequence[Group]
    seed_groups: Sequence[Group]
    pool: CandidatePool
    config: FilterConfig
    scratch: Path | None = None
    trees: Sequence[Path] = ()
    min_preference: float = TreeConfig.min_preference

    def kept(self, **changes) -> "Dataset":
        """Images that the recipe's filter keeps, with changes to it; their weight is the advantage."""
        config = FilterConfig(**{name: getattr(self.config, name) for name in FilterConfig.__dataclass_fields__})
        config = replace(config, **{"train_images": "kept"} | changes)
        rows = list(train_rows(filter_candidates(self.groups, self.pool, config), self.pool, config))
        if not rows:
            raise NothingToDoError(explain_nothing(self.groups, self.pool, config))
        return self.dataset(rows)

    def dataset(self, rows: Sequence[dict]) -> "Dataset":
        """Rows of [`filter_candidates`] as a dataset."""
        from ..filtering.dataset import with_images

        return with_images(rows, self.pool, scratch=self.scratch)

    def unfiltered(self) -> "Dataset":
        """Every variant's image but vetoed ones, all of weight 1."""
        rows = [row for row in filter_candidates(self.groups, self.pool, self.config) if row["variant"] > 0]
        rows = [row | {"advantage": 1.0} for row in rows if not vetoed_itself(row["drop_reason"])]
        return self.dataset(rows)

    def originals(self) -> "Dataset":
        """The base model's own image of every original prompt, good or bad, of weight 1."""
        rows = [row for row in filter_candidates(self.groups, self.pool, self.config) if row["variant"] == 0]
        return self.dataset([row | {"advantage": 1.0} for row in rows if not vetoed_itself(row["drop_reason"])])

    def best_of_n(self) -> "Dataset":
        """Of each prompt's images from different seeds the one with the largest sum of scaled rewards, of weight 1."""
        best: dict[int, dict] = {}
        for row in filter_candidates(self.seed_groups, self.pool, self.config):
            if vetoed_itself(row["drop_reason"]):
                continue
            if row["group_id"] not in best or row["advantage"] > best[row["group_id"]]["advantage"]:
                best[row["group_id"]] = row
        return self.dataset([row | {"advantage": 1.0} for row in best.values()])

    def pairs(self) -> "Dataset":
        """Preference pairs, see [`build_pairs`]."""
        from ..filtering.dataset import build_pairs

        return build_pairs(self.groups, self.pool, self.config, self.scratch)

    def lists(self) -> "Dataset":
        """Of each prompt all images, ranked, see [`build_lists`]."""
        from ..filtering.dataset import build_lists

        return build_lists(self.groups, self.pool, self.config, self.scratch)

    def scored(self, own: bool = True) -> "Dataset":
        """
        Every image but vetoed ones, good and bad.

        Args:
            own (`bool`, *optional*, defaults to `True`):
                Of each prompt's images from different seeds, as the methods draw them that learn while they draw; the advantage
                is the sum of scaled rewards minus the mean of the prompt, over the standard deviation of all. Else the images
                of all variants, and the sum itself.
        """
        groups, config = self.seed_groups if own else self.groups, self.config
        scores, generated = self.pool.matrices(groups)
        totals, _ = total_rewards(scores, config.weights(self.pool.rewards), config.scale_rewards, generated)
        if own:  # all are there
            totals = (totals - totals.mean(axis=1, keepdims=True)) / (totals.std() + config.advantage_eps)
        rows = zip(filter_candidates(groups, self.pool, config), totals.flat, strict=True)
        return self.dataset([r | {"advantage": float(t)} for r, t in rows if not vetoed_itself(r["drop_reason"])])

    def scored_pairs(self) -> "Dataset":
        """
        Of each group the best image and the worst by the sum of scaled rewards, as lists of two, with that sum for their
        advantage, brought to 0 to 1 over all images.
        """
        config = self.config
        scores, generated = self.pool.matrices(self.groups)
        totals, _ = total_rewards(scores, config.weights(self.pool.rewards), config.scale_rewards, generated)
        low, high = totals[generated].min(), totals[generated].max()
        groups: dict[int, list[dict]] = {}
        for row, total, there in zip(
            filter_candidates(self.groups, self.pool, config), totals.flat, generated.flat, strict=True
        ):
            if there and not vetoed_itself(row["drop_reason"]):
                groups.setdefault(row["group_id"], []).append(
                    row | {"advantage": float(total - low) / (float(high - low) or 1.0)}
                )
        rows = []
        for group in groups.values():
            best, worst = (choose(group, key=lambda row: row["advantage"]) for choose in (max, min))
            if best["advantage"] > worst["advantage"]:
                rows += [best, worst]
        if not rows:
            raise NothingToDoError(f"In no group of {self.pool.folder} is one image better than another.")
        return self.dataset(rows)

    def transitions(self) -> "Dataset":
        """Pairs of denoising steps, see [`build_transitions`]."""
        from ..filtering.transitions import build_transitions, reward_scales

        scales = reward_scales(self.groups, self.pool, self.config)
        return build_transitions(self.trees, scales, self.min_preference, self.scratch)
