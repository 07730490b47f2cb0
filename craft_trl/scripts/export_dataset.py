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
Write what the filter keeps as a folder that other trainers read: kohya's scripts, OneTrainer, SimpleTuner, ai-toolkit.

```bash
craft export-dataset --config recipes/tiny/candidates.yaml --export_dir exports/tiny
craft export-dataset --config recipes/tiny/candidates.yaml --export_dir exports/pairs --what pairs
```
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..candidates.config import CandidatesConfig
from ..errors import UsageError
from ..filtering.folders import write_images, write_pairs
from ..parser import CraftParser
from ..ranges import Count, check_ranges
from ..stages import Stage, check_writable, fingerprint
from .filter import open_pool
from .launch import run_script, run_stage


@dataclass
class ExportDatasetArguments:
    """
    What is written, and where.

    Args:
        export_dir (`str`):
            Folder to write.
        what (`"images"` or `"pairs"`, *optional*, defaults to `"images"`):
            The images that the filter keeps, with their prompts, or preference pairs, see [`build_pairs`].
        captions (`"original"` or `"expanded"`, *optional*, defaults to `"original"`):
            The prompt that stands beside an image: the one that it is to be drawn from later, or the variant that it was
            drawn from.
        repeats (`int`, *optional*, defaults to `1`):
            How often an image is shown in an epoch.
    """

    export_dir: str = field(default=None, metadata={"help": "Folder to write."})
    what: Literal["images", "pairs"] = field(
        default="images", metadata={"help": "The images that the filter keeps, or preference pairs."}
    )
    captions: Literal["original", "expanded"] = field(
        default="original",
        metadata={"help": "The prompt beside an image: the original one, or the variant that it was drawn from."},
    )
    repeats: Count = field(default=1, metadata={"help": "How often an image is shown in an epoch."})

    def __post_init__(self):
        check_ranges(self)
        if not self.export_dir:
            raise UsageError("export_dir is missing: give it as --export_dir.")
        if self.what == "pairs" and self.captions != "original":
            raise UsageError(
                "captions is expanded, but the two images of a pair have their original prompt in common only."
            )


def main(config: CandidatesConfig, args: ExportDatasetArguments) -> None:
    """Write the folder, with a card that says what it holds and where that came from."""
    check_writable(Path(args.export_dir))
    if config.train_images != "kept":
        raise UsageError(
            f"train_images {config.train_images} has worse images among them, which other trainers would learn like the others: leave "
            "it out here."
        )
    groups, pool, record = open_pool(config)
    from ..filtering.dataset import build_pairs
    from ..filtering.filter import explain_nothing, filter_candidates

    rows = filter_candidates(groups, pool, config)
    kept = [row for row in rows if row["keep"]]
    if args.what == "images" and not kept:
        raise UsageError(explain_nothing(groups, pool, config))
    settings = {
        "pool": record["fingerprint"],
        "rows": fingerprint(rows),
        "conditions": config.conditions(pool.rewards),
        "what": args.what,
        "captions": args.captions,
        "repeats": args.repeats,
    }
    stage = Stage("export_dataset", Path(args.export_dir), settings)
    origin = {
        "model": config.model_name_or_path,
        "prompts": config.prompts,
        "conditions": config.conditions(pool.rewards),
        "level": config.filter_level,
        "candidates": sum(row["drop_reason"] != "not_generated" for row in rows),
    }

    def work() -> dict:
        if args.what == "images":
            write_images(stage.folder, kept, pool, args.captions, args.repeats, origin)
            return {"written": len(kept)}
        pairs = build_pairs(groups, pool, config)
        write_pairs(stage.folder, pairs, args.repeats, origin)
        return {"written": len(pairs)}

    run_stage(stage, work, lambda summary: f"{summary['written']} {args.what} in {stage.folder}")


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([CandidatesConfig, ExportDatasetArguments], prog=prog)


if __name__ == "__main__":
    raise SystemExit(run_script(main, make_parser))
