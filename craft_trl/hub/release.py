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


"""What of a run goes to the Hub: the files of its model and of its dataset, with their cards."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from datasets import load_from_disk

from ..candidates.filter_config import HUMAN, FilterConfig
from ..candidates.groups import Group, load_groups
from ..candidates.pool import CandidatePool, Key
from ..conditions import split_conditions
from ..crf import improves
from ..errors import NothingToDoError, UsageError
from ..filtering.dataset import with_images
from ..filtering.filter import (
    as_compared,
    beyond,
    each_candidate,
    filter_candidates,
    train_rows,
    vetoed_itself,
)
from ..filtering.votes import VOTES, veto_mask, vetoes_of, vote_line, with_votes
from ..progress import progress_bar
from ..sources import FACTS, content_hash, looks_like_hub_id, model_hash
from ..stages import check_writable, fingerprint, read_record, read_timings, write_atomically
from .cards import dataset_card, flat, model_card
from .pictures import grid, group_pictures, spaced
from .upload import Content, model_files, scan, shards


# The paper's filters. A pool that was scored with other rewards has its run's own filter instead, as `filtered`.
FILTERS = {"h": ["hpsv2"], "ha": ["hpsv2", "aesthetic"], "hpa": ["hpsv2", "pickscore", "aesthetic"]}
STAGES = {"expand": "prompts", "generate": "pool", "filter": "dataset"}  # with their folders


@dataclass
class Run:
    """
    The folder of a run, read-only.

    Args:
        folder (`Path`):
            Folder with `pool/` and `dataset/`, `model/`, or all three.
        model_dir (`Path`, *optional*):
            Folder of the trained model. Defaults to `model/` in it.
    """

    folder: Path
    model_dir: Path | None = None

    def record(self, stage: str) -> dict[str, Any]:
        """Record of a finished stage, empty of a model without one, or a [`UsageError`] that says which command makes it."""
        if (whole := read_record(self.folder)) is not None and whole["stage"] == "import":
            raise UsageError(
                f"{self.folder} was imported: put on the Hub as a dataset is what a run has drawn itself."
            )
        folder = self.folder / STAGES[stage] if stage in STAGES else self.model
        record = read_record(folder)
        if record is None and stage not in STAGES and "exported" in self.facts:
            return {}  # of `craft export`, which writes a whole model or nothing
        if record is None or not record["finished"]:
            raise UsageError(f"There is no finished {folder}: run `craft {stage}` first.")
        return record

    @property
    def model(self) -> Path:
        return self.model_dir or self.folder / "model"

    @property
    def facts(self) -> dict[str, Any]:
        """What the trainer noted for the cards; nothing where there was no training."""
        path = self.model / FACTS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @property
    def base_model(self) -> str | None:
        """Hub id of the model that drew the images, unless it was a folder."""
        record = read_record(self.folder / "pool")
        model = record["settings"].get("model", "") if record is not None else ""  # none of an imported one
        return self.facts.get("base_model") or (model.partition("@")[0] if looks_like_hub_id(model) else None)

    def cost(self, stages: Sequence[str]) -> list[tuple[str, float]]:
        """Seconds of stages, of those that were measured."""
        timings = read_timings(self.folder)
        return [(name, timings[name]["seconds"]) for name in stages if name in timings]


def dataset_release(
    run_dir: Path,
    repo_id: str,
    staging: Path,
    base_model: str | None = None,
    license: str | None = None,
    candidate_images: Literal["kept", "all"] = "kept",
    max_shard_size: int = 500_000_000,
) -> dict[str, Content]:
    """
    The pool and what its filters keep, as a dataset with a configuration each.

    Args:
        run_dir (`Path`):
            Folder of the run.
        repo_id (`str`):
            Id on the Hub.
        staging (`Path`):
            Folder to write to; emptied first.
        base_model (`str`, *optional*):
            Hub id of the model that drew the images.
        license (`str`, *optional*):
            Identifier of the licence, for the card.
        candidate_images (`"kept"` or `"all"`, *optional*, defaults to `"kept"`):
            Which rows of `candidates` have their picture: those that a configuration keeps, or all.
        max_shard_size (`int`, *optional*, defaults to `500_000_000`):
            Bytes of a parquet file, about.

    Returns:
        `dict[str, Path | bytes]`: contents by path in the repository.
    """
    run = Run(run_dir)
    records = {stage: run.record(stage) for stage in STAGES}
    # Those that the filter looked at: with a target, it stops before the end.
    groups = load_groups(run_dir / "prompts" / "groups.jsonl")[: records["filter"]["summary"]["groups"]]
    pool = CandidatePool(run_dir / "pool", list(records["generate"]["settings"]["rewards"]), verify=False)
    settings = filter_settings(records["filter"]["settings"]) | copy_votes(run_dir)
    filters, own = configurations(settings, pool.rewards), FilterConfig(**settings)
    pool = with_votes(pool, own)
    rows = {
        name: list(train_rows(each_candidate(groups, pool, config), pool, config)) for name, config in filters.items()
    }
    rows["candidates"] = filter_candidates(groups, pool, own)
    scan({}, (("a prompt", text) for group in groups for text in (group.prompt, *group.expanded_prompts)))

    image_bytes = sum(path.stat().st_size for path in pool.folder.glob("shard-*.parquet")) / len(pool)
    kept = {key(row) for name in filters for row in rows[name]}
    pictured = kept if candidate_images == "kept" else set(pool.scores)
    copies = len(pictured) + sum(len(rows[name]) for name in filters)
    check_writable(staging, int(copies * image_bytes * 1.1))
    shutil.rmtree(staging, ignore_errors=True)

    files: dict[str, Content] = {}
    counts = []
    for name in ("candidates", *filters):
        chosen, config = rows[name], filters.get(name)
        counts.append(
            {
                "name": name,
                "rewards": "no filter" if config is None else ", ".join(config.conditions(pool.rewards)),
                "images": sum(key(row) in pool for row in chosen),
                "groups": len({row["group_id"] for row in chosen}),
                "undecided": 0 if config is None else undecided(groups, pool, config),
            }
        )
        if not chosen:
            continue  # a configuration without rows could not be loaded; the card says that nothing passed
        parts = shards(chosen, image_bytes * (len(pictured) / len(chosen) if config is None else 1), max_shard_size)
        for number, part in enumerate(
            progress_bar(parts, desc=f"Writing {name}", unit="file", disable=len(parts) == 1)
        ):
            path = f"{name}/train-{number:05d}-of-{len(parts):05d}.parquet"
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=staging) as scratch:
                with_images(part, pool, pictured, Path(scratch)).to_parquet(str(staging / path))
            files[path] = staging / path
    if not kept:
        raise NothingToDoError(f"Nothing in {pool.folder} passes a filter: there is no dataset to push.")

    pictures = group_pictures(groups, pool, rows["candidates"])
    files |= {picture["path"]: picture.pop("png") for picture in pictures}
    sampling = records["generate"]["settings"]["sampling"]
    card = dataset_card(
        repo_id,
        [row["name"] for row in counts if row["images"]],
        license,
        base_model=base_model or run.base_model,
        base_name=run.facts.get("base_name"),
        counts=counts,
        undecided=any(row["undecided"] for row in counts),
        rewards=pool.rewards,
        lower_is_better=pool.lower_is_better,
        filter_level=own.filter_level,
        candidate_images=candidate_images,
        size=f"{sampling['width']} x {sampling['height']} pixels" if sampling["width"] else "of the model's own size",
        pictures=pictures,
        settings=[
            row
            for stage, record in records.items()
            for row in flat({stage: {k: v for k, v in record["settings"].items() if k != "pool"}})
        ],
        cost=run.cost(list(STAGES)),
    )
    return {"README.md": str(card).encode(), **files}


def filter_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The part of a filter stage's record that [`FilterConfig`] takes, but votes, of which the record has a hash."""
    names = FilterConfig.__dataclass_fields__.keys() - {"veto", "votes"}
    return {name: settings[name] for name in names if name in settings}


