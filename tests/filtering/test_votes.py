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


"""A vetoed variant counts as one that does not pass: what that means for the image, its group and the advantages."""

import json

import numpy as np
import pytest
from PIL import Image as PILImage

from craft_trl.candidates.filter_config import FilterConfig
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.errors import NothingToDoError, UsageError
from craft_trl.filtering.dataset import build_dataset_dict
from craft_trl.filtering.votes import key_line as veto_line
from craft_trl.filtering.votes import load_vetoes


# Groups a and b pass whole; of c the second variant loses on aesthetic; d was rejected after its first variant.
SCORES = {
    "hpsv2": [[0.2, 0.3, 0.4], [0.2, 0.3, 0.3], [0.2, 0.4, 0.3], [0.2, 0.1, None]],
    "aesthetic": [[5, 6, 7], [5, 8, 6], [5, 6, 4], [5, 7, None]],
}
GROUPS = make_groups(["a", "b", "c", "d"], [[f"{p}, sharp", f"{p}\u2028detailed"] for p in "abcd"], seed=2**53)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    pool = CandidatePool(tmp_path_factory.mktemp("pool"), list(SCORES))
    for i, group in enumerate(GROUPS):
        made = [j for j in range(3) if SCORES["hpsv2"][i][j] is not None]
        pool.append(
            [group.keys[j] for j in made],
            [PILImage.new("RGB", (8, 8), (40 * i, 40 * j, 0)) for j in made],
            {name: np.array([values[i][j] for j in made]) for name, values in SCORES.items()},
        )
    return pool


def filtered(pool, tmp_path, *vetoes, **settings):
    """Kept images as (group, variant), reasons, and advantages, after a veto of images given in the same way."""
    path = tmp_path / "veto.jsonl"
    path.write_text("".join(veto_line(GROUPS[i].keys[j]) + "\n" for i, j in vetoes), encoding="utf-8")
    rows = build_dataset_dict(GROUPS, pool, FilterConfig(veto=str(path), **settings))["candidates"].to_list()
    kept = [(row["group_id"], row["variant"]) for row in rows if row["keep"]]
    return kept, [row["drop_reason"] for row in rows], [row["advantage"] for row in rows]


class TestGroupLevel:
    def test_a_variant_takes_its_group_with_it(self, pool, tmp_path):
        kept, reasons, _ = filtered(pool, tmp_path, (0, 2))
        assert kept == [(1, 1), (1, 2)]
        assert reasons[:3] == ["original", "variant 2: vetoed", "vetoed"]

    def test_an_original_takes_its_group_with_it(self, pool, tmp_path):
        kept, reasons, _ = filtered(pool, tmp_path, (1, 0))
        assert kept == [(0, 1), (0, 2)]
        assert reasons[3:6] == ["vetoed", "original: vetoed", "original: vetoed"]

    def test_what_had_failed_stays_failed(self, pool, tmp_path):
        kept, reasons, _ = filtered(pool, tmp_path, (2, 2), (3, 1))
        assert kept == [(0, 1), (0, 2), (1, 1), (1, 2)]
        assert reasons[6:] == [
            "original", "variant 2: aesthetic, vetoed", "aesthetic, vetoed", "original", "hpsv2, vetoed", "not_generated",
        ]  # fmt: skip


class TestImageLevel:
    def test_a_variant_falls_alone(self, pool, tmp_path):
        before = filtered(pool, tmp_path, filter_level="image")[0]
        kept, reasons, _ = filtered(pool, tmp_path, (0, 2), filter_level="image")
        assert before == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)] and kept == [key for key in before if key != (0, 2)]
        assert reasons[:3] == ["original", "", "vetoed"]

    def test_an_original_takes_its_group_with_it(self, pool, tmp_path):
        kept, reasons, _ = filtered(pool, tmp_path, (2, 0), filter_level="image")
        assert kept == [(0, 1), (0, 2), (1, 1), (1, 2)]
        assert reasons[6:9] == ["vetoed", "original: vetoed", "aesthetic"]


def test_no_advantage_changes(pool, tmp_path):
    """A vetoed image was drawn and scored: it stays in the statistics, as one that did not win does."""
    without = filtered(pool, tmp_path)[2]
    assert filtered(pool, tmp_path, (0, 0), (2, 1))[2] == without
    assert filtered(pool, tmp_path, (0, 1), (1, 2), filter_level="image")[2] == without


def test_nothing_left(pool, tmp_path):
    with pytest.raises(NothingToDoError, match="and 5 did on all of them; 2 images are vetoed. To relax"):
        filtered(pool, tmp_path, (0, 1), (1, 0))


class TestFile:
    def test_lines_are_exact(self, pool, tmp_path):
        """Seeds beyond a double's integers, line separators inside a prompt, notes, blank lines, the same line twice."""
        line = json.loads(veto_line(GROUPS[1].keys[2])) | {"note": "six fingers"}
        assert line["seed"] == 2**53 + 1
        path = tmp_path / "veto.jsonl"
        lines = [json.dumps(line, ensure_ascii=False), "", veto_line(GROUPS[0].keys[0]), veto_line(GROUPS[0].keys[0])]
        path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
        assert load_vetoes(path, pool) == [GROUPS[1].keys[2], GROUPS[0].keys[0]]
        assert load_vetoes(None, pool) == []

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "line 2: not a veto, it needs prompt, expanded_prompt, seed"),
            ('"a"', "line 2: not a veto"),
            ('{"prompt": "a", "seed": 1}', "line 2: not a veto"),
            (
                '{"prompt": "a", "expanded_prompt": "a", "seed": "1"}',
                "line 2: a veto has two texts and a whole number",
            ),
            (
                '{"prompt": "a", "expanded_prompt": "a", "seed": 1.0}',
                "line 2: a veto has two texts and a whole number",
            ),
            (
                '{"prompt": "a", "expanded_prompt": "z", "seed": 1}',
                "line 2: the pool has no image of 'z' for 'a' with",
            ),
            (
                '{"prompt": "a", "expanded_prompt": "a", "seed": 1, "seed": 2}',
                "line 2: not a veto.*'seed' is there twice",
            ),
            (
                '{"prompt": "a\\ud83c", "expanded_prompt": "a", "seed": 1}',
                "line 2: not a veto.*half of a surrogate pair",
            ),
            (veto_line(GROUPS[3].keys[2]), "line 2: the pool has no image of 'd.*detailed' for 'd' with seed"),
        ],
    )
    def test_mistakes(self, pool, tmp_path, line, message):
        path = tmp_path / "veto.jsonl"
        path.write_text(f"{veto_line(GROUPS[0].keys[1])}\n{line}\n", encoding="utf-8")
        with pytest.raises(UsageError, match=f"veto.jsonl, {message}") as error:
            load_vetoes(path, pool)
        assert "\n" not in str(error.value)

    def test_no_file(self, pool, tmp_path):
        with pytest.raises(UsageError, match="veto: there is no file nowhere.jsonl. `craft sheet` writes a page"):
            FilterConfig(veto="nowhere.jsonl")
        (tmp_path / "binary").write_bytes(b"\xff\xfe")
        with pytest.raises(UsageError, match="binary, line 1: not UTF-8 text"):
            load_vetoes(tmp_path / "binary", pool)
