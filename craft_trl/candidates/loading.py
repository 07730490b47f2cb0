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

"""Pipelines and networks of diffusers, loaded whole or not at all, in the precision that is asked for."""

import inspect
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import diffusers  # its classes are imported when they are named: all of them take seconds, and a typo should not
import torch
from diffusers.configuration_utils import FrozenDict
from huggingface_hub import constants

from ..errors import UsageError
from ..families import get_family
from ..families.checks import (
    V_PREDICTION,
    ZERO_SNR,
    check_configuration,
    check_single_file,
    is_sdxl_file,
    read_header,
)
from ..families.files import UNUSED, ModelFiles, find_files
from ..noise import is_flow
from ..quiet import quiet_bars, quiet_casts
from ..sources import HubFiles, first_line, loading


def cast(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """
    Change the precision of a module in place. `ModelMixin.to` (diffusers 0.42) warns each time of modules to be kept in
    float32, also of those that have none.
    """
    torch.nn.Module.to(module, dtype)


def make_scheduler(name: str, config: dict, timestep_spacing: str | None = None) -> "diffusers.SchedulerMixin":
    """
    The scheduler of this class name with the settings of a model's own, such as its noise schedule, `prediction_type`
    and `rescale_betas_zero_snr`, but for another `timestep_spacing`.
    """
    scheduler_class = getattr(diffusers, name)
    parameters = inspect.signature(scheduler_class).parameters
    # Without it, a model of zero terminal SNR would start from noise of another strength than it was trained with.
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in parameters:
        raise UsageError(
            f"{name} has no rescale_betas_zero_snr, which this model's scheduler sets: use DDIMScheduler, "
            "EulerDiscreteScheduler or DPMSolverMultistepScheduler."
        )
    # Latents reach far beyond [-1, 1]. Schedulers of pixel-space origin clip by default, and another scheduler's config
    # need not say otherwise: without this DDIM turns every image into noise.
    overrides = {"clip_sample": False} if "clip_sample" in parameters else {}
    if timestep_spacing is not None:
        overrides["timestep_spacing"] = timestep_spacing
    if is_flow(config):  # solvers of diffusion that also solve flows have other names for it
        shift = config.get("shift") or config.get("flow_shift") or 1.0
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift, "shift": shift}
        overrides |= {name: value for name, value in flow.items() if name in parameters}
    return scheduler_class.from_config(config, **overrides)


@quiet_bars()
def load_pipeline(
    source: str,
    dtype: torch.dtype | dict[str, torch.dtype] = torch.float32,
    revision: str | None = None,
    without: Collection[str] = (),
) -> "diffusers.DiffusionPipeline":
    """
    Pipeline of a Hub id, a folder or a single `.safetensors` file, that returns images as the model draws them.

    Where only a variant of the weights is there, such as fp16, it is loaded and cast to `dtype`.

    The configuration of a single file, its scheduler and tokenizers included, is that of the folder in which it lies if
    that has a `model_index.json`, which needs no network; else diffusers takes the one of the original Stable Diffusion
    or SDXL from the Hub, with the prediction type that the file itself names by `v_pred` and `ztsnr`.

    Args:
        source (`str`):
            Hub id, folder or single `.safetensors` file.
        dtype (`torch.dtype` or `dict[str, torch.dtype]`, *optional*, defaults to `torch.float32`):
            Precision of all networks, or of components by name and of the others as `"default"`.
        revision (`str`, *optional*):
            Revision on the Hub.
        without (`Collection[str]`, *optional*):
            Components to leave out, of a folder or a Hub id. Of a denoiser the `config` is there, which pipelines ask for sizes.
    """
    path = Path(source)
    if path.suffix == ".safetensors":
        pipeline = _load_single_file(path, dtype)
        beside = (path.parent / "model_index.json").is_file()
        files = find_files(str(path.parent)) if beside else None
    else:
        files = find_files(source, revision)
        pipeline = _load_folder(files, dtype, revision, without)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            _check_whole(source, part)
    if getattr(pipeline, "watermark", None) is not None:
        pipeline.watermark = None  # it is in every candidate
    for name, part in pipeline.components.items() if files is not None else ():
        if name.startswith("tokenizer") and hasattr(part, "model_max_length"):
            part.model_max_length = files.model_max_length(name, part.model_max_length)
    return pipeline


@quiet_bars()
def load_network(
    network_class: type[torch.nn.Module],
    source: str,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    component: str = "",
) -> torch.nn.Module:
    """A network of diffusers: a component of a pipeline, or one by itself; in the variant that there is."""
    files = find_files(source, revision)
    held = files.weights(component, "diffusers")
    variant = files.variant if component else _own_variant(held)
    variant = variant if variant in held else None
    options = {"subfolder": component} if component else {}
    # diffusers (0.42) asks the Hub for the names of shards all the same. Delete when it does not.
    if constants.HF_HUB_OFFLINE:
        options["local_files_only"] = True
    with loading(f"Model {source}"):
        network = network_class.from_pretrained(
            source, dtype=dtype, revision=revision, variant=variant, use_safetensors=True, **options
        )
    _check_whole(source, network)
    return network


def _check_whole(source: str, network: torch.nn.Module) -> None:
    """Raise a [`UsageError`] if a file had no weights for a parameter, which diffusers leaves without data."""
    if missing := [name for name, parameter in network.named_parameters() if parameter.is_meta]:
        raise UsageError(f"Model {source}: its {type(network).__name__} lacks the weights of {missing[0]}.")


