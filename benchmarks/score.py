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
`craft score` of many images, killed with SIGKILL at random moments and started again: whether the bytes are those of a run that
nobody disturbed, and how much was done twice.

    PYTHONPATH=. python benchmarks/score.py --images 10000 --kills 3 --folder /a/disk

The pictures are 64-pixel PNGs of noise, no two alike, each with a caption; the rewards are the three of recipes/tiny.
"""

import argparse
import hashlib
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
from PIL import Image


TINY = Path(__file__).parents[1] / "recipes" / "tiny"
REWARDS = {"hpsv2": "hps", "pickscore": "pick", "aesthetic": "aesthetic"}
FILES = ("scores.parquet", "scores.html", "stage.json")


def write_pictures(folder: Path, count: int) -> None:
    """PNGs of noise that is coarse, as pictures are, with captions."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number:06d}.png")
        (folder / f"{number:06d}.txt").write_text(f"picture {number} of {rng.integers(10**6)}", encoding="utf-8")


def start(pictures: Path, output_dir: Path) -> subprocess.Popen:
    rewards = [f"{name}={TINY / 'rewards' / folder}" for name, folder in REWARDS.items()]
    command = [sys.executable, "-m", "craft_trl.cli.main", "score", str(pictures), "--rewards", *rewards]
    return subprocess.Popen([*command, "--output_dir", str(output_dir)], stdout=subprocess.DEVNULL)


def wait(process: subprocess.Popen) -> dict:
    """Seconds of the CPU that a process took, and the most memory that it had."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = round(usage.ru_utime + usage.ru_stime, 1)
    return {
        "exit_code": process.returncode,
        "seconds_of_cpu": cpu,
        "gigabytes": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }


def parts(folder: Path) -> dict[str, int]:
    """The parts that are there, with the moment in which each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "parts").glob("[!.]*.parquet")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="Seed of the moments.")
    parser.add_argument("--folder", required=True, help="Where it is written and removed again.")
    args = parser.parse_args()
    folder = Path(args.folder) / f"score-{args.images}"
    write_pictures(folder / "pictures", args.images)
    total = -(-args.images // 256)
    began = time.perf_counter()
    result = {package: version(package) for package in ("torch", "transformers", "datasets", "pyarrow", "numpy")}
    result |= {"python": platform.python_version(), "images": args.images, "parts": total, "seed": args.seed}
    result["whole"] = wait(start(folder / "pictures", folder / "whole"))
    result["whole"]["seconds"] = round(time.perf_counter() - began, 1)
    # Each kill falls into what is left then, at a share of it that is drawn; by parts, so that a busy machine changes nothing.
    rng, killed, result["killed"] = np.random.default_rng(args.seed), folder / "killed", []
    for _ in range(args.kills):
        before = parts(killed)
        until = len(before) + rng.uniform(0.05, 0.6) * (total - len(before))
        process = start(folder / "pictures", killed)
        while len(parts(killed)) < until and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, result["whole"]["seconds"] / total))  # anywhere within a part
        process.kill()
        entry = wait(process) | {"parts": len(parts(killed))}
        there = parts(killed)
        entry["scored_again"] = sum(there.get(name) != moment for name, moment in before.items())
        result["killed"].append(entry)
    before = parts(killed)
    result["resumed"] = wait(start(folder / "pictures", killed))
    result["resumed"]["parts_before"] = len(before)
    digests = {
        name: [hashlib.sha256((folder / run / name).read_bytes()).hexdigest() for run in ("whole", "killed")]
        for name in FILES
    }
    result["same_bytes"] = {name: one == other for name, (one, other) in digests.items()}
    result["left_over"] = sorted(path.name for path in killed.iterdir() if path.name not in FILES)
    result["sha256"] = {name: one for name, (one, _) in digests.items()}
    print(json.dumps(result, indent=1))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
