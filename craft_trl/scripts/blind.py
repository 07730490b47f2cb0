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
Two models side by side for people who do not know which is which, and what their votes say.

```bash
craft blind runs/tiny/evaluation --output_dir runs/tiny/blind
craft blind runs/tiny/blind --votes ~/Downloads/blind_votes.jsonl
```
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from ..errors import UsageError
from ..parser import CraftParser
from ..ranges import Count, Range, Seed, Share, check_ranges
from ..stages import Stage, check_writable, write_atomically
from .launch import run_stage, say


@dataclass
class BlindConfig:
    """
    Configuration of `craft blind`.

    Parameters:
        models (`list[str]`, *optional*):
            The two models of the evaluation. Defaults to the base and the last one.
        num_pairs (`int`, *optional*):
            So many pairs, evenly spaced over the images. Defaults to all.
        image_size (`int`, *optional*, defaults to `768`):
            Longer side of the pictures in pixels; smaller images stay as they are.
        repeat (`float`, *optional*, defaults to `0.05`):
            Share of the pairs that is shown a second time with its sides changed, to see how far people agree with themselves.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sides and order.
        output_dir (`str`, *optional*):
            Folder for `blind.html` and `key.json`. Needed to write a page.
        votes (`list[str]`, *optional*):
            Files that the page saved, one or more of each person. They are counted; no page is written.
    """

    models: list[str] | None = field(
        default=None,
        metadata={"help": "The two models of the evaluation. Defaults to the base and the last one."},
    )
    num_pairs: Count | None = field(
        default=None, metadata={"help": "So many pairs, evenly spaced over the images. Defaults to all."}
    )
    image_size: Annotated[int, Range(16, 4096)] = field(
        default=768, metadata={"help": "Longer side of the pictures in pixels."}
    )
    repeat: Share = field(
        default=0.05, metadata={"help": "Share of the pairs that is shown a second time with its sides changed."}
    )
    seed: Seed = field(default=0, metadata={"help": "Seed of sides and order."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for blind.html and key.json."})
    votes: list[str] | None = field(
        default=None, metadata={"help": "Files that the page saved. They are counted; no page is written."}
    )

    def __post_init__(self):
        check_ranges(self)
        if self.votes is None and self.output_dir is None:
            raise UsageError("output_dir is missing: give it as --output_dir, or count votes by --votes.")
        if self.votes is not None:
            for option in fields(self):
                if option.name != "votes" and getattr(self, option.name) != option.default:
                    raise UsageError(
                        f"{option.name} makes a page, and votes count those of one: leave one of them out."
                    )


def main(sources: Sequence[str], config: BlindConfig) -> None:
    """Write the page of an evaluation, or count the votes of a page."""
    if len(sources) != 1:
        raise UsageError(f"craft blind takes one folder, got {', '.join(sources)}.")
    (folder,) = sources
    if config.votes is not None:
        return count(folder, config.votes)
    check_writable(Path(config.output_dir))
    # Here, after what is wrong has been found.
    from ..evaluation.blind import PAGE, Evaluated, make_pairs, write_page

    evaluated = Evaluated(folder)
    models = evaluated.choose(config.models)
    pairs = make_pairs(evaluated, models, config.num_pairs, config.repeat, config.seed)
    settings = {
        "evaluation": evaluated.fingerprint,
        "models": list(models),
        "pairs": [pair.id for pair in pairs],
        "image_size": config.image_size,
        "seed": config.seed,
    }
    stage = Stage("blind", Path(config.output_dir), settings)

    def work() -> dict:
        size = write_page(stage.folder, evaluated, models, pairs, config.image_size)
        return {"pairs": len(pairs), "again": sum(pair.repeats is not None for pair in pairs), "bytes": size}

    def report(summary: dict) -> str:
        again = f", {summary['again']} of them shown again" if summary["again"] else ""
        return f"{summary['pairs']} pairs{again}, {summary['bytes'] / 1e6:.1f} MB: {stage.folder / PAGE}"

    run_stage(stage, work, report)


def count(folder: str, votes: Sequence[str]) -> None:
    """Say what the votes on a page say, and write it to `tally.json` beside it, in place of what an earlier count said."""
    from ..evaluation.blind import describe_tally, load_blind_votes, load_key, tally
    from ..sources import sha256

    key = load_key(folder)
    found = tally(load_blind_votes(votes, key), key["models"])
    files = {str(path): sha256(Path(path)) for path in votes}
    write_atomically(Path(folder) / "tally.json", json.dumps(found | {"files": files}, indent=1) + "\n")
    say(describe_tally(found))


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([BlindConfig], prog=prog)
