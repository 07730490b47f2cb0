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
Score images that are there already: files, folders with captions, datasets. Needs no model that draws.

```bash
craft score pictures/ --rewards hpsv2 pickscore aesthetic --output_dir runs/scores
craft score a.png b.png --prompt "a fox" --rewards pickscore --output_dir runs/scores
craft score org/dataset --prompt_column caption --rewards imagereward --output_dir runs/scores
```
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UsageError
from ..parser import CraftParser
from ..rewards import check_asked, lower_is_better, parse_rewards
from ..rewards.config import ScoringConfig
from ..stages import Stage, check_writable
from .launch import run_stage


PART = 256  # images that are scored, written and never scored again


@dataclass
class ScoreConfig(ScoringConfig):
    """
    Configuration of `craft score`.

    Parameters:
        rewards (`list[str]`):
            Rewards that score, as `NAME` or `NAME=SOURCE`, see [`rewards`].
        prompt (`str`, *optional*):
            Prompt of the images that have none of their own.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of a dataset with the images.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column of a dataset with the prompts.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset.
        output_dir (`str`):
            Folder for `scores.parquet` and `scores.html`.

        Where and how precisely the rewards score is said by [`ScoringConfig`].
    """

    rewards: list[str] = field(default_factory=list, metadata={"help": "Rewards that score, as NAME or NAME=SOURCE."})
    prompt: str | None = field(default=None, metadata={"help": "Prompt of the images that have none of their own."})
    image_column: str = field(default="image", metadata={"help": "Column of a dataset with the images."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of a dataset with the prompts."})
    split: str = field(default="train", metadata={"help": "Split of a dataset."})
    output_dir: str = field(default=None, metadata={"help": "Folder for scores.parquet and scores.html."})

    def __post_init__(self):
        for name in ("rewards", "output_dir"):
            if not getattr(self, name):
                raise UsageError(f"{name} is missing: give it as --{name}.")
        specs = parse_rewards(self.rewards)
        if own := next((spec for spec in specs if spec.needs), None):
            benchmark = own.judge.template.name if own.vlm else "GenEval"
            raise UsageError(
                f"{own.name} needs the prompts of {benchmark} with their metadata: judge a model with `craft evaluate`."
            )
        for spec in specs:
            if spec.name in ("file", "prompt"):
                raise UsageError(f"A reward cannot be named {spec.name!r}, which is a column of the scores already.")
        self.check_scoring(specs)


def main(sources: Sequence[str], config: ScoreConfig) -> None:
    """Write `scores.parquet`, a row an image, and `scores.html`, a page of the best and the worst."""
    specs = {spec.name: spec for spec in parse_rewards(config.rewards)}
    check_writable(Path(config.output_dir))
    # Here, after what is wrong has been found.
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ..candidates.turns import load_reward
    from ..devices import default_device
    from ..filtering.collection import ImageCollection
    from ..filtering.score_page import write_score_page
    from ..progress import progress_bar
    from ..rewards import score

    images = ImageCollection(sources, config.prompt, config.image_column, config.prompt_column, config.split)
    check_asked(specs.values(), images.prompts, " ".join(sources))
    settings = {
        "images": images.hash,
        "names": images.names,
        "rewards": {name: config.fingerprint_of(spec) for name, spec in specs.items()},
    }
    stage = Stage("score", Path(config.output_dir), settings)

    def work() -> dict:
        parts = stage.folder / "parts"
        parts.mkdir(exist_ok=True)
        starts = range(0, len(images), PART)
        files = [parts / f"{start:08d}.parquet" for start in starts]
        missing = [start for start, file in zip(starts, files, strict=True) if not file.exists()]
        # Also where nothing is missing: they know of which of them less is better.
        rewards = {name: load_reward(spec, config, default_device()) for name, spec in specs.items()}
        with progress_bar(total=len(images), unit="image", desc="Scoring") as bar:
            bar.update(len(images) - sum(min(PART, len(images) - start) for start in missing))
            for start in missing:
                part = slice(start, min(start + PART, len(images)))
                values = score(rewards, images.images[part], images.prompts[part])
                columns = {"file": images.names[part], "prompt": images.prompts[part], **values}
                write_table(pa.table(columns), parts / f"{start:08d}.parquet")
                bar.update(part.stop - start)
        table = pa.concat_tables(map(pq.read_table, files))
        write_table(table, stage.folder / "scores.parquet")
        scores = {name: table[name].to_numpy() for name in specs}
        lower = lower_is_better(rewards)
        write_score_page(stage.folder / "scores.html", images, scores, lower)
        for file in files:
            file.unlink()
        parts.rmdir()
        return {"images": len(images), "means": {name: float(np.mean(values)) for name, values in scores.items()}}

    def write_table(table: pa.Table, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        pq.write_table(table, temporary)
        temporary.replace(path)

    def report(summary: dict) -> str:
        means = ", ".join(f"{name} {mean:.4g}" for name, mean in summary["means"].items())
        return f"{summary['images']} images, mean {means}: {stage.folder / 'scores.html'}"

    run_stage(stage, work, report)


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([ScoreConfig], prog=prog)
