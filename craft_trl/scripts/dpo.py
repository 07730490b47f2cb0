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
Fine-tune a text-to-image model on preference pairs, by Diffusion-DPO, or on ranked or scored lists of images, by what came of it.

```bash
craft dpo --config recipe.yaml --dataset_name runs/pairs --beta 5000
craft dpo --config recipe.yaml --dataset_name runs/lists --loss_type plackett_luce
```
"""

from typing import TYPE_CHECKING

from ..parser import CraftParser
from ..trainer.arguments import LaunchArguments, TrainArguments, training_parser
from . import train
from .launch import run_script


if TYPE_CHECKING:
    from ..trainer.dpo_config import DiffusionDPOConfig


def main(
    train_args: TrainArguments, training_args: "DiffusionDPOConfig", launch_args: LaunchArguments | None = None
) -> None:
    """Train, and write the whole pipeline to `output_dir`."""
    from ..trainer.dpo_trainer import DiffusionDPOTrainer

    train.main(train_args, training_args, launch_args, DiffusionDPOTrainer)


def make_parser(prog: str | None = None, arguments: type[TrainArguments] = TrainArguments) -> CraftParser:
    from ..trainer.dpo_config import DiffusionDPOConfig

    return training_parser(DiffusionDPOConfig, prog, "craft_trl.scripts.dpo", arguments)


if __name__ == "__main__":
    raise SystemExit(run_script(main, lambda: make_parser(arguments=train.CheckedArguments)))
