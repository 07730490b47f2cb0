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
Memory and seconds of the commands that read a pool, by its rows: filter, the contact sheet, and what a push prepares.

    PYTHONPATH=. python benchmarks/rows.py --rows 100000 1000000 --folder /a/disk

Each command is a process of its own, of which the peak is what the operating system says of it. The pool is written by the
library: every row has a picture, a PNG of noise of `--side` pixels, so that neither a file system nor parquet can keep equal
ones once. They are far smaller than real ones: what is measured is the price of a row, and that of pictures comes on top, see
`benchmarks/filter.py --kept_gigabytes`. One group in a hundred passes.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from craft_trl.candidates.config import CandidatesConfig
from craft_trl.candidates.groups import load_groups, make_groups, save_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.scripts.generate import make_stage
from craft_trl.stages import Stage


REWARDS = ["hpsv2", "pickscore", "aesthetic"]
VARIANTS = 8


def write_groups(folder: Path, num_groups: int) -> Path:
    """A finished expansion of prompts as long as people's, and the recipe of the run. Returns the recipe."""
    tiny = Path(__file__).parents[1] / "recipes" / "tiny"
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(4000)])
    prompts = [f"a picture of {' '.join(rng.choice(words, 12))}, number {i}" for i in range(num_groups)]
    variants = [[f"{p}, in manner {j} of many that may have been written" for j in range(VARIANTS)] for p in prompts]
    stage = Stage("expand", folder / "run" / "prompts", {})
    stage.begin()
    save_groups(make_groups(prompts, variants), stage.folder / "groups.jsonl")
    stage.finish(prompts=num_groups)
    recipe = {
        "prompts": str(tiny / "prompts" / "tiny-pick.txt"),  # those of the expansion count from here on
        "templates": ["{prompt}"],
        "num_variants": VARIANTS,
        "model_name_or_path": str(tiny / "pipeline"),
        "rewards": [f"{name}={tiny / 'inspector.py'}:quality" for name in REWARDS],
        "output_dir": str(folder / "run"),
    }
    (folder / "candidates.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder / "candidates.yaml"


def fill(recipe: Path, side: int, batch_size: int) -> None:
    """A finished pool of every image of every group, wave by wave as it is drawn."""
    stage = make_stage(CandidatesConfig(**yaml.safe_load(recipe.read_text())))
    stage.begin()
    groups = load_groups(recipe.parent / "run" / "prompts" / "groups.jsonl")
    pool, rng = CandidatePool(stage.folder, REWARDS), np.random.default_rng(1)
    made = 0
    for wave in range(1 + VARIANTS):
        for start in range(0, len(groups), batch_size):
            part = groups[start : start + batch_size]
            wins = np.array([wave > 0 and group.group_id % 100 == 0 for group in part])
            scores = rng.random((len(REWARDS), len(part))) + 2 * wins
            images = [Image.frombytes("RGB", (side, side), rng.bytes(3 * side * side)) for _ in part]
            pool.write(made, [g.keys[wave] for g in part], images, dict(zip(REWARDS, scores, strict=True)))
            made += len(part)
    stage.finish(images=made)


def measure(*command: str) -> dict:
    """Seconds of a command by the clock and of the CPU, the most memory it had, and what it said last."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "exit_code": process.returncode,
        "seconds": round(time.perf_counter() - start, 1),
        "seconds_of_cpu": round(usage.ru_utime + usage.ru_stime, 1),
        "gigabytes_at_most": round(usage.ru_maxrss * 1024 / 1e9, 3),
        "said": said.strip().splitlines()[-1] if said.strip() else "",
    }


def measure_all(folder: Path, rows: int, side: int, batch_size: int, num_groups: int) -> dict:
    """All commands on a run of so many rows."""
    recipe, measured = write_groups(folder, rows // (1 + VARIANTS)), {}
    config = ["--config", str(recipe)]
    start = time.perf_counter()
    fill(recipe, side, batch_size)
    filled = round(time.perf_counter() - start, 1)
    run = str(recipe.parent / "run")
    measured["filter"] = measure("craft_trl.scripts.filter", *config)
    measured["sheet of some groups"] = measure("craft_trl.scripts.sheet", *config, "--num_groups", str(num_groups))
    measured["sheet of all groups"] = measure("craft_trl.scripts.sheet", *config)
    push = ["craft_trl.cli.main", "push", run, "--repo_id", "org/name", "--what", "dataset", "--dry_run"]
    measured["push --dry_run"] = measure(*push)
    measured["push --dry_run, all images"] = measure(*push, "--candidate_images", "all")
    shards = list((folder / "run" / "pool").glob("*.parquet"))
    return {
        "rows": rows // (1 + VARIANTS) * (1 + VARIANTS),
        "shards": len(shards),
        "gigabytes_of_pool": round(sum(shard.stat().st_size for shard in shards) / 1e9, 3),
        "seconds_of_filling": filled,
        "commands": measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[9000])
    parser.add_argument("--side", type=int, default=16, help="Pixels of a picture's side.")
    parser.add_argument("--batch_size", type=int, default=16, help="Rows of a shard.")
    parser.add_argument("--num_groups", type=int, default=500, help="Groups of the smaller sheet.")
    parser.add_argument("--folder", required=True, help="Where the runs are written and removed again.")
    parser.add_argument("--json", help="File to write the results to.")
    args = parser.parse_args()
    result = {package: version(package) for package in ("datasets", "pyarrow", "numpy")}
    result |= {"python": platform.python_version(), "side": args.side, "runs": []}
    for rows in args.rows:
        folder = Path(args.folder) / f"rows-{rows}"
        folder.mkdir(parents=True)
        try:
            result["runs"].append(measure_all(folder, rows, args.side, args.batch_size, args.num_groups))
        finally:
            shutil.rmtree(folder)
        print(json.dumps(result["runs"][-1], indent=1), flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
