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

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import UsageError
from ..ranges import Range, check_ranges
from ..sources import first_line


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
        model_dir (`str`, *optional*):
            Folder of the trained model. Defaults to `model/` of the run.
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
    model_dir: str | None = field(
        default=None, metadata={"help": "Folder of the trained model. Defaults to model/ of the run."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Make everything and upload nothing."})

    def __post_init__(self):
        if not self.repo_id:
            raise UsageError("repo_id is missing: give it as --repo_id org/name.")
        check_ranges(self)
        for name in ("repo_id", "dataset_repo_id", "base_model"):
            if getattr(self, name) is not None:
                check_repo_id(getattr(self, name), name)
        # The Hub's list grows, and no library has it: it says so itself where this is well formed and not on it.
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise UsageError(
                f"license {self.license!r} is no identifier of the Hub: those are like apache-2.0, openrail++ or cc-by-4.0, see "
                "https://huggingface.co/docs/hub/repositories-licenses, and other for what is not in the list."
            )

    @property
    def targets(self) -> dict[str, str]:
        """Id by kind of repository; the dataset first, so that a model's card never links to nothing."""
        ids = {"dataset": self.dataset_repo_id or self.repo_id, "model": self.repo_id}
        return {kind: repo_id for kind, repo_id in ids.items() if self.what in ("all", kind)}


def check_repo_id(repo_id: str, option: str = "repo_id") -> None:
    """Raise a [`UsageError`] unless a text may be the id of a repository, `org/name`."""
    if "/" not in repo_id:
        raise UsageError(f"{option} must be org/name or user/name, got {repo_id!r}.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"{option} {repo_id!r} is no name for a repository: {first_line(error)}") from error
