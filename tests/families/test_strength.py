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

"""A model between the base and the tuned one, or beyond: weights, scales, and what it must be the way from."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from craft_trl.errors import UsageError
from craft_trl.families import get_family
from craft_trl.families.strength import (
    Tensors,
    between,
    check_base,
    facts_of,
    parse_strength,
    scale_adapter,
    set_strength,
)
from craft_trl.sources import model_hash
from craft_trl.trainer.denoiser import add_adapter, lora_config

from .random_pipelines import CASES


class TestNumbers:
    @pytest.mark.parametrize(("text", "number"), [("0", 0.0), ("0.7", 0.7), ("2", 2.0), ("1e-1", 0.1)])
    def test_allowed(self, text, number):
        assert parse_strength(text) == number

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("-0.1", "strength must be from 0 to 2: 0 is the base, 1 the tuned model; got -0.1"),
            ("2.01", "must be from 0 to 2"),
            ("nan", "must be a finite number"),
            ("half", "must be a finite number: .*; got half"),
            ("", "must be a finite number"),
        ],
    )
    def test_others(self, text, message):
        with pytest.raises(UsageError, match=message):
            parse_strength(text)


class TestBetween:
    base, tuned = torch.tensor([1.0, -2.0, 0.25]), torch.tensor([3.0, -1.0, 0.25])

    @pytest.mark.parametrize(
        ("strength", "expected"),
        [(0.25, [1.5, -1.75, 0.25]), (0.5, [2.0, -1.5, 0.25]), (1.5, [4.0, -0.5, 0.25]), (2.0, [5.0, 0.0, 0.25])],
    )
    def test_hand_worked(self, strength, expected):
        assert between(self.base, self.tuned, strength).tolist() == expected

    def test_the_ends_are_what_they_are(self):
        """Also where arithmetic would change a bit: the sign of a zero, and what overflows."""
        base, tuned = torch.tensor([-0.0, 3e38, 1.0]), torch.tensor([-0.0, -3e38, float("inf")])
        for strength, end in ((0.0, base), (1.0, tuned)):
            assert between(base, tuned, strength).numpy().tobytes() == end.numpy().tobytes()

    def test_in_float32_rounded_once(self):
        base, tuned = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0)).half()
        network = nn.Linear(1, 1).half()
        network.weight = nn.Parameter(torch.empty(4096, dtype=torch.float16))
        ends = ({"weight": value, "bias": torch.zeros(1)} for value in (base, tuned))
        set_strength(network, *ends, 0.3, "it")
        exact = base.double() + 0.3 * (tuned.double() - base.double())
        # The number of float16 that is nearest, but where float32 is not to be told from the middle of two.
        nearest = exact.half()
        assert (network.weight == nearest).float().mean() > 0.99
        twice = base + 0.3 * (tuned - base)  # in float16
        assert (twice == nearest).float().mean() < 0.9


@pytest.mark.parametrize("name", [*CASES])
def test_of_every_family(name, tmp_path):
    """Every tensor of a file is one of the network's, and an adapter's scale is changed in all of its modules."""
    pipeline = CASES[name]()
    family = get_family(type(pipeline).__name__)
    denoiser = getattr(pipeline, family.denoiser)
    denoiser.save_pretrained(tmp_path / "base", max_shard_size="40KB")
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    with torch.no_grad():
        for number, parameter in enumerate(denoiser.parameters()):
            parameter.add_(number % 3 - 1)
    after = {name: value.clone() for name, value in denoiser.state_dict().items()}
    denoiser.save_pretrained(tmp_path / "tuned")
    ends = [Tensors(sorted((tmp_path / end).glob("*.safetensors"))) for end in ("base", "tuned")]
    assert len(ends[0].handle_of) == len(ends[1]) and {*ends[0]} == {*ends[1]} <= {*before}
    for strength in (0.0, 1.0, 0.5):
        set_strength(denoiser, *ends, strength, "it")
        for key, value in denoiser.state_dict().items():
            expected = {0.0: before[key], 1.0: after[key]}.get(strength)
            if expected is None:
                torch.testing.assert_close(value, (before[key] + after[key]) / 2, rtol=1e-6, atol=1e-7)
            else:
                assert torch.equal(value, expected)
    adapter = add_adapter(denoiser, lora_config(family.lora_target_modules, rank=2, alpha=6))
    scale_adapter(adapter, 0.5)
    scales = [s for module in adapter.modules() for s in getattr(module, "scaling", {}).values()]
    assert scales and {*scales} == {1.5}


def test_another_network_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, tmp_path / "a.safetensors")
    tensors = Tensors([tmp_path / "a.safetensors"])
    for other in ({"weight": torch.zeros(2, 2)}, {"weight": torch.zeros(2, 2), "bias": torch.zeros(1)}):
        with pytest.raises(UsageError, match="it: bias is not in both, in one shape"):
            set_strength(nn.Linear(2, 2), tensors, other, 0.5, "it")


class TestBase:
    """What a model's `training.json` says of the model that it was trained from."""

    def model(self, folder, **facts):
        folder.mkdir(exist_ok=True)
        (folder / "training.json").write_text(json.dumps(facts))
        return folder

    def test_is_what_it_says(self, tiny, tmp_path):
        base = str(tiny / "pipeline")
        model = self.model(tmp_path / "model", base_hash=model_hash(base), base_name="pipeline")
        for source in (model, model / "unet", model / "adapter.safetensors"):
            assert facts_of(source)["base_name"] == "pipeline"
            check_base("It", source, facts_of(source), base)

    def test_another(self, tiny, tmp_path):
        model = self.model(tmp_path / "model", base_hash="org/sdxl@0123", base_name="org/sdxl")
        with pytest.raises(
            UsageError,
            match=r"It: .*model was trained from another model than .*/pipeline: from org/sdxl \(org/sdxl@0123\)",
        ):
            check_base("It", model, facts_of(model), str(tiny / "pipeline"))

    def test_another_revision(self, tmp_path):
        model = self.model(tmp_path / "model", base_hash="org/sdxl@main", base_name="org/sdxl")
        check_base("It", model, facts_of(model), "org/sdxl")  # offline, and not in the cache
        with pytest.raises(UsageError, match=r"from org/sdxl \(org/sdxl@main\), and org/sdxl is org/sdxl@refs"):
            check_base("It", model, facts_of(model), "org/sdxl", "refs")

    def test_says_nothing(self, tmp_path):
        (tmp_path / "model").mkdir()
        with pytest.raises(UsageError, match=r"has no training.json that says what it was trained from\. Do that\."):
            check_base("It", tmp_path / "model", {}, "org/sdxl", remedy=" Do that.")
        check_base("It", tmp_path / "model", {}, "org/sdxl", remedy=None)

    def test_of_an_earlier_version(self, tiny, tmp_path):
        """Which left the hash in the record of its stage."""
        model = self.model(tmp_path / "model", base_name="pipeline")
        assert facts_of(model)["base_hash"] is None
        record = {"stage": "train", "fingerprint": "", "settings": {"model": "abc"}, "finished": True, "summary": {}}
        (model / "stage.json").write_text(json.dumps(record))
        assert facts_of(model)["base_hash"] == "abc"
