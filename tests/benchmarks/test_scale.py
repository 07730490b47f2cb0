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

"""What docs/source/scaling.md and docs/source/candidates.md say of many GPUs and of the order of the groups, at a small size."""

from dataclasses import replace

import numpy as np
import pytest

from craft_trl.crf import composite_reward_filter

from ..conftest import load_benchmark


@pytest.fixture(scope="module")
def scale():
    return load_benchmark("scale")


@pytest.fixture(scope="module")
def material(scale):
    return scale.Material(400, 3, seed=0)


@pytest.fixture(scope="module")
def quiet(scale):
    """Nothing fails, nothing is slow, and nothing costs but images."""
    return scale.Costs(
        image=2.0,
        score=0.0,
        start=0.0,
        start_again=0.0,
        listing=0.0,
        shard=0.0,
        latency=0.0,
        slow=0.0,
        failure_hours=1e9,
    )


def images_by_hand(material) -> int:
    """The original and the first variant, and one more as long as all so far have won."""
    scores = {str(i): material.scores[:, :, i] for i in range(3)}
    wins = composite_reward_filter(scores, filter_level="image")[:, 1:]
    return int((2 + np.logical_and.accumulate(wins, axis=1)[:, :-1].sum(axis=1)).sum())


def test_all_is_drawn_once_whatever_happens(scale, material, quiet):
    images = images_by_hand(material)
    rough = replace(quiet, start=20.0, latency=1.0, slow=0.5, failure_hours=0.05, repair=60.0)
    for gpus, tasks, costs in ((1, 1, quiet), (4, 16, quiet), (4, 16, rough), (3, 50, rough)):
        run = scale.simulate(material, gpus, tasks, costs, seed=0)
        assert run["images"] == images, (gpus, tasks)
        assert run == scale.simulate(material, gpus, tasks, costs, seed=0)
        assert run["gpu_hours"] >= images * costs.image / 3600
        assert run["waiting"] == pytest.approx(gpus * run["wall_hours"] - run["gpu_hours"]) and run["waiting"] >= -1e-9
        assert (run["failures"] > 0) == (run["lost_images"] > 0) == (costs is rough)
    assert scale.simulate(material, 4, 16, rough, seed=1) != scale.simulate(material, 4, 16, rough, seed=0)


def test_by_hand(scale, material, quiet):
    """One task on one GPU: as many batches as its loop draws, at their price and at nothing else's."""
    run = scale.simulate(material, 1, 1, quiet, seed=0)
    full = images_by_hand(material) * 2.0 / 3600
    assert full <= run["wall_hours"] <= full + 8 * 2.0 * 8 / 3600  # a few batches at the end are not full
    started = scale.simulate(material, 1, 10, replace(quiet, start=100.0, start_again=10.0), seed=0)
    assert started["starting"] == pytest.approx((100 + 9 * 10) / 3600)
    opened = scale.simulate(material, 1, 2, replace(quiet, shard=5.0, read="all"), seed=0)
    first = scale.simulate(scale_half(scale, material), 1, 1, quiet, seed=0)["shards"]
    assert opened["opening"] == pytest.approx(5.0 * first / 3600)
    assert scale.simulate(material, 1, 2, replace(quiet, shard=5.0), seed=0)["opening"] == 0
    listed = scale.simulate(material, 1, 2, replace(quiet, listing=5000.0), seed=0)
    assert listed["opening"] == pytest.approx(5.0 * first / 3600)
    # A worker that fails is back after a while, starts, reads what it has stored, and draws the rest.
    failing = replace(quiet, failure_hours=0.1, repair=60.0, start=10.0)
    failed = scale.simulate(material, 1, 1, failing, seed=0)
    assert failed["failures"] > 1 and failed["waiting"] == pytest.approx(failed["failures"] * 60 / 3600)
    assert failed["starting"] == pytest.approx((1 + failed["failures"]) * 10 / 3600)
    reads = scale.simulate(material, 1, 1, replace(failing, shard=1e-6), seed=0)
    assert 0 < reads["opening"] * 3600 / 1e-6 <= failed["failures"] * failed["shards"]
    slow = scale.simulate(material, 1, 1, replace(quiet, slow=1.0), seed=0)
    assert slow["wall_hours"] == pytest.approx(1.5 * run["wall_hours"])
    # Scores and the store wait for nobody until they take longer than a batch.
    beside = scale.simulate(material, 1, 1, replace(quiet, score=1.9), seed=0)
    behind = scale.simulate(material, 1, 1, replace(quiet, score=4.0), seed=0)
    assert beside["wall_hours"] < 1.05 * run["wall_hours"] and behind["wall_hours"] > 1.9 * run["wall_hours"]


