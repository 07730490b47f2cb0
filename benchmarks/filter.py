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

The pool is written through the real code, with random bytes for images, in groups of `--variants` and their original. One
group in a hundred passes. What the operating system remembers of the files is not dropped: a disk's own speed comes on top.
"""

import argparse
import json
import os
import platform
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow
from datasets import disable_progress_bars

from craft_trl.candidates.groups import Group, make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.filtering.dataset import build_dataset_dict


REWARDS = ["hpsv2", "pickscore", "aesthetic"]


class RandomBytes:
    """Stands for an image: a PNG is as little compressible."""

    info: dict = {}

    def __init__(self, size: int):
        self.size = size

    def save(self, buffer, **options) -> None:
        buffer.write(os.urandom(self.size))


def fill(folder: Path, groups: list[Group], image_bytes: int, batch_size: int) -> None:
    """Write the groups' images wave by wave, as they are drawn: those of a group lie in different shards."""
    pool, rng = CandidatePool(folder, REWARDS), np.random.default_rng(0)
    keys = [group.keys[wave] for wave in range(len(groups[0].keys)) for group in groups]
    winners = {key for group in groups[::100] for key in group.keys[1:]}
    for start in range(0, len(keys), batch_size):
        part = keys[start : start + batch_size]
        scores = rng.random((len(REWARDS), len(part))) + [2 * (key in winners) for key in part]
        pool.append(part, [RandomBytes(image_bytes)] * len(part), dict(zip(REWARDS, scores, strict=True)))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=9000)
    parser.add_argument("--image_bytes", type=int, default=2000)
    parser.add_argument("--variants", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=16, help="Images in a shard.")
    parser.add_argument("--folder", help="Where the pool is written and removed again. Defaults to the system's own.")
    parser.add_argument("--json", help="File to write the results to.")
    args = parser.parse_args()
    disable_progress_bars()
    prompts = [f"prompt {i}" for i in range(args.images // (1 + args.variants))]
    groups = make_groups(prompts, [[f"{prompt}, variant {j}" for j in range(args.variants)] for prompt in prompts])
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        pool = Path(folder) / "pool"
        fill(pool, groups, args.image_bytes, args.batch_size)
        sizes = [path.stat().st_size for path in pool.glob("*.parquet")]
        result = {
            "images": len(groups) * (1 + args.variants),
            "shards": len(sizes),
            "gigabytes": round(sum(sizes) / 1e9, 3),
            "rows": [measure(pool, groups, verify) for verify in (True, False)],
            "pyarrow": pyarrow.__version__,
            "python": platform.python_version(),
        }
    print(json.dumps(result, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
