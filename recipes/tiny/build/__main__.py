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
Rebuild the tiny text-to-image model, its rewards, evaluators and prompt sets from the sprite atlas.

    python -m recipes.tiny.build --output_dir DIR

README.md beside this file says what is built and how long it takes.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from .settings import SHIPPED, SMOKE, claim


# What a build is for; once all of it exists the folder `work` may be deleted.
SHIPPED_OUTPUTS = (
    "prompts",
    "pipeline",
    "rewards/hps",
    "rewards/pick",
    "rewards/aesthetic",
    "evaluators/imagereward",
    "evaluators/inspector",
    "metrics.json",
)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.tiny.build",
        description="Rebuild the tiny model, its rewards, evaluators and prompt sets from the sprite atlas.",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="Where to build. A killed build resumes here.")
    parser.add_argument(
        "--smoke", action="store_true", help="Run every stage with very small networks and data. The result is noise."
    )
    parser.add_argument("--scale", type=float, default=1.0, help="Factor of the number of training steps.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the training. Scenes and prompts are fixed.")
    parser.add_argument(
        "--num_workers", type=int, default=os.cpu_count() or 1, help="Processes that render. Defaults to one per core."
    )
    parser.add_argument("--device", default=None, help="Where to train. Defaults to CUDA if there is a GPU.")
    parser.add_argument(
        "--no_compile", action="store_true", help="Do not use torch.compile, which is used on CUDA otherwise."
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Build what is missing in the output folder."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.scale <= 0:
        parser.error(f"--scale must be positive, got {options.scale}")
    settings = dataclasses.replace((SMOKE if options.smoke else SHIPPED).scaled(options.scale), seed=options.seed)
    conflict = claim(options.output_dir, settings, SHIPPED_OUTPUTS)
    if conflict:
        parser.error(conflict)
    if all((options.output_dir / output).exists() for output in SHIPPED_OUTPUTS):
        print(f"{options.output_dir} is complete, nothing to do.")
        return

    # Imported only now: torch, diffusers and transformers take ten seconds, too long for --help and finished builds.
    import torch

    from .stages import Build

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    if options.smoke:
        torch.set_num_threads(1)  # networks this small lose more time in waiting for threads than the threads save
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu" and not options.smoke:
        print("No GPU: training at the published size takes days on a CPU.", file=sys.stderr)
    compiled = device.type == "cuda" and not options.no_compile
    Build(options.output_dir, settings, device, options.num_workers, compiled).run()


if __name__ == "__main__":
    main()
