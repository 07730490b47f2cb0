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

"""Arguments of a training beside those of its trainer: what is trained on what, and on how many processes."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..parser import CraftParser
from ..ranges import Count, Processes, check_ranges
from .guard_config import GuardConfig


if TYPE_CHECKING:
    from .diffusion_config import DiffusionConfig


@dataclass
class TrainArguments(GuardConfig):
    """
    What is trained on what, and how the guard watches it, see [`GuardConfig`].

    Args:
        model_name_or_path (`str`):
            Hub id, folder or single `.safetensors` file of the pipeline to tune.
        model_revision (`str`, *optional*):
            Revision on the Hub.
        dataset_name (`str`):
            Folder of `craft filter` (or any `DatasetDict.save_to_disk`), or a dataset on the Hub.
        dataset_config (`str`, *optional*):
            Configuration of a Hub dataset.
        dataset_train_split (`str`, *optional*, defaults to `"train"`):
            Split to train on.
        average_with (`list[str]`, *optional*):
            Folders of finished trainings of the same model. What is saved is the mean of the weights that this training ends
            with and theirs, a model soup ([arXiv 2203.05482](https://huggingface.co/papers/2203.05482)).
        use_peft (`bool`, *optional*, defaults to `False`):
            Train a LoRA adapter instead of all parameters.
        lora_r (`int`, *optional*, defaults to `16`):
            Rank of the adapter.
        lora_alpha (`int`, *optional*):
            Scale of the adapter. Defaults to its rank.
        lora_target_modules (`list[str]`, *optional*):
            Modules that get an adapter, by the ends of their names; or `all-linear`, or one regular expression. Defaults to
            the attention projections.
    """

    model_name_or_path: str = field(
        default=None, metadata={"help": "Hub id, folder or single .safetensors file of the pipeline to tune."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Revision on the Hub."})
    dataset_name: str = field(default=None, metadata={"help": "Folder of `craft filter`, or a dataset on the Hub."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    average_with: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Folders of finished trainings of the same model: the mean of their weights and its own is saved."
        },
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of all parameters."})
    lora_r: Count = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: Count | None = field(default=None, metadata={"help": "Scale of the adapter. Defaults to its rank."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules that get an adapter: ends of names, all-linear, or one regular expression. Defaults to the "
            "attention projections."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.model_revision = self.model_revision or None  # empty: not the recipe's, as of the later rounds of a run
        for name in ("model_name_or_path", "dataset_name"):
            if not getattr(self, name):
                raise UsageError(f"{name} is missing: give it in the recipe or as --{name}.")
        for name in ("lora_r", "lora_alpha"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.average_with and self.use_peft:
            raise UsageError(
                "average_with has no mean of adapters, whose factors have none that is one of what they add: leave out use_peft or it."
            )
        default = TrainArguments.lora_r
        if not self.use_peft and (self.lora_r != default or self.lora_alpha or self.lora_target_modules):
            raise UsageError(
                "lora_r, lora_alpha and lora_target_modules have no effect without use_peft: set that too."
            )


@dataclass
class LaunchArguments:
    """
    How many processes to start, and where. Read by the `craft` command, which passes all options of `accelerate launch` on to it.

    Args:
        accelerate_config (`str`, *optional*):
            Name of one of the packaged configurations, such as `zero2`, or the path of another.
        num_processes (`int`, *optional*):
            Number of processes, of all machines together, instead of the configuration's.
        launch_options (`list[str]`):
            Other options of `accelerate launch`, as words of its command line; set by the parser.
    """

    accelerate_config: str | None = field(
        default=None,
        metadata={"help": "A packaged accelerate configuration, such as zero2, or the path of another."},
    )
    num_processes: Processes | None = field(
        default=None,
        metadata={"help": "Number of processes, of all machines together, instead of the configuration's."},
    )
    launch_options: list[str] = field(default_factory=list, init=False)

    def __post_init__(self):
        check_ranges(self)

    @property
    def given(self) -> bool:
        return self.accelerate_config is not None or self.num_processes is not None or bool(self.launch_options)


def training_parser(
    config: "type[DiffusionConfig]",
    prog: str | None = None,
    script: str = "craft_trl.scripts.train",
    arguments: type[TrainArguments] = TrainArguments,
) -> CraftParser:
    """Parser of a training, with this configuration of its trainer, started by this script."""
    # PyTorch reads it when the GPU is first used. The guard loads its judges and drops them again, which would leave memory in
    # pieces that no block of the training fits into.
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    from ..devices import accelerator

    if accelerator() is None:
        # DeepSpeed, where it is installed, is imported with the Trainer, looks for a GPU and warns that there is none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return CraftParser(
        [arguments, config, LaunchArguments],
        prog=prog,
        launched=script,
        launches=True,
        epilog="All options of `accelerate launch` are taken as well, such as --num_machines and --main_process_ip.",
    )
