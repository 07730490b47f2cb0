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


import importlib
from typing import Any


__version__ = "0.1.0"

# Name -> submodule. Imported on first use, so that `import craft_trl` and the command line's help load no model library.
_EXPORTS = {
    "Aesthetic": "rewards.aesthetic",
    "CLIPScore": "rewards.clip_score",
    "CandidatePool": "candidates.pool",
    "CandidatesConfig": "candidates.config",
    "CraftConfig": "trainer.craft_config",
    "CraftParser": "parser",
    "CraftTrainer": "trainer.craft_trainer",
    "DiffusionConfig": "trainer.diffusion_config",
    "DiffusionDPOConfig": "trainer.dpo_config",
    "DiffusionDPOTrainer": "trainer.dpo_trainer",
    "DiffusionNoise": "noise",
    "DiffusionTrainer": "trainer.diffusion_trainer",
    "EndpointExpander": "expansion.endpoint",
    "EvaluationConfig": "evaluation.config",
    "ExpansionConfig": "expansion.config",
    "Family": "families.family",
    "FilterConfig": "candidates.filter_config",
    "FlowNoise": "noise",
    "Group": "candidates.groups",
    "HPSv2": "rewards.hpsv2",
    "ImageGenerator": "candidates.generation",
    "ImageReward": "rewards.image_reward",
    "MPS": "rewards.mps",
    "NothingToDoError": "errors",
    "OCR": "rewards.ocr",
    "PickScore": "rewards.pickscore",
    "PromptExpander": "expansion",
    "PromptsConfig": "prompts.config",
    "RemoteReward": "rewards.remote",
    "SPOConfig": "trainer.spo_config",
    "SPOTrainer": "trainer.spo_trainer",
    "SamplingConfig": "candidates.config",
    "ScoredConfig": "trainer.scored_config",
    "ScoredTrainer": "trainer.scored_trainer",
    "TransformersExpander": "expansion.local",
    "TreeConfig": "candidates.tree_config",
    "UsageError": "errors",
    "VLMJudge": "rewards.vlm.judge",
    "advantage_weighted_loss": "losses",
    "build_dataset_dict": "filtering.dataset",
    "build_lists": "filtering.dataset",
    "build_pairs": "filtering.dataset",
    "build_transitions": "filtering.transitions",
    "check_contract": "families.contract",
    "composite_reward_filter": "crf",
    "draw_trees": "candidates.trees",
    "generate_candidates": "candidates.drawing",
    "group_advantages": "crf",
    "load_groups": "candidates.groups",
    "load_prompts": "prompts.config",
    "make_groups": "candidates.groups",
    "noise_process": "noise",
    "paired_bootstrap": "evaluation.statistics",
    "per_sample_mse": "losses",
    "score": "rewards",
}

__all__ = sorted([*_EXPORTS, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
