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


"""How a command ends: with an exit code and one line; where memory runs out, with what to lower, whichever part asked for it."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from craft_trl.candidates.drawing import fill_pool
from craft_trl.candidates.pool import CandidatePool
from craft_trl.errors import NothingToDoError, ServerError, UsageError, exit_code, out_of_memory
from craft_trl.rewards import loading
from craft_trl.rewards.reward_model import RewardModel

from .helpers import SCORERS, Draw, groups_of


GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.10 GiB is free. "
    "Including non-PyTorch memory, this process has 22.53 GiB memory in use. Of the allocated memory 21.33 GiB is"
)
MPS = (
    "MPS backend out of memory (MPS allocated: 5.00 GB, other allocations: 1.00 GB, max allowed: 6.80 GB). Tried to "
    "allocate 500.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit"
)


def no_memory(*args, **kwargs):
    torch.empty(10**15)  # a petabyte: what this machine says itself


def outcome(work, capsys):
    code = exit_code(work)
    *bars, said = capsys.readouterr().err.strip().split("\n")
    assert said.startswith("craft: ") and all("%|" in bar for bar in bars)
    return code, said


class TestWhatItIs:
    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (torch.OutOfMemoryError(GPU), "CUDA out of memory. Tried to allocate 2.00 GiB)."),
            (RuntimeError(MPS), "max allowed: 6.80 GB). Tried to allocate 500.00 MB)."),
            (
                RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
                "(CUDA error: out of memory CUDA",
            ),
            (
                RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
                "CUBLAS_STATUS_ALLOC",
            ),
            (MemoryError(), "(MemoryError)."),
        ],
    )
    def test_said(self, error, said, capsys):
        def work():
            raise error

        code, err = outcome(work, capsys)
        assert code == 1 and err.startswith("craft: The memory ran out (") and said in err and len(err) < 400
        assert "`craft plan` computes what each stage takes" in err and "the same command goes on from there" in err

    @pytest.mark.parametrize("work", [no_memory, lambda: np.zeros(10**15)])
    def test_of_this_machine(self, work, capsys):
        code, err = outcome(work, capsys)
        assert code == 1 and "ried to allocate 4000000000000000 bytes" in err or "Unable to allocate 7.11 PiB" in err

    @pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), KeyError("out of memory"), ValueError("")])
    def test_is_something_else(self, error):
        assert out_of_memory(error) is None

        def work():
            raise error

        with pytest.raises(type(error)):
            exit_code(work)

    def test_others_are_as_before(self, capsys):
        for error, code in ((UsageError("a"), 2), (NothingToDoError("b"), 1)):

            def work(error=error):
                raise error

            assert outcome(work, capsys)[0] == code


class TestWhoAsked:
    def test_drawing(self, tmp_path, capsys):
        """What was drawn before is in the pool."""
        draw, keys = Draw(), [key for group in groups_of(4, 1) for key in group.keys]
        pool = CandidatePool(tmp_path, SCORERS)
        fill = lambda generate: fill_pool(pool, keys, generate, SCORERS, 2)  # noqa: E731
        code, err = outcome(lambda: fill(lambda *a: draw(*a) if sum(draw.batches) < 4 else no_memory()), capsys)
        assert code == 1 and len(CandidatePool(tmp_path, SCORERS)) == 4
        assert "Lower batch_size, set reward_device: offload, or halve the rewards with reward_dtype: bfloat16." in err

    @pytest.mark.parametrize(
        ("module", "remedy"),
        [
            ("expansion.local", "Lower expander_batch_size, or name a smaller expander_model."),
            (
                "trainer.diffusion_trainer",
                "Lower per_device_train_batch_size, which changes no result; set activation",
            ),
            (
                "trainer.guard",
                "Name fewer or smaller guard_rewards and held_out_rewards, lower per_device_train_batch",
            ),
            ("evaluation.evaluate", "Lower batch_size, set reward_device: offload, or halve the judges with reward_d"),
            ("candidates.generation", "Lower batch_size, set reward_device: offload"),
        ],
    )
    def test_other_modules(self, module, remedy, capsys):
        """A guard is of the trainer, but not what trains; it calls rewards, as others do."""
        work = compiled(importlib.import_module(f"craft_trl.{module}"))
        assert remedy in outcome(work, capsys)[1]

    def test_a_file_is_not_at_fault(self):
        """Nobody should download weights again since there was no memory for them."""
        with (
            pytest.raises(RuntimeError, match="ried to allocate"),
            loading.explain("model.safetensors cannot be read"),
        ):
            no_memory()


def compiled(module):
    """A function of a module, as a traceback sees it, for which there is no memory."""
    names = {"torch": torch, "__name__": module.__name__}
    exec("def work(*args, **kwargs):\n    torch.empty(10**15)", names)  # noqa: S102
    return names["work"]


def test_a_reward_takes_smaller_batches():
    """On a GPU, a CPU and MPS alike."""

    class Reward(RewardModel):
        def forward(self, pixels):
            if len(pixels) > 2:
                raise RuntimeError(MPS)
            return pixels.sum(1)

    reward = Reward("cpu", torch.float32)
    pixels = torch.arange(14.0).view(7, 2)
    assert torch.equal(reward.in_batches(reward.forward, pixels), pixels.sum(1)) and reward.batch_size in (1, 2)


def test_telling_it_costs_no_import_of_torch():
    code = "import sys; from craft_trl.errors import out_of_memory; out_of_memory(MemoryError()); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("x must be y."), 2, "craft: error: x must be y.\n"),
        (NothingToDoError("no group passed."), 1, "craft: no group passed.\n"),
        (ServerError("the reward failed."), 1, "craft: the reward failed.\n"),
        (UsageError("got 'a\nb\u2028c'."), 2, "craft: error: got 'a b c'.\n"),
        (UsageError(f"got {'a' * 5000!r}; it must be short."), 2, f"craft: error: got '{'a' * 495} ... {'a' * 230}'; it must be short.\n"),
    ],
)  # fmt: skip
def test_one_line(capsys, error, code, said):
    def work():
        raise error

    assert exit_code(work) == code
    assert capsys.readouterr().err == said
