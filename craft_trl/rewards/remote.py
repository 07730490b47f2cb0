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

"""A reward that another process or machine serves, such as a scorer that needs an environment of its own."""

import base64
import http.client
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image

from ..errors import ServerError, UsageError
from ..sources import first_line
from ..texts import one_line, parse_json
from .reward_model import check_lengths


MAX_BYTES = 1 << 20  # of an answer: scores of tens of thousands of images
MAX_PIXELS = 1 << 25  # of a request: 32 images of 1024 x 1024
MOST_CHARACTERS = 1000
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


class RemoteReward:
    """
    A reward behind HTTP, as `craft serve-reward` serves it; anything that speaks the same may stand there.

    `GET /` answers with JSON of `reward` (its name), `fingerprint` (what identifies the scorer and its weights) and
    `higher_is_better`. `POST /score` takes JSON of `prompts` and `images` (base64 of PNG files) and answers with JSON of
    `scores`, or with a status of 400 and more and JSON of `error`. Scores are the same as without the network between, up to
    the rounding of another batch size.

    A server that is away or busy is asked again with growing pauses; what it refuses is an error at once. Proxies from
    the environment are not used.

    Args:
        url (`str`):
            Where the server is, `http://host:port`.
        attempts (`int`, *optional*, defaults to `5`):
            How often to ask. The pauses between are 0.5, 1, 2, ... seconds.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds to wait for an answer.
        batch_size (`int`, *optional*, defaults to `16`):
            Images in a request, at most; of large images there are fewer.
    """

    def __init__(self, url: str, attempts: int = 5, timeout: float = 600.0, batch_size: int = 16):
        self.url = url.rstrip("/")
        self.attempts, self.timeout, self.batch_size = attempts, timeout, batch_size
        about = self._ask("/", None, {"reward": str, "fingerprint": str, "higher_is_better": bool})
        self.reward, self.fingerprint = about["reward"], about["fingerprint"]
        # They go into records and onto cards.
        for name in ("reward", "fingerprint"):
            if not (0 < len(about[name]) <= MOST_CHARACTERS and about[name].isprintable()):
                raise UsageError(
                    f"{self.url} has the {name} {about[name][:80]!r}: it must be 1 to {MOST_CHARACTERS} characters that "
                    "can be printed."
                )
        self.higher_is_better = about["higher_is_better"]

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        """Scores of shape `(N,)`, float32, of each image under the prompt at the same place."""
        check_lengths(images, prompts)
        scores = []
        for part in self._parts(images):
            with ThreadPoolExecutor() as threads:
                pngs = list(threads.map(to_png, images[part]))
            body = {"prompts": list(prompts[part]), "images": [base64.b64encode(png).decode() for png in pngs]}
            answer = self._ask("/score", json.dumps(body).encode(), {"scores": list})["scores"]
            if len(answer) != len(pngs) or not all(map(_is_score, answer)):
                raise ServerError(f"{self.url} answered {len(pngs)} images with {one_line(str(answer), 200)}.")
            scores += answer
        return torch.tensor(scores, dtype=torch.float32)

    def _parts(self, images: Sequence[Image.Image]) -> Iterator[slice]:
        """The images of each request: a batch, or fewer of large ones, which the server would not read."""
        start = pixels = 0
        for number, image in enumerate(images):
            size = image.width * image.height
            if number > start and (number - start == self.batch_size or pixels + size > MAX_PIXELS):
                yield slice(start, number)
                start, pixels = number, 0
            pixels += size
        if len(images) > start:
            yield slice(start, len(images))

    def _ask(self, path: str, body: bytes | None, expected: dict[str, type]) -> dict:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(2.0 ** (attempt - 2))
            try:
                with opener.open(request, timeout=self.timeout) as response:
                    answer = parse_json(_read(response, self.timeout).decode())
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}, {_said(error, self.timeout)}"
                if error.code not in (429, 502, 503, 504):
                    kind = UsageError if error.code < 500 else ServerError
                    raise kind(f"The reward at {self.url} refused: {problem}") from error
            except (OSError, http.client.HTTPException) as error:
                problem = first_line(getattr(error, "reason", None) or error)
            except ValueError as error:
                raise UsageError(f"{self.url}{path} does not answer with JSON. Is it `craft serve-reward`?") from error
            else:
                if not isinstance(answer, dict) or any(not isinstance(answer.get(k), t) for k, t in expected.items()):
                    said = one_line(str(answer), 200)
                    raise UsageError(f"{self.url}{path} answered {said}. Is it `craft serve-reward`?")
                return answer
        raise UsageError(
            f"The reward at {self.url} does not answer ({problem}; asked {self.attempts} times). Start it with "
            "`craft serve-reward NAME --port PORT`."
        )


def to_png(image: Image.Image) -> bytes:
    """A PNG of an image, of the frame it stands at; of modes that PNG does not have, such as CMYK, one in RGB."""
    buffer = io.BytesIO()
    (image if image.mode in PNG_MODES else image.convert("RGB")).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _is_score(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 1 << 1023)


def _read(response: http.client.HTTPResponse, timeout: float) -> bytes:
    """The body of an answer; a `ValueError` if it is too large for one, and an `OSError` if it takes too long."""
    body, end = b"", time.monotonic() + timeout
    while part := response.read1(1 << 16):
        body += part
        if len(body) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        if time.monotonic() > end:  # the timeout of a connection is for each byte
            raise TimeoutError("timed out")
    if response.length:
        raise http.client.IncompleteRead(body, response.length)
    return body


def _said(error: urllib.error.HTTPError, timeout: float) -> str:
    """What a server says about its refusal."""
    try:
        text = _read(error.fp, timeout).decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException):
        return "no reason given"
    try:
        text = str(parse_json(text)["error"])
    except (ValueError, KeyError, TypeError):
        pass
    return one_line(text, 1000) or "no reason given"
