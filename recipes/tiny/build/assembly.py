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

"""How the parts of a pipeline are read and the pipeline is written, in half precision."""

from pathlib import Path

from diffusers import DiffusionPipeline, ModelMixin
from safetensors.torch import load_file


def load_part(network_class: type[ModelMixin], folder: Path, **changes) -> ModelMixin:
    """
    Read a part of a pipeline in half precision. `from_pretrained` would note this build's folder in its config.

    Args:
        network_class (`type[ModelMixin]`):
            Class of the network.
        folder (`Path`):
            Where its config and weights are.
        **changes:
            What its config is to say instead.
    """
    network = network_class.from_config(network_class.load_config(folder), **changes)
    network.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return network.half()


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline in half precision with two text encoders."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    # transformers loads a model in the dtype that its config names, diffusers in float32: left at float16, a
    # pipeline that is loaded without a dtype would be of both and could not run.
    for name in ("text_encoder", "text_encoder_2"):
        config = folder / name / "config.json"
        config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
