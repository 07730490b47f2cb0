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


"""The recipes of every family beyond UNets are what a model of their class takes, of which a small random one stands for each."""

import pytest

from craft_trl.families.checks import check_model
from craft_trl.planning.recipes import RunRecipes
from craft_trl.scripts.train import check_agreement

from ..conftest import ROOT
from ..families.random_pipelines import CASES


# Recipe folder -> the random pipeline of its class.
MODELS = {
    "sd35_medium": "stable_diffusion_3",
    "flux_dev": "flux_dev",
    "flux2_klein": "flux2_klein",
    "qwen_image": "qwen_image",
    "z_image": "z_image",
    "sana": "sana",
    "pixart_sigma": "pixart_sigma",
}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_a_recipe_is_refused(name, tmp_path):
    model = str(tmp_path / name)
    CASES[MODELS[name]]().save_pretrained(model)
    folder = ROOT / "recipes" / name
    trainings = sorted(path.name for path in folder.glob("craft*.yaml"))
    assert "craft.yaml" in trainings
    for train_recipe in trainings:
        recipes = RunRecipes.load(folder, ["--train_recipe", train_recipe])
        check_model(model, drawing=recipes.candidates)
        check_model(model, drawing=recipes.evaluation)
        check_model(model, train=recipes.training)
        check_agreement(recipes.candidates.sampling(), recipes.training)


def test_every_recipe_of_a_transformer_is_among_them():
    folders = {path.parent.name for path in (ROOT / "recipes").glob("*/craft.yaml")}
    assert folders == {"sdxl", "sd15", "tiny", "tiny_full", "tiny_flow", *MODELS}
