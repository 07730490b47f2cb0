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

"""Keeping other libraries from saying what tells a user nothing."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_logs(level: int = logging.WARNING) -> Iterator[None]:
    """Keep libraries from warning of weights that they did not load or that they have no use for: we check all that."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


def quiet_offline() -> None:
    """
    Keep huggingface_hub (2.4) and diffusers (0.42) from saying, of each model and again and again, that HF_HUB_OFFLINE keeps them
    from the Hub and how to unset it: it was set to go without.
    """
    for name in ("huggingface_hub.hf_api", "diffusers.pipelines.pipeline_utils"):
        logging.getLogger(name).addFilter(_says_more)


def _says_more(record: logging.LogRecord) -> bool:
    return "offline mode is enabled" not in record.getMessage()


@contextlib.contextmanager
def quiet_casts() -> Iterator[None]:
    """
    Keep diffusers (0.42) from warning, of each model that it casts while it loads one, of modules to be kept in float32 of which
    there are none. What we cast ourselves, `cast` of candidates/loading.py does. Delete both when it says so of those only that
    have some.
    """

    def has_some(record: logging.LogRecord) -> bool:
        return "should be kept in float32: []" not in record.getMessage()

    logger = logging.getLogger("diffusers.models.modeling_utils")
    logger.addFilter(has_some)
    try:
        yield
    finally:
        logger.removeFilter(has_some)


@contextlib.contextmanager
def quiet_bars() -> Iterator[None]:
    """Keep diffusers and transformers from showing bars while they load a model's parts. Downloads keep theirs."""
    import diffusers.utils.logging
    import transformers.utils.logging
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    libraries = diffusers.utils.logging, transformers.utils.logging
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    downloads = not are_progress_bars_disabled()
    for library in shown:
        library.disable_progress_bar()
    if downloads:
        enable_progress_bars()  # transformers takes them to be its own
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
