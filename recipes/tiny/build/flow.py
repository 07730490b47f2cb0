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
Train a tiny flow model, of exactly SD3's classes, with a tiny SDXL as its teacher.

    python -m recipes.tiny.build.flow --output_dir DIR

README.md beside this file says what is built.
"""

import argparse
import dataclasses
import hashlib
import json
import os
from pathlib import Path

from .settings import FLOW, FLOW_SMOKE, FlowSettings, Run, claim


OUTPUTS = ("pipeline", "metrics.json")
TINY_SDXL = Path(__file__).parents[1] / "pipeline"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.tiny.build.flow",
        description="Train a tiny flow model, of exactly SD3's classes, with a tiny SDXL as its teacher.",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="Where to build. A killed build resumes here.")
    parser.add_argument(
        "--teacher",
        type=Path,
        default=TINY_SDXL,
        help="Folder of the tiny SDXL, whose autoencoder and text encoders become the flow model's. Defaults to "
        "recipes/tiny/pipeline.",
    )
    parser.add_argument("--init", type=Path, help="Folder of a flow model to start from. Defaults to random weights.")
    parser.add_argument(
        "--smoke", action="store_true", help="Run every stage with a very small network and data. The result is noise."
    )
    parser.add_argument("--steps", type=int, help=f"Training steps. Defaults to {FLOW.run.steps}.")
    parser.add_argument("--batch_size", type=int, help=f"Scenes in a step. Defaults to {FLOW.run.batch_size}.")
    parser.add_argument(
        "--learning_rate",
        type=float,
        help=f"Its highest value: it rises for 200 steps and falls by a cosine. Defaults to {FLOW.learning_rate}.",
    )
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="Compute in bfloat16 on a CPU too, as on CUDA: faster where it has instructions for that.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the training. The scenes are fixed.")
    parser.add_argument(
        "--num_workers", type=int, default=os.cpu_count() or 1, help="Processes that render. Defaults to one per core."
    )
    parser.add_argument("--device", default=None, help="Where to train. Defaults to CUDA if there is a GPU.")
    parser.add_argument("--threads", type=int, help="Threads on a CPU. Defaults to what PyTorch takes.")
    parser.add_argument(
        "--assemble",
        type=Path,
        metavar="FOLDER",
        help="With the options of a build that is training: write the pipeline of its newest checkpoint here, and end.",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Build what is missing in the output folder, or assemble the pipeline of a build that is training."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    for name in ("steps", "batch_size", "learning_rate", "threads"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} must be positive, got {value}")
    if not (options.teacher / "unet" / "config.json").exists():
        parser.error(f"--teacher {options.teacher} is not the folder of a tiny SDXL: it has no unet/config.json")
    settings = make_settings(options)
    if options.init:
        complaint = check_init(options.init, settings.transformer_config(options.teacher))
        if complaint:
            parser.error(complaint)
    checkpoint = options.output_dir / "work" / "checkpoint.safetensors"
    if options.assemble and not checkpoint.exists():
        parser.error(f"--assemble: {options.output_dir} has no checkpoint yet, or none any more")
    if options.assemble and options.assemble.exists():
        parser.error(f"--assemble: {options.assemble} exists; choose another folder")
    conflict = claim(options.output_dir, settings, OUTPUTS)
    if conflict:
        parser.error(conflict)
    if not options.assemble and all((options.output_dir / output).exists() for output in OUTPUTS):
        print(f"{options.output_dir} is complete, nothing to do.")
        return

    # Read when PyTorch is imported: threads that wait for each other sleep soon, instead of slowing a busy machine down.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

    # Imported only now: torch, diffusers and transformers take ten seconds, too long for --help and finished builds.
    import torch

    from .flow_stages import FlowBuild

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    if options.threads or options.smoke:
        torch.set_num_threads(options.threads or 1)  # very small networks lose more time with threads than they save
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    build = FlowBuild(options.output_dir, settings, options.teacher, options.init, device, options.num_workers)
    if options.assemble:
        build.assemble_checkpoint(options.assemble)
    else:
        build.run()


def make_settings(options: argparse.Namespace) -> FlowSettings:
    """The settings that the options ask for."""
    settings = FLOW_SMOKE if options.smoke else FLOW
    run = Run(options.steps or settings.run.steps, options.batch_size or settings.run.batch_size)
    return dataclasses.replace(
        settings,
        run=run,
        learning_rate=options.learning_rate or settings.learning_rate,
        bfloat16=options.bf16,
        seed=options.seed,
        teacher=digest(options.teacher),
        init=digest(options.init / "transformer") if options.init else None,
    )


def check_init(init: Path, wanted: dict) -> str | None:
    """An error message if the transformer in this pipeline folder is not of the shape that is trained."""
    file = init / "transformer" / "config.json"
    if not file.exists():
        return f"--init {init} is not the folder of a flow model: it has no transformer/config.json"
    has = json.loads(file.read_text())
    different = [
        f"{name} {has.get(name)} instead of {value}" for name, value in wanted.items() if has.get(name) != value
    ]
    return f"--init {init} has a transformer of another shape: {', '.join(different)}" if different else None


def digest(folder: Path) -> str:
    """SHA-256 of all weights in a folder."""
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in sorted(folder.rglob("*.safetensors"))]
    return hashlib.sha256(b"".join(digests)).hexdigest()


if __name__ == "__main__":
    main()
