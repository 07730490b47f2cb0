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


"""Model and dataset cards: what stands on the first page of a repository on the Hub."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader

from ..conditions import describe
from ..families import get_family
from ..masking import mask_settings
from ..pages import TEMPLATES


TAG = "craft_trl"  # in the metadata of every card; by it a push knows a repository that an earlier push filled


# Settings of the sampler that change what is drawn, and that a pipeline's call does not take.
CHEAPER = ("guidance_cutoff", "timestep_spacing", "cache_interval")


def model_card(
    facts: dict[str, Any],
    model_id: str,
    base_model: str | None = None,
    dataset_name: str | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    evaluation: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
    cost: Sequence[tuple[str, float]] = (),
    data: dict[str, Any] | None = None,
) -> ModelCard:
    """
    Card of a trained pipeline or adapter: how to use it, how it was made, and what it was measured to do.

    Args:
        facts (`dict`):
            What [`training_facts`] returns.
        model_id (`str`):
            What to load the model by: its id on the Hub, or its folder.
        base_model (`str`, *optional*):
            Hub id of the base model, where the training was given a folder.
        dataset_name (`str`, *optional*):
            Hub id of the training data.
        license (`str`, *optional*):
            Identifier of the licence, as the Hub has them.
        tags (`str` or `list[str]`, *optional*):
            Tags besides those of the trainer.
        evaluation (`dict`, *optional*):
            `model` and `base`, names in the `rows` of [`compare`]; `verdict`; and `images`, the path of the pictures.
        sampling (`dict`, *optional*):
            How its candidates and the images of its evaluation were drawn.
        cost (`Sequence[tuple[str, float]]`, *optional*):
            Stages and their seconds.
        data (`dict`, *optional*):
            What the filter kept: `images`, `groups`, `kept`, `kept_groups`, `filter_level`, `filter_rewards`.
    """
    base_model = base_model or facts["base_model"]
    dataset_name = dataset_name or facts["dataset"]
    name = model_id.rstrip("/").rpartition("/")[2]
    extra_tags = [tags] if isinstance(tags, str) else tags or []
    results = []
    if evaluation is not None:
        results = [row for row in evaluation["rows"] if row["model"] == evaluation["model"] and row["part"] is None]
    metadata = ModelCardData(
        base_model=base_model,
        datasets=[dataset_name] if dataset_name else None,
        library_name="diffusers",
        license=license,
        pipeline_tag="text-to-image",
        tags=sorted({TAG, *facts["tags"], *extra_tags, *(["lora"] if facts["lora"] else [])}),
        model_name=name,
        eval_results=[eval_result(row) for row in results] or None,
    )
    base_means = {}
    if evaluation is not None:
        base_means = {
            row["metric"]: row["mean"]
            for row in evaluation["rows"]
            if row["model"] == evaluation["base"] and row["part"] is None
        }
    content = _render(
        "model_card.md",
        metadata=metadata.to_yaml(),
        name=name,
        model_id=model_id,
        base_model=base_model,
        dataset_name=dataset_name,
        license=license,
        facts=facts,
        evaluation=evaluation,
        results=results,
        base_means=base_means,
        call=pipeline_call(facts["pipeline"], sampling),
        # Parts that the pipeline does without. Facts of older trainings do not name them, and have none.
        absent="".join(f", {name}=None" for name in facts.get("absent", [])),
        sampling=sampling,
        cheaper=", ".join(f"`{name}: {sampling[name]}`" for name in CHEAPER if name in (sampling or {})),
        cost=cost,
        data=data,
    )
    return ModelCard(content)


def eval_result(row: dict[str, Any]) -> EvalResult:
    """A row of [`compare`] as an entry of a card's `model-index`."""
    prompts = row["settings"]["prompts"]
    return EvalResult(
        task_type="text-to-image",
        task_name="Text-to-Image",
        dataset_type=prompts["name"].partition(".")[0],
        dataset_name=f"{prompts['name']}, {row['n']} prompts",
        metric_type=row["metric"],
        metric_name=f"{row['metric']} ({row['role'].replace('_', '-')})",
        metric_value=round(row["mean"], 4),
    )


def dataset_card(
    repo_id: str,
    configs: list[str],
    license: str | None,
    **values: Any,
) -> DatasetCard:
    """
    Card of a pool of candidates and its filtered configurations.

    Args:
        repo_id (`str`):
            Id on the Hub.
        configs (`list[str]`):
            Names of the configurations, each a folder of parquet files.
        license (`str`, *optional*):
            Identifier of the licence, as the Hub has them.
        values:
            What the template shows besides: see `templates/dataset_card.md`.
    """
    default = "hpa" if "hpa" in configs else configs[-1]
    metadata = DatasetCardData(
        license=license,
        task_categories=["text-to-image"],
        tags=sorted({TAG, "craft", "preference", "synthetic"}),
        pretty_name=repo_id.partition("/")[2],
        config_names=configs,
        configs=[
            {
                "config_name": name,
                "data_files": [{"split": "train", "path": f"{name}/*.parquet"}],
                **({"default": True} if name == default else {}),
            }
            for name in configs
        ],
    )
    content = _render(
        "dataset_card.md", metadata=metadata.to_yaml(), repo_id=repo_id, default=default, license=license, **values
    )
    return DatasetCard(content)


def pipeline_call(class_name: str, sampling: dict[str, Any] | None) -> str:
    """Arguments of a pipeline's call after the prompt, as source code."""
    if not sampling:
        return ""
    given = {name: sampling.get(name) for name in ("num_inference_steps", "guidance_rescale", "height", "width")}
    given |= get_family(class_name).text_arguments(
        sampling["guidance_scale"], sampling.get("negative_prompt"), sampling.get("max_sequence_length")
    )
    return "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)


def flat(settings: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows of a table; hashes shortened, and of a path on this machine its last name only."""
    if isinstance(settings, dict):
        return [row for name, value in settings.items() for row in flat(value, f"{prefix}.{name}".strip("."))]
    settings = mask_settings(settings, prefix)
    if isinstance(settings, list):
        return [(prefix, ", ".join(f"`{_name(value)}`" for value in settings))]
    text = _name(settings) if isinstance(settings, str) else json.dumps(settings)
    is_hash = len(text) >= 64 and all(c in "0123456789abcdef" for c in text[:64])
    return [(prefix, f"sha256 {text[:12]}…{text[64:]}" if is_hash else text)]


def _name(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _render(template: str, **values: Any) -> str:
    # Markdown, not HTML: nothing is escaped but what a table cannot hold.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {
        "cell": lambda text: str(text).replace("|", "\\|").replace("\n", " "),
        "conditions": describe,
        "duration": duration,
    }
    return environment.get_template(template).render(**values)