def scale_half(scale, material):
    """The groups of the first of two tasks."""
    half = scale.Material(0, 3, seed=0)
    half.scores, half.groups = material.scores, material.share(0, 2)
    return half


def test_shape(scale, material, quiet):
    """More GPUs are faster, by less than their number; too few tasks wait at the end, and too many start all the time."""
    costs = replace(quiet, start=10.0, start_again=10.0, slow=0.25)
    alone = scale.simulate(material, 1, 4, costs, seed=0)["wall_hours"]
    walls = {gpus: scale.simulate(material, gpus, 4 * gpus, costs, seed=0)["wall_hours"] for gpus in (2, 4, 8)}
    assert alone > walls[2] > walls[4] > walls[8] and all(wall > alone / gpus for gpus, wall in walls.items())
    few, some, many = (scale.simulate(material, 4, tasks, costs, seed=0) for tasks in (4, 16, 200))
    assert some["wall_hours"] < few["wall_hours"] < many["wall_hours"]
    assert few["waiting"] > some["waiting"] > many["waiting"] and many["starting"] > some["starting"]
    kept = scale.simulate(material, 4, 200, replace(costs, start_again=0.0), seed=0)
    assert kept["wall_hours"] < 0.7 * many["wall_hours"] and kept["starting"] < many["starting"] / 10


def test_target_in_tasks(scale):
    """Tasks that run alone do not know what passes in the others."""
    together, later, much_later = (
        scale.drawn_for_target(20_000, tasks, 8, 40, 0.02, 5, seed=0) for tasks in (8, 16, 64)
    )
    assert together == pytest.approx(1.0, abs=0.01) and together < later < much_later
    # Of eight turns, the first goes eight times too far with an eighth of the groups, the second four times, and so on.
    assert later == pytest.approx(1 + 1 / 2, rel=0.1) and much_later == pytest.approx(
        sum(1 / k for k in range(1, 9)), rel=0.1
    )


def test_order_of_the_groups():
    """What of an original's score is its prompt's says nothing of its luck."""
    module = load_benchmark("visiting_order")

    def gain(within: float) -> dict:
        rng = np.random.default_rng(0)
        return module.compare(module.simulate((within,), 0.0, 4000, 4, 3, rng))

    alike, real, hopeless = gain(1.0), gain(0.25), gain(0.01)
    assert alike["kept"] == real["kept"] == hopeless["kept"] and alike["images"] == real["images"]
    assert alike["gain"] > 1.4 > 1.25 > real["gain"] > hopeless["gain"] > 0.95
    assert alike["images_for_90_sorted"] < real["images_for_90_sorted"] < hopeless["images_for_90_sorted"]
    assert abs(alike["prompts"]) < 0.1 and real["prompts"] < -0.1
    # A known share is found again in pairs of an original and a variant.
    rng = np.random.default_rng(1)
    prompt, images = rng.normal(size=(20_000, 1)), rng.normal(size=(20_000, 2))
    assert module.share(np.sqrt(0.7) * prompt + np.sqrt(0.3) * images) == pytest.approx(0.3, abs=0.02)
