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
What an evaluation costs beside drawing and scoring, and that one killed with -9 in the middle ends with the same numbers.

    PYTHONPATH=. python benchmarks/evaluation.py --json evaluate.json              # the tiny model and six of its judges
    PYTHONPATH=. python benchmarks/evaluation.py --injected --json evaluate.json   # what the evaluation itself does, alone

`craft evaluate` runs three times on `--images` images with six judges: once undisturbed, once until it is killed when half of
the images are there, and again from there. With `--injected` pictures of noise and judges that look at a few pixels stand in
for the networks, so that nothing but the evaluation's own work is left. Seconds are those of the processor in this
process, so that other programs hardly count.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from measuring import heading, machine
from PIL import Image

from craft_trl.candidates import storing
from craft_trl.candidates.pool import CandidatePool
from craft_trl.evaluation import evaluate
from craft_trl.evaluation.config import EvaluationConfig
from craft_trl.scripts import evaluate as script


TINY = Path(__file__).parents[1] / "recipes" / "tiny"
JUDGES = [
    f"hpsv2={TINY}/rewards/hps", f"pickscore={TINY}/rewards/pick", f"aesthetic={TINY}/rewards/aesthetic",
    f"imagereward={TINY}/evaluators/imagereward", f"alignment={TINY}/inspector.py:alignment",
    f"quality={TINY}/inspector.py:quality",
]  # fmt: skip
STEPS = 2


class Noise:
    """Draws pictures of noise, each from its seed."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, prompts, seeds):
        return [Image.fromarray(np.random.default_rng(s).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for s in seeds]


def _pixel(number: int):
    return lambda images, prompts: [image.getpixel((number, number))[number % 3] + len(prompts[0]) for image in images]


first, second, third, fourth, fifth, sixth = map(_pixel, range(6))  # judges, which look at a pixel


def child(args: argparse.Namespace) -> None:
    """An evaluation in a process of its own, which writes what its parts took."""
    seconds: dict[str, float] = {}

    def clock(owner, name: str, part: str) -> None:
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[part] = seconds.get(part, 0.0) + time.process_time() - start

        setattr(owner, name, timed)

    judges = JUDGES
    if args.injected:
        evaluate.ImageGenerator = Noise
        judges = [f"{name}={__file__}:{name}" for name in ("first", "second", "third", "fourth", "fifth", "sixth")]
    clock(evaluate.ImageGenerator, "__init__", "loading")
    clock(evaluate.ImageGenerator, "__call__", "drawing")
    clock(storing, "score", "scoring")
    clock(CandidatePool, "write", "images and scores to files")
    clock(evaluate, "compare", "means and intervals")
    clock(script, "per_image", "rows of scores.parquet")
    clock(script, "write_report", "report")
    config = EvaluationConfig(
        models=[f"base={TINY}/pipeline", f"again={TINY}/pipeline"],
        prompts=f"{TINY}/prompts/tiny-hpd-test.jsonl",
        group_by="stratum",
        num_images_per_prompt=args.images // 400,
        num_inference_steps=STEPS,
        height=64,
        width=64,
        batch_size=32,
        rewards=judges[:3],
        held_out_rewards=judges[3:],
        output_dir=str(args.child),
    )
    start = time.process_time()
    script.main(config)
    seconds["all"] = time.process_time() - start
    args.child.with_suffix(".json").write_text(json.dumps(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3200, help="a multiple of 400, the prompts; default 3200")
    parser.add_argument("--injected", action="store_true", help="noise for images and pixels for judges")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.images % 400 or args.images < 400:
        parser.error(f"--images must be a multiple of 400, got {args.images}")
    if args.child:
        child(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"

        def start(output: Path) -> subprocess.Popen:
            return subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--child", str(output)])

        def finish(process: subprocess.Popen) -> None:
            if process.wait():
                raise SystemExit(process.returncode)

        finish(start(whole))
        process = start(killed)
        while (there := 32 * len(list(killed.glob("images/*/shard-*.parquet")))) < args.images / 2:
            if process.poll() is not None:
                raise SystemExit("ended before it could be killed")
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        finish(start(killed))
        result = {
            "machine": machine("cpu", ("torch", "diffusers", "transformers", "pyarrow")),
            "images": args.images,
            "judges": 6,
            "injected": args.injected,
            "cpu_seconds": json.loads(whole.with_suffix(".json").read_text()),
            "images_there_when_killed": there,
            "same_results": (whole / "results.json").read_text() == (killed / "results.json").read_text(),
            "same_scores": pq.read_table(whole / "scores.parquet").equals(pq.read_table(killed / "scores.parquet")),
        }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{heading(result['machine'])}\n{args.images} images, six judges; CPU seconds:")
    for part, seconds in result["cpu_seconds"].items():
        print(f"  {part:<28}{seconds:9.2f}")
    same = "the same" if result["same_results"] and result["same_scores"] else "OTHER"
    print(f"killed when {there} images were there, then run again: {same} results.json and scores.parquet")


if __name__ == "__main__":
    main()
