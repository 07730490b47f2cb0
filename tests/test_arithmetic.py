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


"""Arithmetic that is exact while it matters, and the user's own before and after."""

import threading

import pytest
import torch

from craft_trl.arithmetic import exact_float32


BACKENDS = {
    "all": torch.backends,
    "cudnn": torch.backends.cudnn,
    "conv": torch.backends.cudnn.conv,
    "matmul": torch.backends.cuda.matmul,
    "cpu conv": torch.backends.mkldnn.conv,
    "cpu matmul": torch.backends.mkldnn.matmul,
}
EXACT = dict.fromkeys(("conv", "matmul", "cpu conv", "cpu matmul"), "ieee")


def precisions() -> dict[str, str]:
    return {name: backend.fp32_precision for name, backend in BACKENDS.items()}


def inside() -> dict[str, str]:
    return {name: precision for name, precision in precisions().items() if name in EXACT}


@pytest.fixture(params=["PyTorch's own", "matmul high", "a trainer in bfloat16", "cuDNN without TF32"])
def user(request):
    """What a user, or a library, has set."""
    before = precisions()
    if request.param == "matmul high":
        torch.set_float32_matmul_precision("high")
    elif request.param == "a trainer in bfloat16":
        torch.backends.fp32_precision = "tf32"  # transformers' `enable_tf32`
    elif request.param == "cuDNN without TF32":
        torch.backends.cudnn.allow_tf32 = False
    yield precisions()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.fp32_precision = "none"
    for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
        backend.fp32_precision = "none"
    assert precisions() == before


def test_inside_and_afterwards(user):
    with exact_float32():
        assert inside() == EXACT
        with exact_float32():
            assert inside() == EXACT
        assert inside() == EXACT
    assert precisions() == user
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert precisions() == user
    # What falls back on a general setting still does.
    torch.backends.fp32_precision = "none"
    assert torch.backends.mkldnn.conv.fp32_precision == "none"
    # PyTorch's older names do not complain of a mixture.
    assert torch.backends.cudnn.allow_tf32 in (True, False) and torch.get_float32_matmul_precision()


def test_while_any_thread_needs_it():
    """A thread that leaves does not take it from another one that is still inside."""
    entered, leave, before = threading.Event(), threading.Event(), precisions()

    def other():
        with exact_float32():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with exact_float32():
        thread.start()
        entered.wait(10)
    assert inside() == EXACT
    leave.set()
    thread.join()
    assert precisions() == before
