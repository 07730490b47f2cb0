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
All figures of one GPU in one command: training, drawing, scoring and what bfloat16 changes in the filter.

    PYTHONPATH=. python benchmarks/gpu.py --minutes 8 --output gpu_out     # on a GPU
    PYTHONPATH=. python benchmarks/gpu.py --tables --output gpu_out        # anywhere: the tables of what was measured
    PYTHONPATH=. python benchmarks/gpu.py --tiny --output gpu_tiny         # tries the whole thing on a CPU

It runs benchmarks/rewards.py, generate.py and train.py one after the other, on random weights at full size, so that nothing
is downloaded; ours and the peer's loop take turns in each, beside the matrix product of the same minute. Each part writes its file
as it goes. Run again, it measures what is missing, and ends in time. Then it writes the tables between the marks of
benchmarks/RESULTS.md; a cell that nobody measured stays empty.
"""

import argparse
import json
import shutil
import signal
import time
import traceback
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import generate
import torch
import train
from measuring import machine, save

import rewards
from craft_trl.devices import release_memory


RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- written by benchmarks/gpu.py -->", "<!-- until here -->"
ABOUT = "machine.json"
PACKAGES = ("torch", "diffusers", "transformers", "accelerate")
SHORTEST = 20  # seconds in which a part may at all be begun


@dataclass(frozen=True)
class Part:
    """
    A part of the measurement.

    Args:
        name (`str`):
            Name of its file.
        share (`float`):
            Share of the time, beside those of the others.
        command (`str`):
            Arguments of its script.
        tiny (`str`):
            Those that try it on a CPU.
        memory (`float`, *optional*, defaults to `0.0`):
            GB without which it is not begun.
    """

    name: str
    share: float
    command: str
    tiny: str
    memory: float = 0.0

    def run(self, options: argparse.Namespace, minutes: float) -> None:
        """Measure, and leave the figures in the part's file."""
        script, _, what = self.name.partition("_")
        argv = ["--minutes", f"{minutes:.3f}", "--json", str(self.file(options.output))]
        argv += (self.tiny if options.tiny else self.command).split()
        if script == "train":
            argv += ["--sources", str(options.output / "sources")]
        {"train": train, "generate": generate, "rewards": rewards}[script].main(argv)

    def file(self, folder: Path) -> Path:
        return folder / f"{self.name}.json"

    def result(self, folder: Path) -> dict | None:
        """Its figures, as far as there are any."""
        file = self.file(folder)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


SHORT = "--steps 2 --rounds 1 --no-cosines --global_batch 32"
TINY_TRAINING = "--steps 1 --rounds 1 --no-cosines --global_batch 2 --micro_batch 2 --script_batches 2"
# What matters most first: where time runs out, the last are missing.
PARTS = [
    Part("rewards", 0.7, "--images 128", "--minutes 0.02 --size tiny --images 8 --side 64"),
    Part(
        "train_sdxl", 1.9,
        f"--model sdxl {SHORT} --micro_batch 4 --script_batches 8 --contenders ours checkpointing documented compiled",
        f"--model tiny {TINY_TRAINING} --contenders ours checkpointing documented compiled", memory=78,
    ),
    Part(
        "generate", 1.9, "--steps 20 --batch_size 8 --groups 300 --fewer_steps 10 --compiled",
        "--minutes 0.02 --steps 2 --batch_size 2 --groups 10 --fewer_steps 1 --compiled", memory=30,
    ),
    Part(
        "train_sdxl_lora", 0.9,
        f"--model sdxl_lora {SHORT} --micro_batch 4 --script_batches 4 --contenders ours checkpointing",
        f"--model tiny_lora {TINY_TRAINING} --contenders ours checkpointing", memory=16,
    ),
    Part(
        "train_sd15", 0.8,
        f"--model sd15 {SHORT} --micro_batch 16 --script_batches 16 --contenders ours no_checkpointing",
        f"--model tiny {TINY_TRAINING} --contenders ours no_checkpointing", memory=40,
    ),
    Part(
        "train_sd35_medium_lora", 0.9,
        f"--model sd35_medium_lora {SHORT} --micro_batch 4 --script_batches 4 --contenders ours checkpointing",
        f"--model tiny_sd3_lora {TINY_TRAINING} --contenders ours checkpointing", memory=18,
    ),
    Part(
        "train_flux2_klein_lora", 0.9,
        f"--model flux2_klein_lora {SHORT} --micro_batch 4 --script_batches 4 --contenders ours checkpointing",
        f"--model tiny_flux2_lora {TINY_TRAINING} --contenders ours checkpointing", memory=26,
    ),
]  # fmt: skip


