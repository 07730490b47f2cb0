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


import numpy as np
import pytest

from craft_trl.conditions import Limit, describe, split_conditions
from craft_trl.errors import UsageError


def test_names_and_limits():
    compared, limits = split_conditions(["hpsv2", "nsfw<0.5", "pickscore", "aesthetic > 6"])
    assert compared == ["hpsv2", "pickscore"]
    assert limits == [Limit("nsfw", "<", 0.5), Limit("aesthetic", ">", 6.0)]
    assert list(map(str, limits)) == ["nsfw<0.5", "aesthetic>6"]


@pytest.mark.parametrize("text", ["nsfw<", "nsfw<a", "nsfw<=0.5", "nsfw<0.5<1", "nsfw<nan", "nsfw>inf"])
def test_no_limits(text):
    with pytest.raises(UsageError, match="is no limit; write NAME<NUMBER or NAME>NUMBER"):
        split_conditions([text])


def test_a_limit_holds_on_its_side_only():
    scores = np.array([0.4, 0.5, 0.6, np.nan])
    assert Limit("a", "<", 0.5).holds(scores).tolist() == [True, False, False, False]
    assert Limit("a", ">", 0.5).holds(scores).tolist() == [False, False, True, False]


def test_as_a_sentence():
    assert describe(["hpsv2", "pickscore"]) == "beat the image of the original prompt on hpsv2, pickscore"
    assert describe(["hpsv2", "nsfw<0.5"]) == "beat the image of the original prompt on hpsv2 and have nsfw < 0.5"
    assert describe(["nsfw<0.5"]) == "have nsfw < 0.5"
