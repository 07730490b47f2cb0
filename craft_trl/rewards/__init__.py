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

"""
Reward models: callables `(images: list[PIL.Image], prompts: list[str]) -> torch.Tensor` of shape `(N,)`, float32.

Larger is better, unless the callable has an attribute `higher_is_better = False`. A recipe names rewards as

- `hpsv2`: a built-in one with its published weights,
- `hpsv2=./folder` or `hpsv2=org/repository`: a built-in one with other weights,
- `anything=package.module:attribute` or `anything=./file.py:attribute`: the user's own callable; a module is one that is
  installed or lies in the working directory,
- `anything=http://host:port`: one that `craft serve-reward` serves, here or on another machine,
- `anything=vlm:MODEL@http://host:port/v1?questions=FILE`: a vision-language model that is asked, see [`VLMJudge`].
"""

import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ..conditions import OF_TEXT, quoted_texts
from ..errors import UsageError
from ..sources import HubFiles, content_hash, first_line, looks_like_hub_id, source_hash
from .weights import (
    AESTHETIC_HEAD,
    BERT_TOKENIZER,
    CLIP_L,
    HPSV2,
    IMAGE_REWARD,
    KINDS,
    MASK2FORMER,
    MPS,
    PICKSCORE,
    Weights,
)


if TYPE_CHECKING:  # naming rewards costs no import of PyTorch
    import torch

    from .vlm.judge import VLMJudge
    from .vlm.spec import JudgeSpec

Reward = Callable[[list[Image.Image], list[str]], Any]  # Any: a torch.Tensor


@dataclass(frozen=True)
class BuiltIn:
    """
    A reward model of this package.

    Args:
        path (`str`):
            Its module here and its class, so that naming rewards costs no import of their libraries.
        weights (`tuple[Weights, ...]`):
            Its published weights. None of a reward that is no network of ours: it scores where and how it does.
    """

    path: str
    weights: tuple[Weights, ...] = ()


REWARDS = {
    "hpsv2": BuiltIn("hpsv2:HPSv2", (HPSV2["v2.1"],)),
    "pickscore": BuiltIn("pickscore:PickScore", (PICKSCORE,)),
    "aesthetic": BuiltIn("aesthetic:Aesthetic", (CLIP_L, AESTHETIC_HEAD)),
    "imagereward": BuiltIn("image_reward:ImageReward", (IMAGE_REWARD, BERT_TOKENIZER)),
    "mps": BuiltIn("mps:MPS", (MPS,)),
    "clipscore": BuiltIn("clip_score:CLIPScore", (CLIP_L,)),
    "geneval": BuiltIn("geneval.judge:GenEval", (MASK2FORMER,)),
    "ocr": BuiltIn("ocr:OCR"),
}


