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
Filtering a stored pool: seconds, of a clock and of the CPU, and bytes read, with the shards read whole beforehand and with their rows alone.

    PYTHONPATH=. python benchmarks/filter.py --images 90000 --image_bytes 2000
    PYTHONPATH=. python benchmarks/filter.py --images 900 --image_bytes 1500000
    PYTHONPATH=. python benchmarks/filter.py --kept_gigabytes 6 --folder /a/disk
    PYTHONPATH=. python benchmarks/filter.py --finished 90000

The pool is written through the real code, with random bytes for images, in groups of `--variants` and their original. One
group in a hundred passes. What the operating system remembers of the files is not dropped: a disk's own speed comes on top.

With `--kept_gigabytes`, every group passes, the images are PNGs of noise, and what is measured is the memory that
`craft filter` needs beyond what it has with the pool opened; then the training set is read again. With `--finished`, it is the
seconds of `craft generate` on a pool of so many tiny images that is finished: the first time it reads all of it, then not.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow
import yaml
from datasets import disable_progress_bars, load_from_disk
from PIL import Image

from craft_trl.candidates.config import CandidatesConfig
from craft_trl.candidates.groups import Group, load_groups, make_groups, save_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.filtering.dataset import build_dataset_dict
from craft_trl.scripts.generate import make_stage


REWARDS = ["hpsv2", "pickscore", "aesthetic"]


class RandomBytes:
    """Stands for an image: a PNG is as little compressible."""

    info: dict = {}

    def __init__(self, size: int):
        self.size = size

    def save(self, buffer, **options) -> None:
        buffer.write(os.urandom(self.size))


class Noise(RandomBytes):
    """Stands for an image as well, and is a PNG."""

    def save(self, buffer, **options) -> None:
        side = int((self.size / 3) ** 0.5)
        Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(buffer, format="PNG", compress_level=0)


def fill(folder: Path, groups: list[Group], image: RandomBytes, batch_size: int, passing: int = 100) -> None:
    """Write the groups' images wave by wave, as they are drawn: those of a group lie in different shards."""
    pool, rng = CandidatePool(folder, REWARDS), np.random.default_rng(0)
    keys = [group.keys[wave] for wave in range(len(groups[0].keys)) for group in groups]
    winners = {key for group in groups[::passing] for key in group.keys[1:]}
    for start in range(0, len(keys), batch_size):
        part = keys[start : start + batch_size]
        scores = rng.random((len(REWARDS), len(part))) + [2 * (key in winners) for key in part]
        pool.append(part, [image] * len(part), dict(zip(REWARDS, scores, strict=True)))


def bytes_read() -> int:
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def measure(folder: Path, groups: list[Group], verify: bool) -> dict:
    """Load the pool, filter it, and write the training set."""
    before, start, cpu = bytes_read(), time.perf_counter(), time.process_time()
    pool = CandidatePool(folder, REWARDS, verify)
    loaded = time.perf_counter() - start
    dataset = build_dataset_dict(groups, pool)
    with tempfile.TemporaryDirectory() as output:
        dataset.save_to_disk(output)
    assert len(pool) == sum(len(group.keys) for group in groups) and not pool.damaged
    return {
        "read_whole_beforehand": verify,
        "images_kept": len(dataset["train"]),
        "seconds_of_loading": round(loaded, 2),
        "seconds": round(time.perf_counter() - start, 2),
        "seconds_of_cpu": round(time.process_time() - cpu, 2),
        "gigabytes_read": round((bytes_read() - before) / 1e9, 3),
    }


def make_run(folder: Path, groups: list[Group], image: RandomBytes, batch_size: int, passing: int) -> Path:
    """A run whose pool is finished, as `craft` knows it, and its recipe. Returns the recipe."""
    tiny = Path(__file__).parents[1] / "recipes" / "tiny"
    recipe = {"prompts": str(tiny / "prompts" / "tiny-pick.txt"), "templates": ["{prompt}"], "num_variants": 1}
    recipe |= {"model_name_or_path": str(tiny / "pipeline"), "output_dir": str(folder / "run")}
    recipe |= {"rewards": [f"{name}={tiny / 'inspector.py'}:quality" for name in REWARDS]}
    (folder / "candidates.yaml").write_text(yaml.safe_dump(recipe))
    stage = make_stage(CandidatesConfig(**recipe))
    stage.begin()
    fill(stage.folder, groups, image, batch_size, passing)
    stage.finish(images=sum(len(group.keys) for group in groups))
    (folder / "run" / "prompts").mkdir()
    save_groups(groups, folder / "run" / "prompts" / "groups.jsonl")
    return folder / "candidates.yaml"