def copy_votes(run_dir: Path) -> dict[str, str]:
    """A file of the votes or vetoes by which the run's pool was filtered, wherever the user's own is by now."""
    rows = load_from_disk(str(run_dir / "dataset"))["candidates"].remove_columns("image").with_format("arrow")
    # By column: taken one by one, a million rows take minutes.
    if voted := "votes" in read_record(run_dir / "dataset")["settings"]:
        words = {value: word for word, value in VOTES.items()}
        votes = {i: words[v] for i, v in enumerate(rows[HUMAN][:].to_pylist()) if v in words}
    else:
        reasons = rows["drop_reason"][:].to_pylist()
        votes = {i: "veto" for i, reason in enumerate(reasons) if vetoed_itself(reason)}
    if not votes and not voted:
        return {}
    path = run_dir / "hub" / ("votes.jsonl" if voted else "vetoes.jsonl")
    path.parent.mkdir(exist_ok=True)
    lines = [
        vote_line(key(row), vote) for row, vote in zip(rows[list(votes)].to_pylist(), votes.values(), strict=True)
    ]
    write_atomically(path, "".join(f"{line}\n" for line in lines))
    return {"votes" if voted else "veto": str(path)}


def configurations(own: dict[str, Any], rewards: Sequence[str]) -> dict[str, FilterConfig]:
    """The paper's filters that a pool has the rewards for, otherwise set as the run's own; and that one if it is another."""
    filters = {name: names for name, names in FILTERS.items() if set(names) <= set(rewards)}
    if set(own["filter_rewards"]) not in map(set, filters.values()):
        filters["filtered"] = own["filter_rewards"]
    return {name: FilterConfig(**{**own, "filter_rewards": names}) for name, names in filters.items()}


