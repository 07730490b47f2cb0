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

"""Where rewards score, and how precisely."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..errors import UsageError
from . import RewardSpec


@dataclass
class ScoringConfig:
    """
    Where rewards score, and how precisely. Rewards of your own and served ones are where and what they are.

    Parameters:
        reward_dtype (`"float32"`, `"bfloat16"` or `"float16"`, *optional*, defaults to `"float32"`):
            Precision of the built-in reward models. 16 bits take half the memory and make ties and flips in a filter.
        reward_device (`"auto"`, `"cuda"`, `"cpu"` or `"offload"`, *optional*, defaults to `"auto"`):
            Where the built-in reward models score: on the GPU beside the pipeline (`cuda`), on the CPU, which takes
            seconds an image, or on a GPU that does not hold both (`offload`). There, rewards and pipeline lie in the
            memory of the host in turns: `craft generate` draws some batches, then scores them; `craft evaluate` draws the
            images of all models, then loads one judge after the other. No image and no score depends on it. `auto` is
            `cuda` where the computed memory fits, else `offload`.
    """

    reward_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision of the built-in reward models."}
    )
    reward_device: Literal["auto", "cuda", "cpu", "offload"] = field(
        default="auto",
        metadata={
            "help": "Where the built-in reward models score: on the GPU beside the pipeline, on the CPU, or on the GPU in "
            "turns with the pipeline (offload). Defaults to what fits."
        },
    )

    def check_scoring(self, specs: Sequence[RewardSpec]) -> None:
        """Raise a [`UsageError`] if an option would do nothing for these rewards, or asks for a GPU that is not there."""
        if self.reward_dtype != "float32" and not any(map(self.is_rounded, specs)):
            raise UsageError(
                f"reward_dtype is {self.reward_dtype}, but {', '.join(spec.name for spec in specs)} "
                "choose their precision themselves: leave it out."
            )
        if self.reward_device == "cuda":
            import torch  # here: a mistake in a recipe costs no import of it

            if not torch.cuda.is_available():
                raise UsageError("reward_device is cuda, and there is no CUDA device here: leave it at auto.")

    def is_rounded(self, spec: RewardSpec) -> bool:
        """Whether a reward scores in `reward_dtype`, and that is not float32."""
        return self.reward_dtype != "float32" and not (
            spec.custom or spec.remote or spec.vlm or spec.name == "geneval"
        )

    def fingerprint_of(self, spec: RewardSpec) -> str:
        """What identifies a scorer with its precision, see [`RewardSpec.fingerprint`]."""
        return f"{spec.fingerprint()}:{self.reward_dtype}" if self.is_rounded(spec) else spec.fingerprint()
