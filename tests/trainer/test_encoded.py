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


"""Encoded data on the disk: written row by row, read row by row, the same bytes as of one write."""

import pickle
import weakref
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from safetensors.torch import load_file, save_file

from craft_trl import CraftTrainer
from craft_trl.trainer.checkpoints import order_metadata
from craft_trl.trainer.encoded import RowWriter, join
from craft_trl.trainer.training_samples import TrainingSamples

from ..helpers import config, make_dataset


def test_the_file_is_that_of_safetensors(tmp_path):
    """Of several parts, one of them empty, and texts of several lengths."""
    torch.manual_seed(0)
    lengths = [3, 5, 1, 4]
    texts = [torch.randn(length, 2) for length in lengths]
    rows = {
        "prompt/embeds": texts,
        "prompt/mask": [torch.ones(length, dtype=torch.int64) for length in lengths],
        "latent_mean": list(torch.randn(4, 2, 3, 3, dtype=torch.bfloat16)),
        "prompt_index": list(torch.arange(4)),
        "image/guidance": list(torch.rand(4)),
    }
    parts, indices = [], []
    for start, end in ((0, 3), (3, 3), (3, 4)):
        parts.append(tmp_path / f"part-{len(parts)}")
        with RowWriter(parts[-1]) as writer:
            for name, values in rows.items():
                for value in values[start:end]:
                    writer.add(name, value)
        indices.append(writer.index)
    metadata = {"fingerprint": "é", "scaling_factor": "0.5"}
    join(parts, indices, tmp_path / "joined", metadata)
    whole = {
        name: torch.nn.utils.rnn.pad_sequence(values, batch_first=True) if "prompt/" in name else torch.stack(values)
        for name, values in rows.items()
    }
    save_file(whole, tmp_path / "whole", metadata)
    order_metadata(tmp_path / "whole")
    assert (tmp_path / "joined").read_bytes() == (tmp_path / "whole").read_bytes()
    read = load_file(tmp_path / "joined")
    assert read["prompt/mask"].tolist()[2] == [1, 0, 0, 0, 0] and torch.equal(read["prompt/embeds"][3, :4], texts[3])


def test_a_row_leaves_the_memory(tmp_path):
    value = torch.randn(1_000_000)
    with RowWriter(tmp_path / "rows") as writer:
        writer.add("a", value)
        assert (tmp_path / "rows").stat().st_size == 4_000_000
        gone = weakref.ref(value)
        del value
        assert gone() is None


def test_images_of_several_sizes_are_not_filled_up(tmp_path):
    with RowWriter(tmp_path / "rows") as writer:
        writer.add("latent_mean", torch.zeros(4, 8, 8))
        writer.add("latent_mean", torch.zeros(4, 8, 4))
    with pytest.raises(ValueError, match=r"latent_mean is of shape \(4, 8, 8\) in one row and \(4, 8, 4\) in another"):
        join([tmp_path / "rows"], [writer.index], tmp_path / "joined", {})


def test_workers_map_the_file_themselves(tiny, tmp_path):
    """What a worker that does not begin as a copy of this process is given: no tensor, which would be copied as a whole."""
    samples = CraftTrainer(str(tiny / "pipeline"), config(tmp_path), make_dataset()).train_dataset
    assert isinstance(samples, TrainingSamples)
    sent = bytes(ForkingPickler.dumps(samples))
    assert len(sent) < 4000 and not samples.encoded["latent_mean"].is_shared()
    received = pickle.loads(sent)
    for k in (0, 5, 3):
        assert all(torch.equal(value, received[k][name]) for name, value in samples[k].items())
    assert received.encoded.keys() == samples.encoded.keys()