def undecided(groups: Sequence[Group], pool: CandidatePool, config: FilterConfig) -> int:
    """Groups of which too little was drawn to know whether they pass."""
    if config.filter_level == "image":
        return 0
    scores, generated = pool.matrices(groups)
    compared, limits = split_conditions(config.conditions(pool.rewards))
    sides = as_compared(scores, groups, compared)
    fails = [~improves(sides[name]) for name in compared] + list(beyond(limits, pool, scores).values())
    passes = ~np.logical_or.reduce(fails)
    vetoed = veto_mask(vetoes_of(config, pool), groups)
    failed = (generated & ~passes | vetoed)[:, 1:].any(axis=1) | vetoed[:, 0]
    return int((~generated.all(axis=1) & ~failed).sum())


def key(row: dict[str, Any]) -> Key:
    """Key of a row in the pool."""
    return row["prompt"], row["expanded_prompt"], row["seed"]


def model_release(
    model_dir: Path,
    repo_id: str,
    run_dir: Path | None = None,
    base_model: str | None = None,
    dataset_name: str | None = None,
    license: str | None = None,
) -> dict[str, Content]:
    """
    A trained pipeline or adapter with its card.

    Args:
        model_dir (`Path`):
            Folder that the trainer wrote.
        repo_id (`str`):
            Id on the Hub.
        run_dir (`Path`, *optional*):
            Folder of the run; its evaluation, filter and timings then stand in the card.
        base_model (`str`, *optional*):
            Hub id of the base model, where training was given a folder.
        dataset_name (`str`, *optional*):
            Hub id of the training data.
        license (`str`, *optional*):
            Identifier of the licence, for the card.

    Returns:
        `dict[str, Path | bytes]`: contents by path in the repository.
    """
    if not (model_dir / FACTS).is_file():
        raise UsageError(f"There is no trained model in {model_dir}: run `craft train` first.")
    facts = json.loads((model_dir / FACTS).read_text(encoding="utf-8"))
    if facts["lora"] and not (base_model or facts["base_model"]):
        raise UsageError(
            f"The adapter in {model_dir} was trained on a local model, and nobody could load it: name its base on the Hub "
            "with --base_model org/name."
        )
    files = model_files(model_dir, bool(facts["lora"]))
    values: dict[str, Any] = {}
    if run_dir is not None:
        run = Run(run_dir)
        values["cost"] = run.cost([*STAGES, "train", "evaluate"])
        if (pool := read_record(run_dir / "pool")) is not None:
            # Not of an adapter that drew in a few steps, and that the model has not.
            drawn = pool["settings"].get("sampling", {})  # nothing is known of an imported one
            values["sampling"] = None if "draft_adapter" in drawn else drawn or None
        if (kept := read_record(run_dir / "dataset")) is not None and kept["finished"]:
            values["data"] = kept["summary"] | filter_settings(kept["settings"])
        if (evaluated := read_record(run_dir / "evaluation")) is not None and evaluated["finished"]:
            values["evaluation"], pictures = evaluation(run_dir / "evaluation", evaluated, model_dir)
            values["sampling"] = evaluated["settings"]["sampling"]
            values["evaluation"]["asked"] = evaluated["summary"].get("asked", {})
            files |= pictures
    card = model_card(facts, repo_id, base_model, dataset_name, license, **values)
    return {"README.md": str(card).encode(), FACTS: model_dir / FACTS, **files}


def evaluation(folder: Path, record: dict[str, Any], model_dir: Path) -> tuple[dict[str, Any], dict[str, Content]]:
    """What a card says of an evaluation, and its pictures."""
    settings = record["settings"]
    adapter = model_dir / "pytorch_lora_weights.safetensors"
    # As `ModelSpec.hash` has it: of an adapter, the hash of its base comes first.
    mine = f"+lora:{content_hash(adapter)}" if adapter.exists() else model_hash(str(model_dir))
    name = next((name for name, hash_ in settings["models"].items() if hash_.endswith(mine)), None)
    if name is None:
        raise UsageError(
            f"The evaluation in {folder} is of another model than the one in {model_dir}: run `craft evaluate` again, or "
            "move the evaluation away."
        )
    base = next(iter(settings["models"]))
    scores = pq.read_table(folder / "scores.parquet", columns=["model", "prompt", "text", "seed"]).to_pylist()
    keys = list(dict.fromkeys((row["prompt"], row["text"], row["seed"]) for row in scores if row["model"] == name))
    chosen = [keys[i] for i in spaced(len(keys), 8)]
    shown, pictures = [], {}
    for arm in (base, name):
        # As `Evaluation.arms` names the folders of its images.
        images = fingerprint([settings["models"][arm], settings["sampling"], settings["rewards"]])[:12]
        pool = CandidatePool(folder / "images" / images, list(settings["rewards"]), verify=False)
        # A base model that is taken from earlier results has its images elsewhere.
        shown.append([*pool.images([key for key in chosen if key in pool])])
    if all(len(row) == len(chosen) for row in shown):
        pictures["images/before_after.png"] = grid(shown, len(chosen))
    said = {
        "model": name,
        "base": base,
        "rows": json.loads((folder / "results.json").read_text(encoding="utf-8")),
        "verdict": record["summary"]["verdict"]["sentence"],
        "images": next(iter(pictures), None),
        "prompts": [prompt for prompt, _, _ in chosen],
    }
    return said, pictures
