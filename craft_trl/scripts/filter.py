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
Filter a pool of candidates into a training set. Needs no GPU.

```bash
craft filter --config recipes/tiny/candidates.yaml
craft filter --config recipes/tiny/candidates.yaml --filter_rewards hpsv2 aesthetic --filter_level group
```
"""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np

from ..candidates.config import CandidatesConfig
from ..candidates.filter_config import HUMAN, is_of_votes
from ..candidates.groups import Group, load_groups
from ..candidates.originals import with_originals
from ..candidates.pool import CandidatePool
from ..candidates.rejection import check_target, needed, up_to_target
from ..errors import UsageError
from ..filtering.votes import load_votes, veto_mask, vetoes_of
from ..hub.config import PushConfig
from ..parser import CraftParser
from ..stages import Stage, fingerprint, move_into, read_record
from .launch import run_script, run_stage, say


def check(config: CandidatesConfig) -> None:
    """Find what is wrong before any work is done."""
    if config.push_to_hub:
        from huggingface_hub import HfApi

        from ..hub.upload import check_repository

        check_repository(HfApi(), config.hub_dataset_id, "dataset", config.hub_private_repo)


def open_pool(config: CandidatesConfig) -> tuple[list[Group], CandidatePool, dict]:
    """The groups of a run, its pool, and the record of the stage that made the pool."""
    run_dir = Path(config.output_dir)
    groups = load_groups(run_dir / "prompts" / "groups.jsonl")
    record = read_record(run_dir / "pool")
    if record is None:
        raise UsageError(f"There is no pool in {run_dir / 'pool'}: run `craft generate` first.")
    if sorted(record["settings"]["rewards"]) != sorted(config.reward_names):
        scored = ", ".join(record["settings"]["rewards"])
        raise UsageError(f"The pool {run_dir / 'pool'} was scored with {scored}; rewards must be the same.")
    # Only the shards of images that are asked for are read whole.
    pool = CandidatePool(run_dir / "pool", config.reward_names, verify=False)
    for shard in pool.damaged:
        say(f"[filter] {shard} is damaged and set aside: `craft generate` makes its images again.")
    if "originals" in record["settings"]:
        groups = with_originals(groups, pool)
    return groups, pool, record


def counts_votes(config: CandidatesConfig) -> bool:
    """Whether more of the votes than their vetoes changes what is kept or what it weighs."""
    weights = config.weights([*config.reward_names, HUMAN])
    return bool(weights[HUMAN]) or any(map(is_of_votes, config.conditions(config.reward_names)))


def main(config: CandidatesConfig) -> None:
    """Write `dataset/`, a DatasetDict with the images to train on as `train`; and put it on the Hub if that is asked for."""
    check(config)
    groups, pool, record = open_pool(config)
    check_target(config.target_groups, groups)
    groups = up_to_target(pool, groups, config.reject_on, config.target_groups)
    undecided = sum(bool(needed(pool, group, config.reject_on)) for group in groups)
    if undecided and config.target_groups is not None:
        raise UsageError(
            f"{undecided} groups of the pool {pool.folder} lack images, so it is not known which {config.target_groups} "
            "pass first: run `craft generate` with the same options first."
        )
    scores, generated = pool.matrices(groups)
    votes, vetoes = load_votes(config.votes, pool) if config.votes else {}, vetoes_of(config, pool)
    settings = {
        "pool": {
            "settings": record["fingerprint"],
            "groups": fingerprint([group.keys for group in groups]),
            # The scores bit for bit: the images are settled by their keys and the settings.
            "scores": fingerprint({n: np.nan_to_num(v, nan=-1).tobytes().hex() for n, v in scores.items()}),
            "generated": fingerprint(generated.tolist()),
        },
        "filter_level": config.filter_level,
        "filter_rewards": config.conditions(config.reward_names),
        "scale_rewards": config.scale_rewards,
        "reward_weights": config.reward_weights,
        "advantage_eps": config.advantage_eps,
        "veto": fingerprint(sorted(vetoes)) if vetoes else None,
        # An option that came later and is not used is left out: it makes no older dataset another one.
        **({"train_images": config.train_images} if config.train_images != "kept" else {}),
        **({"votes": fingerprint(sorted(votes.items()))} if config.votes else {}),
    }
    stage = Stage("filter", Path(config.output_dir) / "dataset", settings)

    def work() -> dict:
        from ..filtering.dataset import save_dataset_dict

        # It is written file by file; the folder gets its name only when it is complete.
        temporary = stage.folder.with_name(f".{stage.folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        train = save_dataset_dict(groups, pool, config, temporary)
        move_into(temporary, stage.folder)
        kept = [row for row in train if row["keep"]]
        summary = {
            "groups": len(groups),
            "undecided": undecided,
            "images": int(generated.sum()),
            "kept": len(kept),
            "kept_groups": len({row["group_id"] for row in kept}),
            "vetoed": int(veto_mask(vetoes, groups).sum()),
            **({"votes": dict(Counter(votes.values()))} if config.votes else {}),
        }
        if config.train_images != "kept":
            summary |= {"train": len(train), "train_negative": sum(row["advantage"] < 0 for row in train)}
        return summary

    def report(s: dict) -> str:
        kept = f"{s['kept']} of {s['images']} images kept, from {s['kept_groups']} of {s['groups']} groups"
        if config.target_groups is not None and s["kept_groups"] < config.target_groups:
            kept += f" (target_groups asks for {config.target_groups})"
        if s["vetoed"]:
            kept += f", {s['vetoed']} images vetoed"
        chosen = {word: number for word, number in s.get("votes", {}).items() if word != "veto"}
        if chosen:
            kept += f", votes for {' and '.join(f'{word} {number}' for word, number in sorted(chosen.items()))}"
            kept += "" if counts_votes(config) else " (which count where filter_rewards or reward_weights name human)"
        if s["undecided"]:
            kept += f" ({s['undecided']} lack images that this filter asks for: `craft generate` makes them)"
        if "train" in s:
            kept += f"; {s['train']} to train on, {s['train_negative']} of them below the mean of their group"
        return f"{kept}, in {stage.folder}"

    run_stage(stage, work, report)
    if config.push_to_hub:
        from . import push

        push.main(
            config.output_dir, PushConfig(config.hub_dataset_id, what="dataset", private=config.hub_private_repo)
        )


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([CandidatesConfig], prog=prog)


if __name__ == "__main__":
    raise SystemExit(run_script(main, make_parser))
