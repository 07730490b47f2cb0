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
Draw pairs of denoising steps from the base model, the better against the worse: the training set of `craft spo`.

```bash
craft transitions --config recipes/tiny/candidates.yaml
craft transitions --config recipes/tiny/candidates.yaml --tree_steps 10 --first_branch 2
```

It takes the prompts of `craft expand` and, for the scales of the rewards, the pool of `craft generate`.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ..candidates.config import CandidatesConfig
from ..candidates.groups import Group
from ..candidates.tree_config import TreeConfig, check_trees, tree_file, tree_settings
from ..parser import CraftParser
from ..rewards import parse_rewards
from ..stages import Stage, fingerprint, stopwatch
from . import generate
from .filter import open_pool
from .launch import run_script, run_stage, say


def check(config: CandidatesConfig) -> None:
    """Find what is wrong before any work is done."""
    generate.check(config)
    check_trees(config)


def draw(config: CandidatesConfig, tree: TreeConfig, groups: Sequence[Group]) -> list[Path]:
    """
    Draw the tree of each prompt that has none yet into `trees/`, and return the files of all. Each starts from the noise of the
    prompt's image in the pool.
    """
    specs = parse_rewards(config.rewards)
    settings = tree_settings(config, tree, {spec.name: config.fingerprint_of(spec) for spec in specs})
    stage = Stage("trees", Path(config.output_dir) / "trees", settings)
    prompts = [(group.prompt, group.seeds[0]) for group in groups]
    files = [tree_file(stage.folder, settings, *key) for key in prompts]
    if message := stage.begin():
        say(f"[trees] {message}")
    if not all(path.exists() for path in files):
        from ..candidates.trees import draw_trees
        from ..candidates.turns import load_stage
        from ..planning.placement import offloads

        with stopwatch(stage):
            offload = offloads(config, config.model_name_or_path, config.model_revision, specs)
            generator, rewards, turns = load_stage(config, specs, offload, config.model_name_or_path)
            draw_trees(stage.folder, settings, prompts, generator, rewards, tree, config.batch_size, turns)
    return files


def describe(files: Sequence[Path], rows: int, tree: TreeConfig) -> str:
    """What trees took, and what came of them, in a line."""
    from ..candidates.trees import tree_passes

    most = len(files) * (tree.tree_steps - tree.first_branch)
    return f"{len(files)} trees, {tree_passes(files):,} denoiser passes, {rows} of at most {most} pairs kept ({rows / most:.0%})"


def main(config: CandidatesConfig, tree: TreeConfig) -> None:
    """Write `trees/`, and `transitions/`, the pairs."""
    check(config)
    groups, pool, _ = open_pool(config)
    from ..filtering.transitions import build_transitions, reward_scales

    files = draw(config, tree, groups)
    scales = reward_scales(groups, pool, config)
    settings = {"trees": fingerprint([path.name for path in files]), "scales": scales}
    settings["min_preference"] = tree.min_preference
    stage = Stage("transitions", Path(config.output_dir) / "transitions", settings)

    def work() -> dict:
        with TemporaryDirectory(dir=stage.folder.parent) as scratch:
            transitions = build_transitions(files, scales, tree.min_preference, Path(scratch))
            transitions.save_to_disk(str(stage.folder))
        return {"rows": len(transitions)}

    run_stage(stage, work, lambda summary: f"{describe(files, summary['rows'], tree)} in {stage.folder}")


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([CandidatesConfig, TreeConfig], prog=prog)


if __name__ == "__main__":
    raise SystemExit(run_script(main, make_parser))
