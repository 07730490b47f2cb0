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

"""TRL's base configuration, a `TrainingArguments`, without the import of peft."""

import sys

import transformers.utils


def _import_without_peft() -> None:
    """
    Import `transformers.trainer_utils` without peft.

    It imports peft (transformers 5.23 to 5.24) for two classes that it compares a model with when training begins, and peft
    imports the machinery of all models: half of the five seconds that `craft train --help` took. Here its check for peft
    imports it when it is first asked. To be deleted when transformers does not import it there any more, which
    tests/upstream/test_upstream.py will notice.
    """
    available = transformers.utils.is_peft_available

    def unavailable() -> bool:
        return False

    transformers.utils.is_peft_available = unavailable
    try:
        import transformers.trainer_utils as trainer_utils
    finally:
        for module in list(sys.modules.values()):  # those that were imported meanwhile have taken it from there
            if getattr(module, "is_peft_available", None) is unavailable:
                module.is_peft_available = available

    def available_and_imported() -> bool:
        trainer_utils.is_peft_available = available
        if available():
            from peft import PeftMixedModel, PeftModel

            trainer_utils.PeftModel, trainer_utils.PeftMixedModel = PeftModel, PeftMixedModel
        return available()

    trainer_utils.is_peft_available = available_and_imported


if "transformers.trainer_utils" not in sys.modules:
    _import_without_peft()

from transformers.trainer_utils import HubStrategy  # noqa: E402
from trl.trainer.base_config import _BaseConfig as BaseConfig  # noqa: E402


__all__ = ["BaseConfig", "HubStrategy"]
