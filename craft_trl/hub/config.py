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

"""Settings of a push to the Hub."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..errors import UsageError
from ..ranges import Range, check_ranges


@dataclass
class PushConfig:
    """
    Configuration of `craft push`.

    Parameters:
        repo_id (`str`):
            `org/name` on the Hub. Model and dataset may have the same: they are repositories of two kinds.
        what (`"all"`, `"model"` or `"dataset"`, *optional*, defaults to `"all"`):
            What to push.
        private (`bool`, *optional*):
            Whether the repositories are private. Defaults to what they are, or the account's setting for new ones.
        dataset_repo_id (`str`, *optional*):
            Another `org/name` for the dataset.
        base_model (`str`, *optional*):
            Hub id of the base model, where the run was given a folder.
        license (`str`, *optional*):
            Identifier of the licence, such as `openrail++`. Defaults to the one on the base model's card.
        candidate_images (`"kept"` or `"all"`, *optional*, defaults to `"kept"`):
            Which rows of the configuration `candidates` have their picture: those that a filter keeps, or all.
        max_shard_size (`int`, *optional*, defaults to `500000000`):
            Bytes of a parquet file, about.
        dry_run (`bool`, *optional*, defaults to `False`):
            Make everything and upload nothing. The cards and the dataset are in `hub/` of the run then.
    """

    repo_id: str = field(default=None, metadata={"help": "org/name on the Hub."})
    what: Literal["all", "model", "dataset"] = field(default="all", metadata={"help": "What to push."})
    private: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the repositories are private. Defaults to what they are, or the account's setting."
        },
    )
    dataset_repo_id: str | None = field(default=None, metadata={"help": "Another org/name for the dataset."})
    base_model: str | None = field(
        default=None, metadata={"help": "Hub id of the base model, where the run was given a folder."}
    )
    license: str | None = field(
        default=None,
        metadata={"help": "Identifier of the licence, such as openrail++. Defaults to that on the base model's card."},
    )
    candidate_images: Literal["kept", "all"] = field(
        default="kept", metadata={"help": "Which rows of `candidates` have their picture."}
    )
    max_shard_size: Annotated[int, Range(1, 10**12)] = field(
        default=500_000_000, metadata={"help": "Bytes of a parquet file, about."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Make everything and upload nothing."})

    def __post_init__(self):
        if not self.repo_id:
            raise UsageError("repo_id is missing: give it as --repo_id org/name.")
        check_ranges(self)

    @property
    def targets(self) -> dict[str, str]:
        """Id by kind of repository; the dataset first, so that a model's card never links to nothing."""
        ids = {"dataset": self.dataset_repo_id or self.repo_id, "model": self.repo_id}
        return {kind: repo_id for kind, repo_id in ids.items() if self.what in ("all", kind)}
