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

"""What a model card says of a training."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate
import datasets
import diffusers
import torch
import transformers
import trl

from .. import __version__
from ..families.files import find_files
from ..hub.cards import model_card
from ..sources import FACTS, commit, model_hash


if TYPE_CHECKING:
    from .diffusion_trainer import DiffusionTrainer


def write_card(
    trainer: "DiffusionTrainer",
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
) -> None:
    """Write the model card, `README.md`, into the output folder of a trainer, and what it is made from beside it."""
    folder = Path(trainer.args.output_dir)
    facts = training_facts(trainer, dataset_name)
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    model_card(facts, model_name or trainer.args.hub_model_id or str(folder), tags=tags).save(folder / "README.md")


def training_facts(trainer: "DiffusionTrainer", dataset_name: str | None = None) -> dict[str, Any]:
    """
    What a card says of a training, as JSON values. The trainer leaves it beside the model for `craft push`.

    Args:
        trainer ([`DiffusionTrainer`]):
            The trainer.
        dataset_name (`str`, *optional*):
            Hub id of the training data.
    """
    args = trainer.args
    local = Path(trainer.source).is_dir()
    adapter = getattr(trainer.model, "peft_config", {}).get("default")
    lora = None
    if adapter is not None:
        pipeline_class = getattr(diffusers, trainer.model_index["_class_name"])
        loader = "diffusers" if hasattr(pipeline_class, "load_lora_weights") else "craft_trl"
        lora = {"rank": adapter.r, "alpha": adapter.lora_alpha, "loader": loader}
    # Of a model that came of a training, the base is that of the first one.
    before = Path(trainer.source) / FACTS
    earlier = json.loads(before.read_text(encoding="utf-8")) if local and before.is_file() else {}
    rounds = {"rounds": earlier.get("rounds", 1) + 1, "began_with": Path(trainer.source).name} if earlier else {}
    return {
        "trainer": trainer._name,
        "paper": getattr(trainer, "_paper", None),
        "tags": sorted(trainer._tag_names),
        # The name of a local folder and no more: its path is nobody's business.
        "base_model": earlier.get("base_model") if local else trainer.source,
        "base_name": earlier.get("base_name") or (Path(trainer.source).name if local else trainer.source),
        "base_revision": earlier.get("base_revision") if local else commit(trainer.source, trainer.revision),
        "base_hash": model_hash(trainer.source, trainer.revision),  # of what this training began with
        **rounds,
        "pipeline": trainer.model_index["_class_name"],
        "lora": lora,
        "dataset": dataset_name,
        "rows": trainer.train_dataset.count,
        "unit": trainer.unit,
        "drawn": trainer.has_seeds,
        "absent": absent_parts(trainer),
        **({"averaged_with": [Path(model).name for model in trainer.average_with]} if trainer.average_with else {}),
        "guarded": trainer.best_step is not None and trainer.best_of > 1,
        "settings": {
            "optimizer steps": trainer.best_step or trainer.state.global_step,
            "samples per step": args.global_batch_size,
            "learning rate": args.learning_rate,
            "learning rate schedule": str(args.lr_scheduler_type.value),
            "optimizer": str(args.optim.value),
            "prompt trained on": args.train_prompt,
            "seed": args.seed,
            "weights": str(next(trainer.model.parameters()).dtype).removeprefix("torch."),
        },
        "versions": {
            "craft_trl": __version__,
            "TRL": trl.__version__,
            "Transformers": transformers.__version__,
            "Diffusers": diffusers.__version__,
            "Accelerate": accelerate.__version__,
            "Datasets": datasets.__version__,
            "PyTorch": torch.__version__,
        },
    }


def absent_parts(trainer: "DiffusionTrainer") -> list[str]:
    """Names of parts that the pipeline does without, of which `from_pretrained` must be told."""
    optional = getattr(diffusers, trainer.model_index["_class_name"])._optional_components
    return sorted(find_files(trainer.source, trainer.revision).absent.keys() - {*optional})
