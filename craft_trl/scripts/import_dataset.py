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
Make a training set, preference pairs or a pool of images that are there already. Needs no model.

```bash
craft import pictures/ --what images --height 1024 --width 1024 --output_dir runs/mine
craft import pairs/ --what pairs --output_dir runs/pairs
craft import org/dataset --what pairs --output_dir runs/pairs
craft import ratings.parquet --what pool --score_columns rating --output_dir runs/rated
```
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import UsageError
from ..parser import CraftParser
from ..ranges import Count, Pixels, check_ranges
from ..stages import Stage, check_writable
from .launch import run_stage


TAKEN = (
    "prompt",
    "expanded_prompt",
    "seed",
    "image",
    "group_id",
    "variant",
    "keep",
    "drop_reason",
    "advantage",
    "file",
)


@dataclass
class ImportConfig:
    """
    Configuration of `craft import`.

    Parameters:
        what (`"images"`, `"pairs"` or `"pool"`):
            What is made: a training set for `craft train`, pairs for `craft dpo`, or a pool for `craft filter`.
        prompt (`str`, *optional*):
            Prompt of the images that have none of their own.
        rejected (`str`, *optional*):
            Folder of the worse images of pairs, with the names of the better ones.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of a dataset with the images.
        chosen_column (`str`, *optional*, defaults to `"chosen"`), rejected_column (`str`, *optional*, defaults to `"rejected"`):
            Columns of a dataset of pairs.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column of a dataset with the prompts.
        expanded_prompt_column (`str`, *optional*):
            Column with the text that an image of a pool was drawn from. The one that was drawn from the prompt itself is what
            the others are compared with; without this column, the first of a prompt is.
        score_columns (`list[str]`, *optional*):
            Columns with scores: kept beside the images, the rewards of a pool, or, one of them, what tells the better image
            of a pair.
        lower_is_better (`list[str]`, *optional*):
            Those of them of which less is better.
        advantage_column (`str`, *optional*):
            Column with the weight of an image in the loss. Defaults to 1 for all.
        group_size (`int`, *optional*):
            Images of a prompt in a pool, the first ones; prompts with fewer are left out. Defaults to all.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset.
        height (`int`, *optional*), width (`int`, *optional*):
            Size that images are scaled to and cut in the middle. Defaults to leaving them as they are.
        license (`str`, *optional*):
            Licence of the images, for the README. Defaults to what their sources state.
        model_name_or_path (`str`, *optional*, defaults to `"unknown"`):
            What drew the images of a pool, for the README and the recipe.
        output_dir (`str`):
            Folder to write.
    """

    what: Literal["images", "pairs", "pool"] = field(
        default=None, metadata={"help": "What is made: a training set, pairs for `craft dpo`, or a pool."}
    )
    prompt: str | None = field(default=None, metadata={"help": "Prompt of the images that have none of their own."})
    rejected: str | None = field(
        default=None, metadata={"help": "Folder of the worse images of pairs, with the names of the better ones."}
    )
    image_column: str = field(default="image", metadata={"help": "Column of a dataset with the images."})
    chosen_column: str = field(default="chosen", metadata={"help": "Column of a dataset with the better images."})
    rejected_column: str = field(default="rejected", metadata={"help": "Column of a dataset with the worse images."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of a dataset with the prompts."})
    expanded_prompt_column: str | None = field(
        default=None, metadata={"help": "Column with the text that an image of a pool was drawn from."}
    )
    score_columns: list[str] = field(default_factory=list, metadata={"help": "Columns with scores."})
    lower_is_better: list[str] = field(
        default_factory=list, metadata={"help": "Those of the scores of which less is better."}
    )
    advantage_column: str | None = field(
        default=None, metadata={"help": "Column with the weight of an image in the loss. Defaults to 1 for all."}
    )
    group_size: Count | None = field(
        default=None, metadata={"help": "Images of a prompt in a pool, the first ones. Defaults to all."}
    )
    split: str = field(default="train", metadata={"help": "Split of a dataset."})
    height: Pixels | None = field(default=None, metadata={"help": "Height that images are scaled and cut to."})
    width: Pixels | None = field(default=None, metadata={"help": "Width that images are scaled and cut to."})
    license: str | None = field(
        default=None, metadata={"help": "Licence of the images. Defaults to what their sources state."}
    )
    model_name_or_path: str = field(default="unknown", metadata={"help": "What drew the images of a pool."})
    output_dir: str = field(default=None, metadata={"help": "Folder to write."})

    def __post_init__(self):
        check_ranges(self)
        if not self.what:
            raise UsageError("what is missing: give it as --what images, --what pairs or --what pool.")
        if not self.output_dir:
            raise UsageError("output_dir is missing: give it as --output_dir.")
        if (self.height is None) != (self.width is None):
            raise UsageError("height and width are given together, or neither.")
        for side in (self.height or 8, self.width or 8):
            if side % 8:
                raise UsageError(f"height and width must be multiples of 8, got {side}.")
        of = {
            "rejected": ("pairs",),
            "chosen_column": ("pairs",),
            "rejected_column": ("pairs",),
            "expanded_prompt_column": ("pool",),
            "group_size": ("pool",),
            "model_name_or_path": ("pool",),
            "lower_is_better": ("pairs", "pool"),
            "advantage_column": ("images",),
        }
        for name, kinds in of.items():
            given = getattr(self, name)
            if given and given != ImportConfig.__dataclass_fields__[name].default and self.what not in kinds:
                raise UsageError(f"{name} is for --what {' or '.join(kinds)}, and what is {self.what}: leave it out.")
        if self.what == "pool" and not self.score_columns:
            raise UsageError("score_columns is missing: a pool is filtered by scores. `craft score` makes some.")
        if self.what == "pairs" and len(self.score_columns) > 1:
            raise UsageError("score_columns: one score tells the better image of a pair; of several, import a pool.")
        if self.what == "pairs" and self.score_columns and self.rejected:
            raise UsageError(
                "score_columns and rejected both say which image is the worse one: leave one of them out."
            )
        for name in self.score_columns:
            if not name.isidentifier() or name in TAKEN or self.score_columns.count(name) > 1:
                raise UsageError(f"score_columns: {name!r} cannot be the name of a score; rename the column.")
        if unknown := next((name for name in self.lower_is_better if name not in self.score_columns), None):
            raise UsageError(
                f"lower_is_better: {unknown!r} is none of score_columns ({', '.join(self.score_columns)})."
            )


def main(sources: Sequence[str], config: ImportConfig) -> None:
    """Write what is asked for, with a README that says where it came from."""
    folder = Path(config.output_dir)
    check_writable(folder)
    # Here, after what is wrong has been found.
    from ..filtering import importing
    from ..filtering import pairs as pairing
    from ..filtering.collection import ImageCollection

    size = None if config.width is None else (config.width, config.height)
    lower = set(config.lower_is_better)
    pairs = images = None
    if config.what == "pairs" and not config.score_columns:
        if len(sources) > 1:
            raise UsageError(f"Pairs are imported from one source, got {' '.join(sources)}.")
        columns = {name: getattr(config, f"{name}_column") for name in ("prompt", "chosen", "rejected")}
        pairs = pairing.read_pairs(sources[0], config.rejected, config.prompt, columns, config.split)
    else:
        more = [config.expanded_prompt_column, config.advantage_column]
        columns = [*config.score_columns, *filter(None, more)]
        images = ImageCollection(
            sources, config.prompt, config.image_column, config.prompt_column, config.split, columns
        )
        if config.what == "pairs":
            pairs = pairing.best_and_worst(images, config.score_columns[0], bool(lower))
    scores, groups, rows = {}, [], []
    left_out = dict(pairs.left_out) if pairs is not None else {}
    if config.what != "pairs":
        scores = {name: pairing.numbers(images, name) for name in config.score_columns}
    if config.what == "pool":
        groups, rows, fewer = importing.group_images(images, config.expanded_prompt_column, config.group_size)
        left_out = {"prompts with fewer images": fewer}
    importing.check_images([images.images] if pairs is None else [pairs.chosen, pairs.rejected], one_size=size is None)
    advantages = [1.0] * len(images or ())
    if config.advantage_column is not None:
        advantages = pairing.numbers(images, config.advantage_column)
    origins = [importing.find_origin(source) for source in (*sources, *filter(None, [config.rejected]))]
    given = ("what", "score_columns", "lower_is_better", "advantage_column", "expanded_prompt_column", "group_size")
    settings = {
        "images": (images or pairs).hash,
        **{name: getattr(config, name) for name in (*given, "height", "width", "license", "model_name_or_path")},
        "origins": [origin.source for origin in origins],
    }
    stage = Stage("import", folder, settings)

    def work() -> dict:
        if config.what == "pool":
            count = importing.save_pool(folder, images, groups, rows, scores, lower, config.model_name_or_path, size)
        elif pairs is not None:
            columns, pictures = {"prompt": pairs.prompts}, {"chosen": pairs.chosen, "rejected": pairs.rejected}
            columns["file"] = pairs.chosen.names
            count = importing.save_training_set(folder, columns, pictures, size)
        else:
            columns = {"prompt": images.prompts, "advantage": advantages, "file": images.names, **scores}
            count = importing.save_training_set(folder, columns, {"image": images.images}, size)
        noun = {"images": "images for training", "pairs": "preference pairs", "pool": "images in a pool"}[config.what]
        notes = [f"Left out: {number} {reason}." for reason, number in left_out.items() if number]
        if size is not None:
            notes.append(f"Scaled and cut to {size[0]}x{size[1]}.")
        importing.write_card(folder, f"{count} {noun}", origins, config.license, notes)
        return {"written": count, "left_out": {reason: number for reason, number in left_out.items() if number}}

    def report(summary: dict) -> str:
        left = "".join(f", {number} {reason} left out" for reason, number in summary["left_out"].items())
        kind = {"images": "images", "pairs": "pairs", "pool": "images of a pool"}[config.what]
        then = {
            "images": f"craft train --dataset_name {folder}",
            "pairs": f"craft dpo --dataset_name {folder}",
            "pool": f"craft filter --config {folder / 'candidates.yaml'}",
        }[config.what]
        return f"{summary['written']} {kind}{left} in {stage.folder}, for `{then}`"

    run_stage(stage, work, report)


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([ImportConfig], prog=prog)
