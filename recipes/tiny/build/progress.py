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

"""Progress bars that suit a terminal as well as a log file."""

import sys

from tqdm import tqdm


def progress_bar(name: str, total: int, unit: str, done: int = 0) -> tqdm:
    """A bar with rate and time left, redrawn often on a terminal and every half minute in a log file."""
    seconds = 0.2 if sys.stderr.isatty() else 30
    return tqdm(desc=f"  {name}", total=total, initial=done, unit=f" {unit}", mininterval=seconds, dynamic_ncols=True)