@dataclass(frozen=True)
class RewardSpec:
    """
    A reward as a recipe names it: `NAME` or `NAME=SOURCE`.

    Args:
        name (`str`):
            Name of the score's column.
        source (`str`, *optional*):
            Folder or Hub id of the weights of the built-in reward `name`, or `module:attribute` or `file.py:attribute`
            of the user's own, or the URL of a served one, or a judge to ask, see [`JudgeSpec`]. Defaults to the built-in reward with its published weights.
    """

    name: str
    source: str | None = None

    @classmethod
    def parse(cls, text: str) -> "RewardSpec":
        """Read `NAME` or `NAME=SOURCE`, and check all that can be checked without loading anything."""
        name, _, source = text.partition("=")
        spec = cls(name, source or None)
        if not name.isidentifier():
            raise UsageError(f"Reward {text!r}: {name!r} cannot name a column; use letters, digits and underscores.")
        if spec.remote:
            _check_url(text, source)
        elif spec.vlm:
            spec.judge  # noqa: B018 - parsed now, so that a mistake is found now
        elif not spec.custom and name not in REWARDS:
            raise UsageError(
                f"There is no reward {name!r}. Known are {', '.join(REWARDS)}; your own is named as "
                f"`{name}=module:attribute` or `{name}=./file.py:attribute`, a served one as `{name}=http://host:port`, and a "
                f"model that is asked as `{name}=vlm:MODEL@http://host:port/v1`."
            )
        elif spec.custom:
            module = source.rpartition(":")[0]
            if module.endswith(".py") and not Path(module).is_file():
                raise UsageError(f"Reward {text!r}: there is no file {module}.")
            if not module.endswith(".py") and not all(map(str.isidentifier, module.split("."))):
                raise UsageError(f"Reward {text!r}: {module!r} is neither a file that ends in .py nor a module.")
        elif source and not spec.weighted:
            raise UsageError(f"Reward {text!r}: {name} has no weights to choose: name it {name}.")
        elif source and not looks_like_hub_id(source) and not Path(source).is_dir():
            raise UsageError(f"Reward {text!r}: there is no folder {source}.")
        return spec

    @property
    def remote(self) -> bool:
        return self.source is not None and self.source.startswith(("http://", "https://"))

    @property
    def vlm(self) -> bool:
        return self.source is not None and self.source.startswith("vlm:")

    @property
    def custom(self) -> bool:
        return self.source is not None and ":" in self.source and not self.remote and not self.vlm

    @cached_property
    def judge(self) -> "JudgeSpec":
        """Of a vision-language model, where it is and what it is asked."""
        from .vlm.spec import JudgeSpec  # here: other rewards do without

        return JudgeSpec.parse(self.name, self.source)

    @cached_property
    def _asked(self) -> "VLMJudge":
        """The judge, tried once whether it sees."""
        from .vlm.judge import VLMJudge

        return VLMJudge(self.judge, self.name)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that prompts must have for it: a benchmark judges prompts of its own only."""
        if self.vlm:
            return self.judge.template.needs
        return ("tag", "include") if self.name == "geneval" and not (self.custom or self.remote) else ()

    @property
    def weighted(self) -> bool:
        """Whether it is a network of this package, with weights that go to a device in a precision."""
        return not (self.custom or self.remote or self.vlm) and bool(REWARDS[self.name].weights)

    def fingerprint(self) -> str:
        """
        What identifies the scorer: the content of its folder or file, its Hub id and revision, the version of a package, or,
        of a served one, what its server says of itself; of a judge that is asked, what it is asked too. A server that does not
        answer is an error, as is a package that is not there.
        """
        if self.remote or self.vlm:
            return self.load().fingerprint
        if self.custom:
            module, _, attribute = self.source.rpartition(":")
            return f"{content_hash(module) if module.endswith('.py') else module}:{attribute}"
        if self.source:
            return source_hash(self.source)
        if not self.weighted:
            from .ocr import installed

            return installed()
        return "+".join(weights.name for weights in REWARDS[self.name].weights)

    def hub_files(self) -> list[HubFiles]:
        """What it is loaded from on the Hub."""
        if not self.weighted:
            return []
        own = [weights.hub_files for weights in REWARDS[self.name].weights]
        if self.source and self.source != own[0].repo_id:
            own = [HubFiles(self.source, KINDS)] if not Path(self.source).is_dir() else []
        if self.name == "geneval":
            from .geneval.colors import hub_files

            own.append(hub_files())
        return own

    def load(self, device: "str | torch.device" = "cpu", dtype: "torch.dtype | None" = None) -> Reward:
        """
        The callable, with its weights on `device` in `dtype`, float32 by default. The user's own and served ones are where
        and what they are.
        """
        if self.remote:
            from .remote import RemoteReward

            return RemoteReward(self.source)
        if self.vlm:
            return self._asked
        if self.custom:
            return _load_custom(self.source)
        module, attribute = REWARDS[self.name].path.split(":")
        reward_class = getattr(importlib.import_module(f".{module}", __package__), attribute)
        if not self.weighted:
            return reward_class()
        options = {"source": self.source, "dtype": dtype}
        return reward_class(device=device, **{name: value for name, value in options.items() if value is not None})


def _check_url(text: str, url: str) -> None:
    if re.match("https?://[^/]*@", url):
        # It would end up in logs, fingerprints and cards.
        raise UsageError(f"Reward {text.partition('=')[0]!r}: its URL must not carry a user name or password.")
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or too large
        valid = False
    if not valid or parts.query or parts.fragment:
        raise UsageError(f"Reward {text!r}: a served reward is named like {text.partition('=')[0]}=http://host:8000.")


def _load_custom(source: str) -> Reward:
    module_name, _, attribute = source.rpartition(":")
    if module_name.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(module_name).stem, module_name)
        module = importlib.util.module_from_spec(spec)
        with _named(repr(source)):
            spec.loader.exec_module(module)
    else:
        # The folder where one stands is searched too, last, as `python -m` would: `craft` itself does not.
        folder = os.getcwd()
        sys.path += [folder] if (missing := folder not in sys.path) else []
        try:
            importlib.invalidate_caches()
            with _named(repr(source)):
                module = importlib.import_module(module_name)
        except UsageError as error:
            if not isinstance(missing_module := error.__cause__, ModuleNotFoundError):
                raise
            raise UsageError(
                f"Reward {source!r}: there is no module {missing_module.name}, neither installed nor in this folder. A file is "
                "named by its path, ./file.py:attribute."
            ) from error
        finally:
            if missing:
                sys.path.remove(folder)
    if not hasattr(module, attribute):
        raise UsageError(f"Reward {source!r}: {module_name} has no attribute {attribute!r}.")
    reward = getattr(module, attribute)
    if inspect.isclass(reward):
        with _named(repr(source)):
            reward = reward()
    if not callable(reward):
        raise UsageError(f"Reward {source!r}: {attribute} must be a function or a class, got {type(reward).__name__}.")
    return reward


def parse_rewards(texts: list[str]) -> list[RewardSpec]:
    """Specs of a recipe's list of rewards, names all different."""
    specs = [RewardSpec.parse(text) for text in texts]
    names = [spec.name for spec in specs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"Reward {repeated[0]!r} is named twice; give the second one another name, NAME=SOURCE.")
    return specs