class OutOfTimeError(BaseException):
    """The time is up, wherever the work was."""


@contextmanager
def time_limit(seconds: float):
    """Have [`OutOfTimeError`] raised in the main thread when so many seconds have passed."""

    def ring(*_):
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="time budget of all parts")
    parser.add_argument("--output", type=Path, default=Path("gpu_out"), help="folder of the figures, to go on from")
    parser.add_argument("--results", type=Path, help="page to write the tables into; ours, unless --tiny")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="parts to measure")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables of what was measured")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the whole thing on a CPU")
    options = parser.parse_args(argv)
    if options.results is None and not options.tiny:
        options.results = RESULTS
    if not options.tables:
        measure_all(options)
    about = read_about(options.output)
    figures = {part.name: part.result(options.output) for part in PARTS}
    print(format_tables(figures, about))
    if options.results == RESULTS and about.get("tiny"):
        raise SystemExit(
            f"{options.output} has figures of tiny models, which say nothing of a GPU: name another --results."
        )
    if options.results is not None:
        write_tables(options.results, figures, about)


def read_about(folder: Path) -> dict:
    """What the figures in a folder were measured on; nothing where there are none."""
    file = folder / ABOUT
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def measure_all(options: argparse.Namespace) -> None:
    """Measure the parts that are missing, as far as the time goes."""
    end = time.monotonic() + 60 * options.minutes
    if options.tiny:
        torch._dynamo.config.disable = True  # a CPU's compiler takes minutes
    elif not torch.cuda.is_available():
        raise SystemExit("gpu.py measures a GPU, and there is none. --tiny tries it on a CPU.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options.output.mkdir(parents=True, exist_ok=True)
    here = {"tiny": options.tiny, **{key: machine(device, PACKAGES)[key] for key in ("device", *PACKAGES)}}
    if not (there := read_about(options.output)):
        save(here, options.output / ABOUT)
    elif there != here:
        raise SystemExit(f"{options.output} has figures of {there}, and this is {here}: choose another --output.")
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if device == "cuda" else 0.0
    missing = [part for part in PARTS if not (part.result(options.output) or {}).get("finished")]
    missing = [part for part in missing if options.only is None or part.name in options.only]
    for number, part in enumerate(missing):
        left = end - time.monotonic()
        minutes = left * part.share / sum(other.share for other in missing[number:]) / 60
        if left < (0 if options.tiny else SHORTEST):
            print(f"{part.name}: no time left. Run the same command again.", flush=True)
        elif device == "cuda" and memory < part.memory:
            print(f"{part.name}: needs {part.memory:.0f} GB, and this GPU has {memory:.0f}.", flush=True)
        else:
            print(f"== {part.name}, {60 * minutes:.0f} s", flush=True)
            begun = time.monotonic()
            try:
                with time_limit(left):
                    part.run(options, minutes)
                print(f"{part.name}: {time.monotonic() - begun:.0f} s", flush=True)
            except OutOfTimeError:
                print(f"{part.name}: out of time. Run the same command again.", flush=True)
            except Exception:  # the others are worth having
                traceback.print_exc()
                print(f"{part.name}: failed", flush=True)
            release_memory()
        if not any(other.name.startswith("train") for other in missing[number + 1 :]):
            shutil.rmtree(options.output / "sources", ignore_errors=True)  # gigabytes


# What is told of each training: the model, and how it is trained.
TRAININGS = {
    "train_sdxl": "SDXL, all parameters",
    "train_sdxl_lora": "SDXL, LoRA of rank 64",
    "train_sd15": "SD1.5, all parameters",
    "train_sd35_medium_lora": "SD3.5 medium, LoRA of rank 64",
    "train_flux2_klein_lora": "FLUX.2 klein, LoRA of rank 64",
}
DRAWING = (
    "diffusers, one prompt at a time",
    "denoiser and VAE alone",
    "ImageGenerator",
    "ImageGenerator, 10 steps",
    "ImageGenerator, torch_compile",
)
SCORING = (
    "hpsv2", "pickscore", "aesthetic", "three together", "networks of the three alone",
)  # fmt: skip


def format_tables(figures: dict[str, dict | None], about: dict) -> str:
    """The tables, with empty cells where nothing was measured."""
    said = "Nothing has run on a GPU yet, and so every cell is empty."
    if about:
        said = ", ".join([about["device"], *(f"{name} {about[name]}" for name in PACKAGES)]) + "."
    if about.get("tiny"):
        said = f"Tiny models, which say nothing of the models named. {said}"
    lines = [said, "", *training_table(figures), "", *drawing_table(figures.get("generate"))]
    return "\n".join([*lines, "", *scoring_table(figures.get("rewards"))])


def training_table(figures: dict[str, dict | None]) -> list[str]:
    """Each training, ours and the script's."""
    lines = [
        "| training | contender | samples/s | TFLOP/s | of the ceiling | peak GiB | first step s | minutes for 25,600 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, title in TRAININGS.items():
        result = figures.get(name)
        for row in train.summary(result) if result else ():
            contender, rate, tflops, share, peak, first, minutes = row.values()
            lines.append(
                f"| {title} | {contender} | {rate:.2f} | {tflops:.0f} | {share:.1%} | {peak:.1f} | {first:.1f} | {minutes:.1f} |"
            )
        if not result or not train.summary(result):
            lines.append(f"| {title} | |" + " |" * 6)
    ceilings = [result["ceiling_tflops"] for name in TRAININGS if (result := figures.get(name))]
    measured = f"{min(ceilings):.0f} to {max(ceilings):.0f}" if ceilings else "not measured"
    return [*lines, "", f"Ceiling, a bfloat16 matrix product of 8192 in the same minute, TFLOP/s: {measured}."]


def drawing_table(result: dict | None) -> list[str]:
    """Images per second, of ours and of diffusers' loop, and the whole stage."""
    steps = result["steps"] if result else 20
    lines = [
        f"| drawing, SDXL at 1024 px, {steps} steps with guidance | images/s | of the ceiling | times diffusers |",
        "|---|---|---|---|",
    ]
    rates = result["rates"] if result else None
    names = DRAWING if rates is None else tuple(rates["images_per_second"])
    for name in names:
        cells = "| |" if rates is None else ""
        if rates is not None:
            rate, share, times = (
                rates[key][name] for key in ("images_per_second", "share_of_ceiling", "times_diffusers")
            )
            cells = f"{rate:.3f} | {share:.1%} | {times:.2f}"
        lines.append(f"| {name} | {cells} |")
    if rates is None:
        return [*lines, "", "Candidates from end to end, with scoring and storing: not measured."]
    end = rates["end_to_end"]
    return [
        *lines,
        "",
        f"Candidates from end to end, with scoring and storing: {end['images_per_second']:.3f} images/s, "
        f"{end['overhead_over_denoiser_and_vae']:+.1%} over denoiser and VAE, {end['share_of_brute_force']:.3f} of the work of drawing "
        f"all; kept set {'the same' if end['kept_set_equals_brute_force'] else 'ANOTHER ONE'}. Largest difference of an image from "
        f"diffusers': {rates['largest_difference_from_diffusers_of_255']} of 255.",
    ]


def scoring_table(result: dict | None) -> list[str]:
    """Images per second in both precisions, and the decisions that turn between them."""
    lines = ["| scoring, 1024 px | float32 | bfloat16 | decisions turned, % |", "|---|---|---|---|"]
    for name in SCORING:
        cells = ["", "", ""]
        if result:
            rates = result["images_per_second"]
            cells[:2] = [f"{rates[f'{name}, {dtype}']['median']:.1f}" for dtype in ("float32", "bfloat16")]
            turned = result["bfloat16_against_float32"]["turned_percent"]
            key = "all three" if name == "three together" else name
            cells[2] = f"{turned[key]:.2f}" if key in turned else ""
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name in ("hpsv2.score(list)", "hpsv2.score(one)"):
        rate = result["images_per_second"].get(name) if result else None
        lines.append(
            f"| `{name}`, one reward | {rate['median']:.1f} | | |" if rate else f"| `{name}`, one reward | | | |"
        )
    return lines


def write_tables(page: Path, figures: dict[str, dict | None], about: dict) -> None:
    """Put the tables between the marks of a page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, until, after = rest.partition(END)
    if not begin or not until:
        raise SystemExit(f"{page} has no {BEGIN} ... {END}.")
    page.write_text(f"{before}{BEGIN}\n{format_tables(figures, about)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
