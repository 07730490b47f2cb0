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
Serve a scorer over HTTP, as [`RemoteReward`] asks for it.

`craft serve-reward` does it for rewards of this package. A scorer that needs another environment, such as HPSv3 with its
old transformers, is served by a copy of this file, which needs Python 3.8 and Pillow and nothing else:

    python server.py ./scorer.py:HPSv3 --port 8001
"""

import argparse
import base64
import hashlib
import importlib.util
import inspect
import io
import json
import re
import socket
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


# A request holds so much at most.
MAX_BYTES = 1 << 28
MAX_IMAGES = 256
MAX_PIXELS = 1 << 28  # of all its images: up to 1 GiB of memory
MAX_REQUESTS = 2  # that are in memory at a time, one decoded while the other is scored; others wait
MAX_CONNECTIONS = 64
SECONDS = 60  # without a byte, or for the head of a request
SLOWEST = 1 << 18  # bytes a second that its body comes with on the whole


def make_server(score, about, host, port):
    """
    A server, listening but not serving yet.

    Requests may come at the same time; they are scored one after the other. What a stranger can make the server hold is
    bounded: the bytes, images and pixels of a request, how long it may take to come, and how many are in memory at a time.

    Args:
        score (`Callable[[list[PIL.Image.Image], list[str]], Sequence[float]]`):
            The scorer. A `ValueError` of it is the request's fault (status 400), anything else its own (500).
        about (`dict`):
            What `GET /` answers: `reward`, `fingerprint` and `higher_is_better`.
        host (`str`):
            Address to listen at.
        port (`int`):
            Port; 0 takes a free one.

    Returns:
        `http.server.ThreadingHTTPServer`
    """
    one_at_a_time = threading.Lock()
    places = threading.BoundedSemaphore(MAX_REQUESTS)

    class Handler(BaseHTTPRequestHandler):
        def setup(self):
            super().setup()
            self.allow(SECONDS)  # for the head

        def parse_request(self):
            """From here on each byte is waited for, in and out; for the head it would be a race against its timer."""
            is_valid = super().parse_request()
            self.stop()
            self.connection.settimeout(SECONDS)
            return is_valid

        def allow(self, seconds):
            """From now on the client has so long to send what it sends; then it counts as having ended."""
            self.stop()
            self.timer = threading.Timer(seconds, self.end)
            self.timer.daemon = True
            self.timer.start()

        def stop(self):
            if hasattr(self, "timer"):
                self.timer.cancel()

        def end(self):
            with suppress(OSError):  # it has gone
                self.connection.shutdown(socket.SHUT_RD)

        def finish(self):
            self.stop()
            super().finish()

        def do_GET(self):
            if self.path == "/":
                self.answer(200, about)
            else:
                self.answer(404, {"error": f"there is no {self.path}"})

        def do_POST(self):
            length = self.headers.get("Content-Length")
            if self.path != "/score":
                return self.refuse(404, f"there is no {self.path}")
            if length is None or self.headers.get("Transfer-Encoding"):
                return self.refuse(411, "a request needs a Content-Length")
            if not re.fullmatch("[0-9]{1,18}", length.strip()):
                return self.refuse(400, f"the Content-Length {length[:80]!r} is no number of bytes")
            length = int(length)
            if length > MAX_BYTES:
                return self.refuse(413, f"{length} bytes in a request; at most {MAX_BYTES} are read")
            with places:  # what waits here has not been read, and takes no memory
                body = self.read(length)
                if len(body) < length:
                    return self.refuse(408, f"{length} bytes were announced, and {len(body)} came")
                try:
                    images, prompts = read_request(body)
                    with one_at_a_time:
                        scores = [float(value) for value in score(images, prompts)]
                    if len(scores) != len(images):
                        raise RuntimeError(f"the scorer made {len(scores)} scores of {len(images)} images")
                except ValueError as error:
                    return self.answer(400, {"error": str(error)})
                except Exception as error:  # the server goes on, whatever is wrong with one request
                    traceback.print_exc()
                    return self.answer(500, {"error": f"{type(error).__name__}: {error}"})
            self.answer(200, {"scores": scores})

        def read(self, length):
            """The body, or as much of it as comes in time."""
            self.allow(SECONDS + length / SLOWEST)
            parts = []
            with suppress(OSError):  # no byte for long
                while length > 0:
                    parts.append(self.rfile.read1(min(length, 1 << 20)))
                    length = length - len(parts[-1]) if parts[-1] else 0
            self.stop()
            return b"".join(parts)

        def refuse(self, status, problem):
            """Answer before all was read, and take in the rest for a while: else the answer would be lost with it."""
            self.answer(status, {"error": problem})
            self.allow(5)
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)
                while self.rfile.read1(1 << 16):
                    pass

        def answer(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code="-", size="-"):
            if self.command != "GET":
                super().log_request(code, size)

    return Server((host, port), Handler)


class Server(ThreadingHTTPServer):
    """`ThreadingHTTPServer` whose threads are counted: it makes one for each connection."""

    def __init__(self, *arguments):
        self.connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request, client_address):
        if self.connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            request.settimeout(1)
            with suppress(OSError):
                request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()


def read_request(body):
    """Images and prompts of a request, or a `ValueError` that says what is wrong with it."""
    try:
        content = json.loads(body)
        encoded, prompts = content["images"], content["prompts"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"a request is JSON of `images` and `prompts`, not {body[:80]!r}") from error
    if not isinstance(encoded, list) or not isinstance(prompts, list) or len(encoded) != len(prompts):
        raise ValueError("`images` and `prompts` must be lists of equal length")
    if len(encoded) > MAX_IMAGES:
        raise ValueError(f"{len(encoded)} images in a request; at most {MAX_IMAGES} are scored")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or any("\ud800" <= character <= "\udfff" for character in prompt):
            raise ValueError(f"Prompt {number} of {len(prompts)} is no text")
    images = []
    for number, text in enumerate(encoded):
        with unreadable(number, encoded):
            # PNG only: the fewer decoders a network can reach, the better.
            images.append(Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]))
    # By their heads, before anything is unpacked: a small file may hold a huge picture.
    pixels = sum(image.width * image.height for image in images)
    if pixels > MAX_PIXELS:
        raise ValueError(f"{pixels} pixels in a request; at most {MAX_PIXELS} are unpacked")
    for number, image in enumerate(images):
        with unreadable(number, encoded):
            image.load()
    return images, prompts


@contextmanager
def unreadable(number, images):
    try:
        yield
    except Exception as error:  # of base64, of Pillow, of its guard against decompression bombs
        raise ValueError(f"Image {number} of {len(images)} is not base64 of a PNG: {error}") from error


def serve(server, name):
    """Say where, and serve until stopped."""
    host, port = server.server_address[:2]
    print(f"[serve-reward] {name} at http://{host}:{port}", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("[serve-reward] stopped", file=sys.stderr)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scorer", help="file.py:attribute, a callable (images, prompts) -> scores or a class of one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; there is no password")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one")
    args = parser.parse_args(argv)
    file, _, attribute = args.scorer.rpartition(":")
    spec = importlib.util.spec_from_file_location("scorer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scorer = getattr(module, attribute)
    scorer = scorer() if inspect.isclass(scorer) else scorer
    with open(file, "rb") as stream:
        digest = hashlib.sha256(stream.read()).hexdigest()
    about = {
        "reward": attribute,
        "fingerprint": f"{digest}:{attribute}",
        "higher_is_better": bool(getattr(scorer, "higher_is_better", True)),
    }
    serve(make_server(scorer, about, args.host, args.port), attribute)


if __name__ == "__main__":
    main()
