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

"""Shares of a list of groups, and which shards of a pool may hold rows of one."""

import re
from dataclasses import dataclass
from math import gcd


NAMED = re.compile(r"shard-\d+-(\d+)of(\d+)x([0-9a-f]+)-")


@dataclass(frozen=True)
class Share:
    """
    What a task has of a list of groups. A task writes it into the names of its shards, so that other tasks know without
    reading them that they hold nothing of theirs.

    Args:
        task (`int`):
            Number of the task, from 0.
        tasks (`int`):
            How many there are: of the groups, every so many-th is this task's.
        groups (`str`):
            A hash of the list.
    """

    task: int
    tasks: int
    groups: str

    def __str__(self) -> str:
        return f"{self.task}of{self.tasks}x{self.groups}"

    def may_be_in(self, shard: str) -> bool:
        """Whether a shard of this name may hold rows of this share: not if it is of a share that has no group in common."""
        named = NAMED.match(shard)
        if named is None or named[3] != self.groups:  # of one process, or of a list in which groups have other places
            return True
        # Some number leaves both remainders if and only if they differ by a multiple of the common divisor.
        return (self.task - int(named[1])) % gcd(self.tasks, int(named[2])) == 0
