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

"""An OpenAI-compatible endpoint on loopback, with the faults that a test writes into it."""

import base64
import io
import json
import math
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


def good_variants(prompt: str, num_variants: int) -> list[str]:
    return [f"{prompt}, seen from {number} metres, in soft light" for number in range(20, 20 + num_variants)]


class ChatServer:
    """
    Answers `POST /v1/chat/completions` with good variants of the prompt it is asked for.

    Args:
        behave (`Callable[[int, str, dict], Any]`, *optional*):
            Given the number of the request, its prompt and its body, what to do instead: `None` for nothing special, a
            `str` as the content of the answer, a tuple of status, headers and body as the response, `"hang"` to say nothing
            for long, `"cut"` to break off in the middle, `"trickle"` to send a byte now and then.
    """

    def __init__(self, behave: Callable[[int, str, dict], Any] | None = None, port: int = 0):
        self.behave = behave or (lambda number, prompt, body: None)
        self.models: list[dict] | None = None  # of `GET /v1/models`
        self.gets: list[str] = []
        self.others: dict[str, Callable[[dict], Any]] = {}  # by path, what is answered there
        self.requests: list[dict] = []  # bodies
        self.headers: list[dict] = []
        self.times: list[float] = []
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                owner.gets.append(self.path)
                if owner.models is None or self.path != "/v1/models":
                    return self.send(404, {}, b'{"error": {"message": "there is no such path"}}')
                return self.send(200, {}, json.dumps({"object": "list", "data": owner.models}).encode())

            def do_POST(self):
                owner.times.append(time.monotonic())
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    number = len(owner.requests)
                    owner.requests.append(body)
                    owner.headers.append(dict(self.headers))
                if self.path in owner.others:
                    return self.send(200, {}, json.dumps(owner.others[self.path](body)).encode())
                if self.path != "/v1/chat/completions":
                    return self.send(404, {}, b'{"error": {"message": "there is no such path"}}')
                reply = owner.behave(number, owner.prompt_of(body), body)
                reply = owner.answer(body) if reply is None else reply
                if isinstance(reply, tuple):
                    return self.send(*reply)
                if reply == "hang":
                    owner.stopped.wait(30)
                    return None
                data = completion(reply).encode()
                if reply in ("cut", "trickle"):
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[:40])
                    for byte in data[40:] if reply == "trickle" else b"":
                        if owner.stopped.wait(0.1):
                            break
                        self.wfile.write(bytes([byte]))
                    self.close_connection = True
                    return None
                return self.send(200, {}, data)

            def send(self, status, headers, body):
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

            def handle(self):
                try:
                    super().handle()
                except ConnectionError:
                    pass  # the client gave up, as it should in some tests

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @staticmethod
    def prompt_of(body: dict) -> str:
        """The prompt that a request asks for."""
        return json.loads(body["messages"][-1]["content"])["prompt"]

    @staticmethod
    def answer(body: dict) -> Any:
        """What it answers if it behaves."""
        asked = json.loads(body["messages"][-1]["content"])
        return json.dumps({"variants": good_variants(asked["prompt"], asked["num_variants"])})

    def prompts(self) -> list[str]:
        """Prompts of all requests, in order of arrival."""
        return [self.prompt_of(body) for body in self.requests]

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self) -> "ChatServer":
        return self

    def __exit__(self, *error) -> None:
        self.stop()


def completion(
    content: str | None, finish_reason: str = "stop", first: list[tuple[str, float]] | None = None, **message
) -> str:
    """A response as OpenAI's API reference has it, with the probabilities of the tokens that it may begin with."""
    message = {"role": "assistant", "content": content, **message}
    logprobs = {}
    if first is not None:
        top = [{"token": token, "logprob": math.log(p), "bytes": list(token.encode())} for token, p in first]
        logprobs = {"logprobs": {"content": [{**top[0], "top_logprobs": top}]}}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": "test",
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason, **logprobs}],
            "usage": {"prompt_tokens": 500, "completion_tokens": 100, "total_tokens": 600},
        }
    )


class VisionServer(ChatServer):
    """
    The same with a judge that sees: that a picture is red, or shows whatever is asked, is as probable as it is red. Numbers are
    as probable as the picture is red, too, for `three`, and of the rest for `four`.

    Args:
        probabilities (`bool`, *optional*, defaults to `True`):
            Whether it gives log-probabilities when it is asked for them.
    """

    def __init__(
        self, behave: Callable[[int, str, dict], Any] | None = None, port: int = 0, probabilities: bool = True
    ):
        self.probabilities = probabilities
        super().__init__(behave, port)
        self.models = [{"id": "judge", "object": "model", "created": 1, "owned_by": "test", "max_model_len": 4096}]

    @staticmethod
    def prompt_of(body: dict) -> str:
        """The question that is asked."""
        return body["messages"][-1]["content"][-1]["text"] if "messages" in body else ""

    @staticmethod
    def picture_of(body: dict) -> Image.Image:
        """The picture that it is asked of."""
        url = body["messages"][-1]["content"][0]["image_url"]["url"]
        return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))).convert("RGB")

    def questions(self) -> list[str]:
        """Questions of all requests but the first two, by which it is tried whether the judge sees."""
        return self.prompts()[2:]

    def answer(self, body: dict) -> Any:
        question, picture = self.prompt_of(body), self.picture_of(body)
        red = max(0.001, min(0.999, picture.resize((1, 1)).getpixel((0, 0))[0] / 255))
        first, other = ("three", "four") if question.startswith("How many") else ("Yes", "No")
        if "color" in question:
            return "Red." if red > 0.5 else "It is blue."
        said = first if red > 0.5 else other
        if not (self.probabilities and body.get("logprobs")):
            return said
        likely = {first: red * 0.9, f" {first.lower()}": red * 0.1, other: 1 - red}
        likely = sorted(likely.items(), key=lambda pair: -pair[1])[: body["top_logprobs"]]
        return 200, {}, completion(said, first=likely).encode()