PEAK = """
import resource, sys
from craft_trl.scripts import filter as script

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

import craft_trl.filtering.dataset
(config,) = script.make_parser().parse_args_and_config(["--config", sys.argv[1]])
script.open_pool(config)
start = resident()
script.main(config)
print(start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def measure_memory(recipe: Path) -> dict:
    """Peak of a process that filters, and whether what it wrote can be read."""
    start = time.perf_counter()
    output = subprocess.run(
        [sys.executable, "-c", PEAK, str(recipe)], check=True, capture_output=True, text=True
    ).stdout
    seconds = time.perf_counter() - start
    before, peak = map(int, output.splitlines()[-1].split())
    dataset = recipe.parent / "run" / "dataset"
    train = load_from_disk(str(dataset))["train"]
    sizes = {image.size for image in train.select(range(0, len(train), 97))["image"]}
    return {
        "images_kept": len(train),
        "gigabytes_kept": round(sum(path.stat().st_size for path in (dataset / "train").glob("*.arrow")) / 1e9, 3),
        "files": len(list((dataset / "train").glob("*.arrow"))),
        "sizes": sorted(sizes),
        "gigabytes_before": round(before / 1e9, 3),
        "gigabytes_at_most": round(peak / 1e9, 3),
        "seconds": round(seconds, 1),
    }


def measure_finished(recipe: Path) -> dict:
    """Seconds of `craft generate` where there is nothing to do, and of the pool's part of it."""
    command = [sys.executable, "-m", "craft_trl.scripts.generate", "--config", str(recipe)]
    seconds = []
    time.sleep(2.5)  # what was written this very moment is not remembered
    for _ in range(3):
        start = time.perf_counter()
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert "done before" in output, output
        seconds.append(round(time.perf_counter() - start, 2))
    start = time.perf_counter()
    pool = CandidatePool(recipe.parent / "run" / "pool", REWARDS)
    loaded = time.perf_counter()
    pool.matrices(load_groups(recipe.parent / "run" / "prompts" / "groups.jsonl"))
    return {
        "seconds_of_craft_generate": seconds,
        "seconds_of_opening_the_pool": round(loaded - start, 2),
        "seconds_of_the_matrix": round(time.perf_counter() - loaded, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=9000)
    parser.add_argument("--image_bytes", type=int, default=2000)
    parser.add_argument("--variants", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=16, help="Images in a shard.")
    parser.add_argument(
        "--kept_gigabytes", type=float, help="Measure the memory that a training set of so much takes."
    )
    parser.add_argument("--finished", type=int, help="Measure `craft generate` on a finished pool of so many images.")
    parser.add_argument("--folder", help="Where the pool is written and removed again. Defaults to the system's own.")
    parser.add_argument("--json", help="File to write the results to.")
    args = parser.parse_args()
    disable_progress_bars()
    noise = Noise(1_600_000)
    if args.kept_gigabytes:
        args.images = int(args.kept_gigabytes * 1e9 / noise.size * (1 + args.variants) / args.variants)
    args.images = args.finished or args.images
    prompts = [f"prompt {i}" for i in range(args.images // (1 + args.variants))]
    groups = make_groups(prompts, [[f"{prompt}, variant {j}" for j in range(args.variants)] for prompt in prompts])
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        pool = Path(folder) / "pool"
        if args.kept_gigabytes:
            rows = [measure_memory(make_run(Path(folder), groups, noise, args.batch_size, passing=1))]
            pool = Path(folder) / "run" / "pool"
        elif args.finished:
            image = RandomBytes(args.image_bytes)
            rows = [measure_finished(make_run(Path(folder), groups, image, args.batch_size, passing=100))]
            pool = Path(folder) / "run" / "pool"
        else:
            fill(pool, groups, RandomBytes(args.image_bytes), args.batch_size)
            rows = [measure(pool, groups, verify) for verify in (True, False)]
        sizes = [path.stat().st_size for path in pool.glob("*.parquet")]
        result = {
            "images": len(groups) * (1 + args.variants),
            "shards": len(sizes),
            "gigabytes": round(sum(sizes) / 1e9, 3),
            "rows": rows,
            "pyarrow": pyarrow.__version__,
            "python": platform.python_version(),
        }
    print(json.dumps(result, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