def check_asked(specs: Iterable[RewardSpec], prompts: Iterable[str], source: str) -> None:
    """Raise a [`UsageError`] if `ocr` is among the rewards, and none of the prompts asks for text."""
    if any(spec.name in OF_TEXT for spec in specs) and not any(map(quoted_texts, prompts)):
        raise UsageError(
            f"ocr reads the text that a prompt asks for in quotes, and no prompt of {source} does: leave it out, or take prompts "
            'such as: a sign that says "OPEN".'
        )


def lower_is_better(rewards: Mapping[str, Reward]) -> set[str]:
    """Names of the rewards of which less is better, which say so by `higher_is_better = False`."""
    return {name for name, reward in rewards.items() if not getattr(reward, "higher_is_better", True)}


def score(rewards: dict[str, Reward], images: list[Image.Image], prompts: list[str]) -> dict[str, np.ndarray]:
    """
    Scores of every reward for every image, float32 arrays of shape `(N,)`, in one pass over the images.

    Images are decoded on threads and preprocessed there once for all built-in rewards that see them alike, while the
    networks score those that are ready. Float32 is that, and not TF32, while they do. An image that cannot be scored is an
    error that names it. A scorer that fails, returns anything but one number for each image, or one that is not finite, is
    a [`UsageError`] that names it: a broken score must never decide what a model is trained on.
    """
    # Here, so that naming rewards costs no import of torchvision.
    from ..arithmetic import exact_float32
    from .preprocessing import prepare
    from .reward_model import RewardModel, check_lengths

    check_lengths(images, prompts)
    built_in = {name: reward for name, reward in rewards.items() if isinstance(reward, RewardModel)}
    kinds = list(dict.fromkeys(reward.preprocess for reward in built_in.values()))
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in built_in}
    with exact_float32():
        for part, pixel_values in prepare(images, kinds, RewardModel.batch_size):
            for name, reward in built_in.items():
                # On the GPU, while the next network is started.
                parts[name].append(reward.score_pixels(pixel_values[reward.preprocess], prompts[part]))
        scores = {}
        for name, reward in rewards.items():
            if name in built_in:
                values = [value for part in parts[name] for value in part.tolist()]
            else:
                with _named(name):
                    values = reward(images, prompts)
            scores[name] = _check_scores(name, values, prompts)
    return scores


@contextmanager
def _named(reward: str) -> Iterator[None]:
    """What the user's own code raises inside, as one line that names the reward and the place in that code."""
    import torch

    try:
        yield
    except (UsageError, torch.OutOfMemoryError):
        raise  # the first says what to do, the second does not lie with the reward
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        frames = [frame for frame in frames if "site-packages" not in frame.filename] or frames
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise UsageError(f"Reward {reward} failed: {type(error).__name__}: {first_line(error)}{place}.") from error


def _check_scores(name: str, values: Any, prompts: list[str]) -> np.ndarray:
    """What a reward returned as float32 of shape `(N,)`: an array, a tensor of any device and precision, or a list of numbers."""
    import torch

    def plain(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach().cpu()  # NumPy has no bfloat16
        return (value.float() if value.is_floating_point() else value).numpy()

    try:
        if isinstance(values, (list, tuple)):
            values = [plain(value) for value in values]
        array = np.asarray(plain(values))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"Reward {name} returned no list of numbers: {first_line(error)}.") from error
    if array.shape != (len(prompts),):
        raise UsageError(
            f"Reward {name} returned shape {array.shape} for {len(prompts)} images; it must be ({len(prompts)},)."
        )
    if array.dtype.kind not in "biuf":
        raise UsageError(f"Reward {name} returned {values!r:.100}; a score must be a number.")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        broken = int(np.flatnonzero(~np.isfinite(array))[0])
        raise UsageError(f"Reward {name} is {array[broken]} for the prompt {prompts[broken]!r}.")
    return array
