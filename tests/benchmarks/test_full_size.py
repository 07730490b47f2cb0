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

"""Models of full size are made of what the published ones are made of."""

import importlib

import pytest
import torch

from ..conftest import ROOT


# Parameters of the published models: runwayml/stable-diffusion-v1-5 and stabilityai/stable-diffusion-xl-base-1.0.
PUBLISHED = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_parts_have_the_published_numbers_of_parameters(family, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # where Python finds what stands beside a script
    parts = importlib.import_module("full_size").parts_of(family)
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in parts[name][1]().parameters()) for name in PUBLISHED[family]}
    assert sizes == PUBLISHED[family]
