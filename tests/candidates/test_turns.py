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


"""A pipeline and rewards that take turns on a device: the same images and scores, and never both there."""

import contextlib

import numpy as np
import pytest
import torch

from craft_trl.candidates.drawing import fill_pool, generate_candidates
from craft_trl.candidates.pool import CandidatePool
from craft_trl.candidates.turns import Turns, load_reward
from craft_trl.cli.main import main
from craft_trl.offloading import Offloaded
from craft_trl.rewards import RewardSpec
from craft_trl.rewards.config import ScoringConfig

from ..helpers import REWARDS, SCORERS, Draw, groups_of


def test_weights_wait_in_copies_of_their_own():
    """What happens to those on the device is gone with them: here, another precision."""
    module = torch.nn.BatchNorm1d(3)  # with buffers
    before, parameters = {k: v.clone() for k, v in module.state_dict().items()}, list(module.parameters())
    offloaded = Offloaded([module])
    for leave in (offloaded.away, offloaded.back):
        module.double()
        leave()
        after = module.state_dict()
        assert all(torch.equal(after[k], v) and after[k].dtype == v.dtype for k, v in before.items())
        # The same parameters, which a compiled or hooked module knows.
        assert all(one is other for one, other in zip(module.parameters(), parameters, strict=True))


class Recorded(Turns):
    """Turns of nothing, that write down who is there."""

    num_images = 6

    def __init__(self):
        self.events = []

    @contextlib.contextmanager
    def scoring(self):
        self.events.append("pipeline away")
        yield
        self.events.append("pipeline back")

    @contextlib.contextmanager
    def reward(self, name):
        self.events.append(name)
        yield
        self.events.append(f"{name} away")


TURN = ["pipeline away", "hpsv2", "hpsv2 away", "pickscore", "pickscore away", "pipeline back"]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
@pytest.mark.parametrize("reject_on", [None, REWARDS])
@pytest.mark.parametrize("draw_ahead", [False, True])
def test_candidates_are_the_same(tmp_path, batch_size, reject_on, draw_ahead):
    groups, pools, turns, drawing = groups_of(9, 3), {}, Recorded(), Draw()
    for name, how in (("beside", None), ("turns", turns)):

        def draw(prompts, seeds):
            turns.events.append("draw")
            return drawing(prompts, seeds)

        pools[name] = CandidatePool(tmp_path / name, REWARDS)
        options = {"draw_ahead": draw_ahead, "turns": how}
        generate_candidates(pools[name], groups, draw, SCORERS, batch_size, reject_on, **options)
        if how is None:
            turns.events.clear()
    beside, other = pools.values()
    assert beside.scores.keys() == other.scores.keys()
    assert all(beside.scores[key].tobytes() == other.scores[key].tobytes() for key in beside.scores)
    assert list(beside.images(beside.scores)) == list(other.images(beside.scores))
    # Some batches, then their scores, and so on.
    most = ["draw"] * max(1, 6 // batch_size)
    first, *later = "|".join(turns.events).replace("|".join(TURN), ";").split(";")
    assert first.strip("|").split("|") == most and later.pop() == ""
    assert all(set(part.strip("|").split("|")) == {"draw"} and part.count("draw") <= len(most) for part in later)


def test_what_was_drawn_is_written_when_drawing_ends(tmp_path):
    """After Ctrl-C, or when the memory runs out: what waits for its turn has it."""
    turns, drawing = Recorded(), Draw()

    def draw(prompts, seeds):
        if sum(drawing.batches) == 4:
            raise KeyboardInterrupt
        return drawing(prompts, seeds)

    keys = [key for group in groups_of(4, 1) for key in group.keys]
    with pytest.raises(KeyboardInterrupt):
        fill_pool(CandidatePool(tmp_path, REWARDS), keys, draw, SCORERS, 2, turns=turns)
    assert len(CandidatePool(tmp_path, REWARDS)) == 4 and turns.events == TURN


def test_a_broken_reward_is_asked_once(tmp_path):
    asked = []

    def broken(images, prompts):
        asked.append(len(images))
        return np.full(len(images), np.nan)

    with pytest.raises(ValueError, match="Reward r is nan"):
        generate_candidates(
            CandidatePool(tmp_path, ["r"]), groups_of(2, 1), Draw(), {"r": broken}, 2, turns=Recorded()
        )
    assert asked == [2] and not list(tmp_path.glob("*.parquet"))


@pytest.fixture
def moves(monkeypatch):
    """Which modules are moved away and back, by the sizes of their first weights."""
    moved = []
    for name in ("away", "back"):
        original = getattr(Offloaded, name)

        def spied(self, name=name, original=original):
            moved.append((name, self))
            original(self)

        monkeypatch.setattr(Offloaded, name, spied)
    return moved


def test_craft_generate(tiny, tmp_path, capsys, moves):
    """The same pool by the command, of real networks; one of them at a time is on the device."""
    pools = {}
    for name in ("auto", "offload"):
        argv = ["--config", str(tiny / "candidates.yaml"), "--num_prompts", "3", "--num_inference_steps", "1"]
        argv += ["--output_dir", name, "--batch_size", "4"]
        assert main(["expand", *argv]) == 0
        assert main(["generate", *argv, "--reward_device", name]) == 0, capsys.readouterr().err
        pools[name] = CandidatePool(tmp_path / name / "pool", ["hpsv2", "pickscore", "aesthetic"])
        assert bool(moves) == (name == "offload")
    said = capsys.readouterr().out
    assert said.count("[generate] the GPU does not hold pipeline and rewards together: they take turns") == 1
    auto, offload = pools.values()
    assert len(auto) >= 6 and auto.scores.keys() == offload.scores.keys()
    assert all(auto.scores[key].tobytes() == offload.scores[key].tobytes() for key in auto.scores)
    assert list(auto.images(auto.scores)) == list(offload.images(auto.scores))
    rewards = [moved for _, moved in moves[:3]]
    assert [name for name, _ in moves[:3]] == ["away"] * 3  # as soon as each is loaded
    there, turns = set(), 0
    for name, moved in moves[3:]:
        if not there and name == "away" and moved not in rewards:
            pipeline, turns = moved, turns + 1
        there = there | {moved} if name == "back" else there - {moved}
        assert len(there) <= 1
    assert there == {pipeline} and turns >= 1
    # The settings that make a pool are the same: it goes on under either.
    assert main(["generate", *argv, "--output_dir", "auto", "--reward_device", "offload"]) == 0
    assert "done before" in capsys.readouterr().out


class TestPrecision:
    def test_of_built_in_rewards(self, tiny):
        spec = RewardSpec("aesthetic", str(tiny / "rewards" / "aesthetic"))
        own = RewardSpec("quality", f"{tiny / 'inspector.py'}:quality")
        full, half = ScoringConfig(), ScoringConfig(reward_dtype="bfloat16")
        assert load_reward(spec, full, "cpu").dtype == torch.float32
        assert load_reward(spec, half, "cpu").dtype == torch.bfloat16
        assert load_reward(own, half, "cpu")  # takes no such argument
        assert full.fingerprint_of(spec) == spec.fingerprint()
        assert half.fingerprint_of(spec) == f"{spec.fingerprint()}:bfloat16"
        assert half.fingerprint_of(own) == own.fingerprint()
