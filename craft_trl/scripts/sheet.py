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
See the candidates of a run, and vote: what the model must not be trained on, what is to be kept, which is the best of its group.

```bash
craft sheet --config recipes/tiny/candidates.yaml
craft filter --config recipes/tiny/candidates.yaml --votes ~/Downloads/votes.jsonl
```
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ..candidates.config import CandidatesConfig
from ..candidates.rejection import up_to_target
from ..filtering.sheet import check_sheet, write_sheet
from ..parser import CraftParser
from ..ranges import Count, Range, check_ranges
from ..stages import check_writable
from .filter import open_pool
from .launch import run_script, say


@dataclass
class SheetArguments:
    """
    What the contact sheet shows.

    Args:
        num_groups (`int`, *optional*):
            Show so many groups, evenly spaced over those there are. Defaults to all.
        only (`"all"`, `"kept"` or `"dropped"`, *optional*, defaults to `"all"`):
            Show groups of which the filter keeps an image, votes aside, or those of which it keeps none.
        thumbnail_size (`int`, *optional*, defaults to `192`):
            Longer side of the pictures in pixels.
        sheet_file (`str`, *optional*):
            File to write. Defaults to `sheet.html` in `output_dir`.
    """

    num_groups: Count | None = field(
        default=None, metadata={"help": "Show so many groups, evenly spaced over those there are. Defaults to all."}
    )
    only: Literal["all", "kept", "dropped"] = field(
        default="all",
        metadata={"help": "Show groups of which the filter keeps an image, or those of which it keeps none."},
    )
    thumbnail_size: Annotated[int, Range(16, 1024)] = field(
        default=192, metadata={"help": "Longer side of the pictures in pixels."}
    )
    sheet_file: str | None = field(
        default=None, metadata={"help": "File to write. Defaults to sheet.html in output_dir."}
    )

    def __post_init__(self):
        check_ranges(self)


def main(config: CandidatesConfig, args: SheetArguments) -> None:
    """Write the contact sheet."""
    start = time.monotonic()
    path = Path(args.sheet_file or Path(config.output_dir) / "sheet.html")
    check_sheet(path)
    groups, pool, _ = open_pool(config)
    groups = up_to_target(pool, groups, config.reject_on, config.target_groups)  # those that `craft filter` looks at
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = write_sheet(path, groups, pool, config, args.num_groups, args.only, args.thumbnail_size)
    votes = f", {made['votes']} votes" if made["votes"] else ""
    waiting = f" ({made['waiting']} groups are not drawn yet)" if made["waiting"] else ""
    say(
        f"[sheet] {made['images']} images of {made['groups']} groups{votes}{waiting}, at {args.thumbnail_size} pixels, "
        f"{made['bytes'] / 1e6:.1f} MB: {path} ({time.monotonic() - start:.0f} s)"
    )


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([CandidatesConfig, SheetArguments], prog=prog)


if __name__ == "__main__":
    raise SystemExit(run_script(main, make_parser))
