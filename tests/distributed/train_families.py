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
One of the processes that train a pipeline of each family, two of them with an adapter too: `train_families.py FOLDER OUTPUT`. Started by
`torchrun` or `accelerate launch`, or run alone.
"""

import shutil
import sys
from pathlib import Path

from transformers import HfArgumentParser

from craft_trl import CraftConfig, CraftTrainer
from craft_trl.errors import exit_code
from craft_trl.families import get_family
from craft_trl.families.files import find_files
from craft_trl.trainer.denoiser import lora_config, pipeline_class_of
from tests.helpers import make_dataset


ADAPTERS = ("stable_diffusion_3", "qwen_image")  # whose last block has nothing to learn


def train_all(folder: Path, output: Path) -> None:
    for source in sorted(folder.iterdir()):
        family = get_family(pipeline_class_of(str(source)))
        files = find_files(str(source))
        takes = family.takes_guidance(files.json(f"{family.denoiser}/config.json"), files.index)
        embedded = family.no_guidance is None and takes
        for kind in ("full", "lora") if source.name in ADAPTERS else ("full",):
            (args,) = HfArgumentParser(CraftConfig).parse_dict(
                {
                    "output_dir": str(output / source.name / kind),
                    "max_steps": 2,
                    "global_batch_size": 4,
                    "per_device_train_batch_size": 1,
                    "learning_rate": 1e-4,
                    "lr_scheduler_type": "constant",
                    "save_strategy": "no",
                    "disable_tqdm": True,
                    "report_to": "none",
                    "text_encoder_dtype": "float32",
                    "train_distilled": True,
                    "train_guidance_scale": 2.0 if embedded else None,
                    "max_sequence_length": None if family.max_sequence_length is None else 16,
                }
            )
            trainer = CraftTrainer(
                str(source),
                args,
                make_dataset([1.0, 0.5, 2.0], 64 if family.denoiser == "unet" else 32),
                peft_config=lora_config(family.lora_target_modules, rank=2) if kind == "lora" else None,
            )
            trainer.train()
            trainer.save_model()
            trainer.accelerator.wait_for_everyone()
            if trainer.is_world_process_zero():
                for part in (output / source.name / kind).iterdir():  # only what was trained is looked at
                    if part.is_dir() and part.name != family.denoiser:
                        shutil.rmtree(part)
            del trainer


if __name__ == "__main__":
    if code := exit_code(lambda: train_all(Path(sys.argv[1]), Path(sys.argv[2]))):
        raise SystemExit(code)
