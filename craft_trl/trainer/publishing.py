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


"""The Hub as a trainer sees it: a card that is true of a diffusion model, and nothing uploaded but the model."""

from pathlib import Path

from huggingface_hub import HfApi

from ..errors import UsageError
from ..hub.release import model_release
from ..hub.upload import check_repository, upload
from .facts import write_card


class PublishingMixin:
    """
    What of the Trainer's dealings with the Hub is otherwise for a diffusion model. It goes before [`~transformers.Trainer`] among
    the bases of a class that has `args`.
    """

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the model card, `README.md`, into the output folder, and what it is made from for `craft push`."""
        # TRL's card is for language models: its library, pipeline tag and example would all be wrong.
        if self.is_world_process_zero():
            write_card(self, model_name, dataset_name, tags)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        # The Trainer makes the repository before there is anything to put into it. Only see that it could be made.
        args = self.args
        if not args.hub_model_id:
            raise UsageError("push_to_hub needs the repository: hub_model_id: org/name.")
        self.hub_model_id = args.hub_model_id
        if self.is_world_process_zero():
            check_repository(HfApi(token=token), args.hub_model_id, "model", args.hub_private_repo)

    def push_to_hub(self, commit_message: str | None = "End of training", **kwargs) -> None:
        """Upload the saved model with its card. `craft push` does it with the results of an evaluation."""
        # The Trainer uploads its whole output folder: encoded data, records, paths of this machine.
        args = self.args
        if self.is_world_process_zero():
            files = model_release(Path(args.output_dir), args.hub_model_id)
            upload(HfApi(), args.hub_model_id, "model", args.hub_private_repo, files, commit_message)
