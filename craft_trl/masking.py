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

"""Keys, tokens and passwords: how they are known, and kept out of what is printed, recorded or published."""

import re
from collections.abc import Iterable
from typing import Any


MASK = "***"
# Of settings and of environment variables. `max_tokens` is none: what it holds is no text.
SECRET_NAME = re.compile(
    r"(?:key|secret|passwd|password|passphrase|credential|authorization|cookie)s?$|(?:token|_pat)$", re.IGNORECASE
)
TOKENS = re.compile(
    r"hf_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def mask_settings(value: Any, name: str = "") -> Any:
    """A setting, with texts under names such as `api_key`, at any depth, and texts that look like a token masked."""
    if isinstance(value, dict):
        return {key: mask_settings(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [mask_settings(item, name) for item in value]
    is_secret = isinstance(value, str) and value and (SECRET_NAME.search(name) or TOKENS.search(value))
    return MASK if is_secret else value


def find_secrets(value: Any, name: str = "") -> set[str]:
    """The texts that [`mask_settings`] masks."""
    if isinstance(value, dict):
        return set().union(*(find_secrets(item, str(key)) for key, item in value.items()))
    if isinstance(value, list):
        return set().union(*(find_secrets(item, name) for item in value))
    return {value} if mask_settings(value, name) != value else set()


def mask_text(text: str, secrets: Iterable[str]) -> str:
    """A text without these secrets, nor anything that looks like a token."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return TOKENS.sub(MASK, text)
