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


import io
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from craft_trl.candidates.drawing import generate_candidates
from craft_trl.candidates.groups import save_groups
from craft_trl.candidates.pool import CLAIMS, CandidatePool, in_use, remove_leftovers
from craft_trl.errors import UsageError

from ..helpers import REWARDS, SCORERS, Draw, groups_of


class TestCandidatePool:
    def test_round_trip(self, tmp_path):
        groups, draw = groups_of(3, 2), Draw()
        pool = CandidatePool(tmp_path, REWARDS)
        generate_candidates(pool, groups, draw, SCORERS, batch_size=4)
        again = CandidatePool(tmp_path, REWARDS)
        assert len(again) == 9
        keys = [key for group in groups for key in group.keys]
        assert all((again.scores[key] == pool.scores[key]).all() for key in keys)
        expected = draw([k[1] for k in keys], [k[2] for k in keys])
        for png, image in zip(again.images(keys), expected, strict=True):
            assert Image.open(io.BytesIO(png)).tobytes() == image.tobytes()
        scores, generated = again.matrices(groups)
        assert scores["hpsv2"].shape == (3, 3) and scores["hpsv2"].dtype == np.float32 and generated.all()

    def test_every_image_is_scored_under_the_original_prompt(self, tmp_path):
        seen = []

        def spy(images, prompts):
            seen.extend(prompts)
            return np.zeros(len(prompts))

        groups = groups_of(2, 2)
        generate_candidates(CandidatePool(tmp_path, ["r"]), groups, Draw(), {"r": spy}, batch_size=3)
        assert sorted(seen) == sorted(group.prompt for group in groups for _ in range(3))

    @pytest.mark.parametrize("damage", ["truncate", "flip"])
    def test_damaged_shard_is_set_aside_and_made_again(self, tmp_path, damage):
        groups = groups_of(4, 2)
        pool = CandidatePool(tmp_path, REWARDS)
        generate_candidates(pool, groups, Draw(), SCORERS, batch_size=4)
        shards = sorted(tmp_path.glob("*.parquet"))
        data = bytearray(shards[1].read_bytes())
        if damage == "truncate":
            data = data[: len(data) // 2]
        else:
            data[len(data) // 2] ^= 1
        shards[1].write_bytes(data)

        again, draw = CandidatePool(tmp_path, REWARDS), Draw()
        assert len(again) == 8 and [p.suffix for p in again.damaged] == [".damaged"]
        generate_candidates(again, groups, draw, SCORERS, batch_size=4)
        assert sum(draw.batches) == 4
        assert all((again.scores[key] == pool.scores[key]).all() for key in pool.scores)

    def test_unfinished_writes_are_ignored(self, tmp_path):
        (tmp_path / ".shard-00000000-abc.parquet.123.tmp").write_bytes(b"half a shard")
        assert len(CandidatePool(tmp_path, REWARDS)) == 0

    def test_columns_that_others_can_read(self, tmp_path):
        generate_candidates(CandidatePool(tmp_path, REWARDS), groups_of(1, 1), Draw(), SCORERS, batch_size=2)
        (shard,) = tmp_path.glob("*.parquet")
        table = pq.read_table(shard)
        assert table.column_names == ["prompt", "expanded_prompt", "seed", "image", "dtype", *REWARDS]
        assert set(table["image"][0].as_py()) == {"bytes", "path"}

    def test_nothing_damaged_is_ever_taken_in(self, tmp_path):
        """Wherever a byte is flipped, scores and images are right, or the shard is set aside."""
        pool = CandidatePool(tmp_path, REWARDS)
        generate_candidates(pool, groups_of(2, 1), Draw(), SCORERS, batch_size=4)
        images = dict(zip(pool.scores, pool.images(pool.scores), strict=True))
        (shard,) = tmp_path.glob("*.parquet")
        data, found = shard.read_bytes(), {"at once": 0, "with the images": 0}
        picture = data.index(b"\x89PNG") + 20
        for place in [picture, *range(0, len(data), 13)]:
            shard.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            again = CandidatePool(tmp_path, REWARDS, verify=False)
            assert again.scores.keys() in (pool.scores.keys(), set())
            assert all((again.scores[key] == pool.scores[key]).all() for key in again.scores)
            if again.scores:
                assert not again.damaged
                with pytest.raises(
                    UsageError, match=f"{shard} was damaged and is set aside as .*: run the command that filled"
                ):
                    list(again.images(images))
            assert [path.suffix for path in tmp_path.iterdir() if path.name != CLAIMS] == [".damaged"]
            found["with the images" if again.scores else "at once"] += 1
        assert min(found.values()) > 10
        shard.write_bytes(data)
        assert dict(zip(images, CandidatePool(tmp_path, REWARDS, verify=False).images(images), strict=True)) == images

    def test_truncated_shard_of_which_the_scores_alone_are_read(self, tmp_path):
        generate_candidates(CandidatePool(tmp_path, REWARDS), groups_of(2, 1), Draw(), SCORERS, batch_size=2)
        shard, _ = sorted(tmp_path.glob("*.parquet"))
        shard.write_bytes(shard.read_bytes()[:-100])
        pool = CandidatePool(tmp_path, REWARDS, verify=False)
        assert len(pool) == 2 and pool.damaged == [shard.with_suffix(".damaged")]

    def test_shard_with_one_hash(self, tmp_path):
        """Before there was a hash of the rows, a shard's name held that of the file alone."""
        pool = CandidatePool(tmp_path, REWARDS)
        generate_candidates(pool, groups_of(2, 1), Draw(), SCORERS, batch_size=4)
        (shard,) = tmp_path.glob("*.parquet")
        _, number, _, digest = shard.stem.split("-")
        old = shard.rename(tmp_path / f"shard-{number}-{digest}.parquet")
        for verify in (True, False):
            again = CandidatePool(tmp_path, REWARDS, verify)
            assert again.scores.keys() == pool.scores.keys() and not again.damaged
        data = bytearray(old.read_bytes())
        data[data.index(b"\x89PNG") + 20] ^= 1
        old.write_bytes(data)
        assert len(CandidatePool(tmp_path, REWARDS, verify=False)) == 0

    def test_rewards_in_another_order(self, tmp_path):
        generate_candidates(CandidatePool(tmp_path, REWARDS), groups_of(2, 1), Draw(), SCORERS, batch_size=4)
        pool, reverse = (CandidatePool(tmp_path, names, verify=False) for names in (REWARDS, REWARDS[::-1]))
        assert all((pool.scores[key] == reverse.scores[key][::-1]).all() for key in pool.scores)
        assert not reverse.damaged

    def test_refresh(self, tmp_path):
        groups = groups_of(4, 1)
        first, second = CandidatePool(tmp_path, REWARDS), CandidatePool(tmp_path, REWARDS)
        generate_candidates(first, groups[:2], Draw(), SCORERS, batch_size=2)
        assert len(second) == 0 and set(second.refresh()) == set(first.scores)
        assert second.refresh() == [] and first.refresh() == []
        assert list(second.images(first.scores)) == list(first.images(first.scores))
        # What another one has made since the pool was loaded is not made again.
        generate_candidates(second, groups, draw := Draw(), SCORERS, batch_size=2)
        assert sum(draw.batches) == 4
        generate_candidates(first, groups, draw := Draw(), SCORERS, batch_size=2)
        assert sum(draw.batches) == 0


class TestClaims:
    """Between processes: a process that claims a group, says so, and waits to be killed."""

    @pytest.fixture
    def other(self, tmp_path):
        script = """
            import sys, time
            from craft_trl.candidates.pool import CandidatePool
            pool = CandidatePool(sys.argv[1], [])
            print(pool.claim(("a fox", "a fox", 5)), flush=True)
            time.sleep(600)
        """
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()
        process.communicate()

    def test_claims_end_with_their_process(self, tmp_path, other):
        pool = CandidatePool(tmp_path, [])
        assert not pool.claim(("a fox", "a fox", 5)) and pool.claim(("a car", "a car", 5))
        assert pool.claim(("a car", "a car", 5))
        pool.release()
        assert in_use(tmp_path)
        other.kill()
        other.wait()
        assert not in_use(tmp_path)
        assert pool.claim(("a fox", "a fox", 5))
        pool.release()
        assert (tmp_path / CLAIMS).stat().st_size == 0

    def test_nothing_to_lock(self, tmp_path):
        assert not in_use(tmp_path / "nowhere") and not in_use(tmp_path)


def test_remove_leftovers(tmp_path):
    generate_candidates(CandidatePool(tmp_path, REWARDS), groups_of(1, 1), Draw(), SCORERS, batch_size=2)
    (tmp_path / ".shard-00000000-abc.parquet.123.tmp").write_bytes(b"half a shard")
    before = sorted(tmp_path.glob("shard-*"))
    remove_leftovers(tmp_path)
    assert not list(tmp_path.glob(".*")) and sorted(tmp_path.glob("shard-*")) == before


def draw(prompts, seeds):
    return [Image.new("RGB", (8, 8), (seed, len(prompt), 9)) for prompt, seed in zip(prompts, seeds, strict=True)]


def test_full_disk(tmp_path):
    """A process that may write no file beyond a size stands for a full disk: the write fails in the same place."""
    script = """
        import resource, sys
        from PIL import Image
        from craft_trl.candidates.drawing import generate_candidates
        from craft_trl.candidates.groups import load_groups
        from craft_trl.candidates.pool import CandidatePool

        def draw(prompts, seeds):
            if len(pool) >= 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
            return [Image.new("RGB", (8, 8), (seed, len(prompt), 9)) for prompt, seed in zip(prompts, seeds)]

        pool = CandidatePool(sys.argv[1], ["r"])
        scorers = {"r": lambda images, prompts: [image.getpixel((0, 0))[1] for image in images]}
        generate_candidates(pool, load_groups(__import__("pathlib").Path(sys.argv[2])), draw, scorers, 2)
    """
    groups = groups_of(6, 1)
    save_groups(groups, tmp_path / "groups.jsonl")
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "pool"), str(tmp_path / "groups.jsonl")]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert "UsageError: Cannot write" in last and "File too large. What the pool holds is whole: make room" in last
    assert not list((tmp_path / "pool").glob(".*"))
    pool = CandidatePool(tmp_path / "pool", ["r"])
    assert 4 <= len(pool) < 12 and not pool.damaged
    scorers = {"r": lambda images, prompts: [image.getpixel((0, 0))[1] for image in images]}
    generate_candidates(pool, groups, draw, scorers, 2)
    reference = CandidatePool(tmp_path / "reference", ["r"])
    generate_candidates(reference, groups, draw, scorers, 2)
    assert list(pool.images(reference.scores)) == list(reference.images(reference.scores))
    assert pool.scores == reference.scores