def _own_variant(held: dict[str | None, list[str]]) -> str | None:
    """Variant of a network by itself that is read."""
    return min(held, key=lambda name: name or "", default=None)


def pipeline_folder(source: str, revision: str | None = None) -> Path:
    """Folder of all of a pipeline, with the parts that are not loaded; downloaded if it is on the Hub."""
    files = find_files(source, revision)
    if Path(source).is_dir():
        return files.folder
    options = {"revision": revision, "variant": files.variant, "use_safetensors": True}
    with loading(f"All of model {source}, as a tuned one is saved,"):
        return Path(diffusers.DiffusionPipeline.download(source, **options))


def pipeline_files(source: str, revision: str | None = None, whole: bool = False) -> HubFiles | None:
    """
    What [`load_pipeline`] takes of a repository, or with `whole` [`pipeline_folder`], as diffusers chooses it; `None` for what
    is here.
    """
    if Path(source).exists():
        return None
    files = find_files(source, revision)

    class Asked(Exception):
        pass

    def ask(repo_id: str, **kwargs) -> None:
        raise Asked(kwargs["allow_patterns"], kwargs["ignore_patterns"])

    # diffusers (0.42) cannot say what it would download. It is stopped where it would begin, as if the cache were empty.
    with patch("diffusers.pipelines.pipeline_utils.snapshot_download", ask):
        try:
            diffusers.DiffusionPipeline.download(
                source,
                revision=revision,
                variant=files.variant,
                use_safetensors=True,
                force_download=True,
                **({} if whole else _left_out(files)),
            )
        except Asked as asked:
            allowed, ignored = asked.args
    # It names what it would take if it were there too.
    return HubFiles(source, tuple(allowed), revision, ignored=tuple(ignored), optional=True)


def network_files(source: str, revision: str | None = None) -> HubFiles | None:
    """What [`load_network`] takes of a repository that is a network by itself; `None` for what is here."""
    if Path(source).exists():
        return None
    held = find_files(source, revision).weights("", "diffusers")
    return HubFiles(source, ("config.json", "*.index*.json", *held.get(_own_variant(held), [])), revision)


def _left_out(files: ModelFiles, without: Collection[str] = ()) -> dict[str, None | bool]:
    """
    Components that are not loaded, as arguments of `from_pretrained`. A safety checker blackens candidates, which a model would
    be trained on. What an index says is not there, such as the third text encoder of a Stable Diffusion 3, `from_pretrained`
    (diffusers 0.42) misses unless it is told so.
    """
    options = {name: None for name in files.index if name in (*UNUSED, *without) or files.index[name] == [None, None]}
    if "safety_checker" in options:
        options["requires_safety_checker"] = False  # or diffusers warns that there is none
    return options


def _load_folder(
    files: ModelFiles, dtype: torch.dtype | dict, revision: str | None, without: Collection[str]
) -> "diffusers.DiffusionPipeline":
    check_configuration(files)
    options = _left_out(files, without)
    with loading(f"Model {files.source}"):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            files.source, dtype=dtype, revision=revision, variant=files.variant, use_safetensors=True, **options
        )
    denoiser = get_family(files.index["_class_name"]).denoiser
    if denoiser in without:
        config = FrozenDict(files.json(f"{denoiser}/config.json"))
        setattr(pipeline, denoiser, SimpleNamespace(config=config, dtype=pipeline.vae.dtype))
    for name, paths in files.read_weights().items():
        network = getattr(pipeline, name)
        held = sum(len(read_header(path).shapes) for path in paths)
        # What it does not find, transformers makes up, with a warning among many.
        if name.startswith("text_encoder") and paths and held < len(list(network.parameters())):
            raise UsageError(f"Model {files.source}: its {name} lacks weights, there are only {held} tensors.")
    return pipeline


def _load_single_file(path: Path, dtype: torch.dtype) -> "diffusers.DiffusionPipeline":
    header = read_header(path)
    check_single_file(header)
    index = path.parent / "model_index.json"
    if index.is_file():
        config, class_name = str(path.parent), find_files(str(path.parent)).index["_class_name"]
    else:
        config, class_name = None, "StableDiffusionXLPipeline" if is_sdxl_file(header) else "StableDiffusionPipeline"
    # The safety checker is in no checkpoint; left to itself, the class asks for one.
    sdxl = class_name == "StableDiffusionXLPipeline"
    options = {} if sdxl else {"safety_checker": None, "requires_safety_checker": False}
    try:
        with quiet_casts():
            pipeline = getattr(diffusers, class_name).from_single_file(
                str(path), config=config, dtype=dtype, **options
            )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Model {path}: {first_line(error)} Without a network, put the model_index.json and the configuration folders "
            "of the pipeline beside it."
        ) from error
    if config is None and V_PREDICTION in header.shapes:
        # Of zero terminal SNR, the last step must be among those that are drawn (https://huggingface.co/papers/2305.08891).
        zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        settings = {"prediction_type": "v_prediction"} | (zero_snr if ZERO_SNR in header.shapes else {})
        keeps = settings.keys() <= inspect.signature(type(pipeline.scheduler)).parameters.keys()
        name = type(pipeline.scheduler).__name__ if keeps else "DDIMScheduler"
        pipeline.scheduler = make_scheduler(name, {**pipeline.scheduler.config, **settings})
    return pipeline
