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

"""A served reward and who asks it: a real server on loopback, in this process or in one of its own."""

import base64
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import craft_trl.rewards.server as server_module
from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.rewards import RewardSpec, score
from craft_trl.rewards.remote import RemoteReward, to_png


def picture(seed, size=(64, 64)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def serve():
    """Start servers in this process and stop them after the test."""
    servers = []

    def start(reward, about=None, server=None):
        about = {"reward": "mine", "fingerprint": "abc", "higher_is_better": True, **(about or {})}
        server = server or server_module.make_server(reward, about, "127.0.0.1", 0)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answering(*answers):
    """A server that gives these answers, one after the other: a status with JSON, or raw bytes instead of HTTP."""
    answers = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, bytes):
                self.wfile.write(answer)
                return
            status, content = answer
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


ABOUT = (200, {"reward": "mine", "fingerprint": "abc", "higher_is_better": True})


def width(images, prompts):
    return [image.width + len(prompt) for image, prompt in zip(images, prompts, strict=True)]


class TestScores:
    def test_the_same_bits_as_here(self, serve, tiny):
        """float32 scores and the pixels behind them come through unchanged."""
        reward = RewardSpec.parse(f"pickscore={tiny / 'rewards' / 'pick'}").load()
        remote = RemoteReward(serve(lambda images, prompts: score({"a": reward}, images, prompts)["a"]))
        images, prompts = [picture(i) for i in range(5)], [f"a fox, number {i}" for i in range(5)]
        assert torch.equal(remote(images, prompts), reward(images, prompts))
        assert remote(images, prompts).dtype == torch.float32

    def test_in_batches(self, serve):
        sizes = []
        remote = RemoteReward(serve(lambda images, _: sizes.append(len(images)) or [image.width for image in images]))
        images = [picture(i, (10 + i, 8)) for i in range(35)]
        assert remote(images, [""] * 35).tolist() == [10 + i for i in range(35)] and sizes == [16, 16, 3]
        assert remote([], []).shape == (0,)

    def test_few_large_images_in_a_request(self, serve, monkeypatch):
        monkeypatch.setattr("craft_trl.rewards.remote.MAX_PIXELS", 1000)
        sizes = []
        remote = RemoteReward(serve(lambda images, _: sizes.append(len(images)) or [image.width for image in images]))
        images = [picture(i, (width, 10)) for i, width in enumerate((40, 40, 20, 1, 200, 99, 2))]
        assert remote(images, [""] * 7).tolist() == [40, 40, 20, 1, 200, 99, 2] and sizes == [3, 1, 1, 1, 1]

    def test_prompts(self, serve):
        seen = []
        remote = RemoteReward(serve(lambda images, prompts: seen.extend(prompts) or [0.0] * len(images)))
        prompts = ["", "秋天的山 🦊", 'say "fox"\\n', "fox " * 1000, "\u2028\x00"]
        remote([picture(0)] * 5, prompts)
        assert seen == prompts

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK", "YCbCr", "F"])
    def test_modes(self, serve, mode):
        """PNG keeps the pixels of the modes it has; others arrive as their RGB."""
        seen = []
        remote = RemoteReward(serve(lambda images, _: seen.extend(images) or [0.0] * len(images)))
        image = (
            Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64))
            if mode == "I;16"
            else picture(0).convert(mode)
        )
        remote([image], [""])
        expected = image.convert("RGB") if mode in ("CMYK", "YCbCr", "F") else image
        assert seen[0].mode == expected.mode and np.array_equal(np.asarray(seen[0]), np.asarray(expected))

    def test_direction_and_fingerprint(self, serve):
        url = serve(width, {"higher_is_better": False, "fingerprint": "weights-1"})
        remote = RemoteReward(url + "/")
        assert remote.higher_is_better is False and remote.reward == "mine"
        spec = RewardSpec.parse(f"anything={url}")
        assert spec.remote and not spec.custom and spec.fingerprint() == "weights-1"
        assert spec.load()([picture(0)], ["abc"]).tolist() == [67.0]

    def test_requests_at_the_same_time(self, serve):
        """They are scored one after the other: a network on a GPU is not to be called from several threads."""
        inside = []

        def reward(images, prompts):
            inside.append(len(inside))
            alone = len(inside) == 1
            time.sleep(0.05)
            inside.clear()
            return [float(alone)] * len(images)

        remote, results = RemoteReward(serve(reward)), []
        threads = [
            threading.Thread(target=lambda: results.append(remote([picture(0)], ["a"]).item())) for _ in range(8)
        ]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert results == [1.0] * 8


class TestRetries:
    def test_busy_and_away(self, serve):
        busy = [(503, {"error": "loading"}), b"", (429, {"error": "slow down"}), (502, b"<html>"), ABOUT]
        start = time.monotonic()
        assert RemoteReward(serve(None, server=answering(*busy))).reward == "mine"
        assert time.monotonic() - start > 0.5 + 1 + 2  # the pauses grow

    def test_a_restart_in_between(self, serve):
        """The server is stopped while a run goes on, and started again a second later at the same port."""
        first = server_module.make_server(width, ABOUT[1], "127.0.0.1", 0)
        threading.Thread(target=first.serve_forever, args=(0.01,), daemon=True).start()
        port = first.server_port
        remote = RemoteReward(f"http://127.0.0.1:{port}")
        assert remote([picture(0)], ["a"]).tolist() == [65.0]
        first.shutdown()
        first.server_close()

        def restart():
            time.sleep(1)
            serve(None, server=server_module.make_server(width, ABOUT[1], "127.0.0.1", port))

        threading.Thread(target=restart).start()
        assert remote([picture(0)], ["ab"]).tolist() == [66.0]

    def test_nobody_there(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            UsageError, match=f"reward at {url} does not answer .*refused; asked 2 times.*craft serve-rew"
        ):
            RemoteReward(url, attempts=2)

    def test_no_answer_in_time(self, serve):
        url = serve(None, server=answering(ABOUT))
        remote = RemoteReward(url, attempts=2, timeout=0.3)
        slow = serve(lambda *_: time.sleep(1) or [0.0])
        remote.url = slow
        with pytest.raises(UsageError, match="does not answer .*timed out; asked 2 times"):
            remote([picture(0)], ["a"])

    def test_a_proxy_is_not_asked(self, serve, monkeypatch):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert RemoteReward(serve(width), attempts=1)([picture(0)], ["a"]).tolist() == [65.0]


class TestRefusals:
    @pytest.mark.parametrize(
        ("answer", "error", "message"),
        [
            ((404, {"error": "there is no /"}), UsageError, "refused: status 404, there is no /"),
            (
                (500, {"error": "RuntimeError: no kernel"}),
                RuntimeError,
                "refused: status 500, RuntimeError: no kernel",
            ),
            ((500, b""), RuntimeError, "refused: status 500, no reason given"),
            ((401, b"<h1>who are you</h1>"), UsageError, "refused: status 401, <h1>who are you</h1>"),
            ((200, b"<html>hello</html>"), UsageError, "does not answer with JSON. Is it `craft serve-reward`"),
            ((200, [1, 2]), UsageError, r"answered \[1, 2\]. Is it `craft serve-reward`"),
            ((200, {"reward": "x"}), UsageError, "answered {'reward': 'x'}. Is it"),
        ],
    )
    def test_at_once(self, serve, answer, error, message):
        start = time.monotonic()
        with pytest.raises(error, match=message):
            RemoteReward(serve(None, server=answering(answer)))
        assert time.monotonic() - start < 0.4, "asked again what will not change"

    @pytest.mark.parametrize(
        "scores", [[1.0], [1.0, 2.0, 3.0], ["1", "2"], [None, 1.0], [True, False], [[1.0], [2.0]]]
    )
    def test_wrong_scores(self, serve, scores):
        remote = RemoteReward(serve(None, server=answering(ABOUT, (200, {"scores": scores}))))
        with pytest.raises(RuntimeError, match="answered 2 images with"):
            remote([picture(0)] * 2, ["a", "b"])

    @pytest.mark.parametrize("score", [10**400, -(10**400)])
    def test_a_score_beyond_all_numbers(self, serve, score):
        remote = RemoteReward(serve(None, server=answering(ABOUT, (200, {"scores": [score]}))))
        with pytest.raises(RuntimeError, match="answered 1 images with"):
            remote([picture(0)], ["a"])

    @pytest.mark.parametrize("name", ["fingerprint", "reward"])
    @pytest.mark.parametrize(
        "text", ["", "a\nb", "\x1b[31mred", "a\u2028b", "\u202eabc", "x" * 1001, "a\x00", "\ud83c"]
    )
    def test_a_name_that_belongs_on_no_card(self, serve, name, text):
        about = (200, ABOUT[1] | {name: text})
        with pytest.raises(
            UsageError, match=f"has the {name} .* must be 1 to 1000 characters|not answer with JSON"
        ) as error:
            RemoteReward(serve(None, server=answering(about)))
        assert str(error.value).isprintable() and len(str(error.value)) < 300

    def test_a_long_fingerprint(self, serve):
        assert RemoteReward(serve(width, {"fingerprint": "ä" * 1000})).fingerprint == "ä" * 1000

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ((200, b'{"reward": "' + b"x" * (2 << 20)), "does not answer with JSON"),
            ((200, b"[" * 100_000), "does not answer with JSON"),
            ((200, b'{"reward": "a", "reward": "b"}'), "does not answer with JSON"),
            ((400, b"x" * (2 << 20)), "refused: status 400, no reason given"),
            ((400, b'{"error": "a\\u001b[31m\\nb"}'), r"refused: status 400, a \[31m b$"),
            ((400, b"[" * 100_000), r"refused: status 400, \[+$"),
        ],
    )
    def test_answers_that_are_too_much(self, serve, answer, message):
        with pytest.raises(UsageError, match=message) as error:
            RemoteReward(serve(None, server=answering(answer)))
        assert len(str(error.value)) < 1200

    def test_an_answer_without_end(self, serve):
        """What trickles in byte by byte is not waited for longer than an answer that does not come."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                for _ in range(100):
                    self.wfile.write(b" ")
                    time.sleep(0.05)

            def handle(self):
                try:
                    super().handle()
                except ConnectionError:
                    pass

        url = serve(None, server=ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        start = time.monotonic()
        with pytest.raises(UsageError, match="does not answer .timed out; asked 1 times"):
            RemoteReward(url, attempts=1, timeout=0.3)
        assert time.monotonic() - start < 3

    def test_an_answer_that_is_cut_off(self, serve):
        whole = b"HTTP/1.0 200 OK\r\nContent-Length: 500\r\n\r\n" + json.dumps(ABOUT[1]).encode()
        assert RemoteReward(serve(None, server=answering(whole, ABOUT))).reward == "mine"

    def test_not_a_number(self, serve):
        """NaN comes through, and is refused where every reward's is."""
        remote = RemoteReward(serve(lambda images, _: [float("nan")] * len(images)))
        with pytest.raises(ValueError, match="Reward far is nan for the prompt 'a'"):
            score({"far": remote}, [picture(0)], ["a"])

    def test_a_bad_image_names_itself_on_both_sides(self, serve, tmp_path):
        remote = RemoteReward(serve(width))
        picture(0).save(tmp_path / "a.png")
        (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
        images = [picture(0), Image.open(tmp_path / "half.png"), picture(1)]
        with pytest.raises(UsageError, match=r"Image 1 of 3 \(.*half.png\) cannot be decoded"):
            score({"far": remote}, images, ["a"] * 3)
        with pytest.raises(UsageError, match="Got 1 images and 2 prompts"):
            remote([picture(0)], ["a", "b"])

    def test_the_scorers_own_errors(self, serve, capfd):
        def reward(images, prompts):
            if prompts[0] == "usage":
                raise UsageError("Image 0 of 1 is 0x0 pixels")
            raise KeyError("a bug")

        remote = RemoteReward(serve(reward))
        with pytest.raises(UsageError, match="refused: status 400, Image 0 of 1 is 0x0 pixels"):
            remote([picture(0)], ["usage"])
        with pytest.raises(RuntimeError, match="refused: status 500, KeyError: 'a bug'"):
            remote([picture(0)], ["bug"])
        assert "Traceback" in capfd.readouterr().err  # on the server's side, where it can be looked into


def post(url, body, path="/score", headers=None):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.request("POST", path, body, headers or {})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


class TestServer:
    """What strangers may send."""

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"", "a request is JSON of `images` and `prompts`, not b''"),
            (b"\xff\xfe", "a request is JSON"),
            (b"[]", "a request is JSON"),
            (b'{"images": []}', "a request is JSON"),
            (b'{"images": {}, "prompts": {}}', "must be lists of equal length"),
            (b'{"images": ["aaaa"], "prompts": []}', "must be lists of equal length"),
            (b'{"images": ["not base64!"], "prompts": ["a"]}', "Image 0 of 1 is not base64 of a PNG"),
            (b'{"images": [3], "prompts": ["a"]}', "Image 0 of 1 is not base64 of a PNG"),
            (json.dumps({"images": [base64.b64encode(b"GIF89a").decode()], "prompts": ["a"]}), "not base64 of a PNG"),
        ],
    )
    def test_bad_requests(self, serve, body, message):
        url = serve(width)
        status, answer = post(url, body)
        assert status == 400 and message in answer["error"]
        assert RemoteReward(url)([picture(0)], ["a"]).tolist() == [65.0], "the server goes on"

    def test_only_png(self, serve, tmp_path):
        picture(0).save(tmp_path / "a.gif")
        good, gif = to_png(picture(0)), (tmp_path / "a.gif").read_bytes()
        images = [base64.b64encode(data).decode() for data in (good, gif)]
        status, answer = post(serve(width), json.dumps({"images": images, "prompts": ["a", "b"]}))
        assert status == 400 and "Image 1 of 2 is not base64 of a PNG" in answer["error"]

    def test_bombs(self, serve, monkeypatch):
        """A small file that would decode into a huge picture."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        body = json.dumps({"images": [base64.b64encode(to_png(picture(0))).decode()], "prompts": ["a"]})
        status, answer = post(serve(width), body)
        assert status == 400 and "Image 0 of 1" in answer["error"] and "exceeds limit" in answer["error"]

    def test_too_large(self, serve):
        status, answer = post(serve(width), None, headers={"Content-Length": str(1 << 40)})
        assert status == 413 and "at most" in answer["error"]

    @pytest.mark.parametrize(
        ("headers", "status", "message"),
        [
            ({"Content-Length": "-1"}, 400, "the Content-Length '-1' is no number of bytes"),
            ({"Content-Length": "1_0"}, 400, "the Content-Length '1_0' is no number of bytes"),
            ({"Content-Length": "two"}, 400, "the Content-Length 'two' is no number of bytes"),
            ({"Content-Length": "9" * 30}, 400, "is no number of bytes"),
            ({"Transfer-Encoding": "chunked"}, 411, "a request needs a Content-Length"),
            ({}, 411, "a request needs a Content-Length"),
        ],
    )
    def test_lengths(self, serve, headers, status, message):
        url = serve(width)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            connection.sendall(f"POST /score HTTP/1.0\r\n{head}\r\n".encode())
            # More than it will read, which must not be what it waits for, nor keep the answer from arriving.
            connection.sendall(b"x" * 100_000)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        assert f" {status} " in answer.splitlines()[0] and message in json.loads(answer.split("\r\n\r\n")[1])["error"]
        assert RemoteReward(url)([picture(0)], ["a"]).tolist() == [65.0], "the server goes on"

    def test_too_large_and_on_its_way(self, serve, monkeypatch):
        """The answer arrives although the request is still being sent."""
        monkeypatch.setattr(server_module, "MAX_BYTES", 1000)
        remote = RemoteReward(serve(width), attempts=1)
        with pytest.raises(UsageError, match="refused: status 413, .* bytes in a request; at most 1000 are read"):
            remote([picture(0, (1000, 1000))], ["a"])

    @pytest.mark.parametrize("what", ["half a body", "half a head", "a byte now and then"])
    def test_slow_ones(self, serve, monkeypatch, what):
        """They are not waited for, however they go about it."""
        monkeypatch.setattr(server_module, "SECONDS", 0.5)
        url = serve(width)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
            connection.sendall(b"POST /score HTTP/1.0\r\nContent-Length: 100")
            start = time.monotonic()
            if what != "half a head":
                connection.sendall(b"\r\n\r\n{")
            with suppress(ConnectionError):  # of one that goes on sending when it has been told
                while what == "a byte now and then" and time.monotonic() < start + 3:
                    connection.sendall(b" ")
                    time.sleep(0.1)
                answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
                assert " 408 " in answer and "100 bytes were announced, and" in answer
        assert time.monotonic() - start < 2.5
        assert RemoteReward(url)([picture(0)], ["a"]).tolist() == [65.0], "the server goes on"

    def test_a_body_that_ends_early(self, serve):
        url = serve(width)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
            connection.sendall(b"POST /score HTTP/1.0\r\nContent-Length: 100\r\n\r\n{}")
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        assert "100 bytes were announced, and 2 came" in answer

    def test_pixels_of_all_images_together(self, serve, monkeypatch):
        """Each is small enough, and none is unpacked."""
        monkeypatch.setattr(server_module, "MAX_PIXELS", 10_000)
        loaded = []
        load = PngImagePlugin.PngImageFile.load
        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: loaded.append(self.size) or load(self))
        png = base64.b64encode(to_png(Image.new("RGB", (64, 64)))).decode()
        for number, expected in ((2, 200), (3, 400)):
            loaded.clear()
            status, answer = post(serve(width), json.dumps({"images": [png] * number, "prompts": [""] * number}))
            assert status == expected and loaded == ([(64, 64)] * 2 if expected == 200 else [])
        assert answer == {"error": "12288 pixels in a request; at most 10000 are unpacked"}

    def test_a_bomb_of_allowed_images(self, serve):
        """A small request of pictures that Pillow takes for sound one by one: 972 million pixels."""
        png = base64.b64encode(to_png(Image.new("1", (9000, 9000)))).decode()
        assert len(png) * 12 < 4_000_000
        status, answer = post(serve(width), json.dumps({"images": [png] * 12, "prompts": [""] * 12}))
        assert status == 400 and answer["error"] == "972000000 pixels in a request; at most 268435456 are unpacked"

    def test_number_of_images(self, serve):
        png = base64.b64encode(to_png(Image.new("1", (1, 1)))).decode()
        for number in (256, 257):
            status, answer = post(serve(width), json.dumps({"images": [png] * number, "prompts": [""] * number}))
            assert status == (200 if number == 256 else 400)
        assert answer == {"error": "257 images in a request; at most 256 are scored"}

    @pytest.mark.parametrize("prompt", ["3", "null", "[]", '"\\ud83c"'])
    def test_prompts_that_are_no_text(self, serve, prompt):
        png = base64.b64encode(to_png(picture(0))).decode()
        body = f'{{"images": ["{png}", "{png}"], "prompts": ["a", {prompt}]}}'
        assert post(serve(width), body) == (400, {"error": "Prompt 1 of 2 is no text"})

    def test_a_deeply_nested_request(self, serve, capfd):
        status, answer = post(serve(width), b"[" * 100_000)
        assert status == 400 and "a request is JSON" in answer["error"] and "Traceback" not in capfd.readouterr().err

    def test_few_requests_are_in_memory_at_a_time(self, serve, monkeypatch):
        """However many come together; the others wait, and all are answered."""
        now, most, lock = [0], [], threading.Lock()
        read = server_module.read_request

        def counted(body):
            with lock:
                now[0] += 1
                most.append(now[0])
            try:
                time.sleep(0.05)
                return read(body)
            finally:
                with lock:
                    now[0] -= 1

        monkeypatch.setattr(server_module, "read_request", counted)
        remote, results = RemoteReward(serve(width)), []
        threads = [
            threading.Thread(target=lambda: results.extend(remote([picture(0)], ["a"]).tolist())) for _ in range(8)
        ]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert results == [65.0] * 8 and max(most) == server_module.MAX_REQUESTS == 2

    def test_connections(self, serve, monkeypatch):
        """Those that say nothing take the place of others only for a while."""
        monkeypatch.setattr(server_module, "SECONDS", 0.6)
        monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 3)
        url = serve(width)
        port = int(url.rpartition(":")[2])
        silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(3)]
        time.sleep(0.1)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.0 503 ")
        assert RemoteReward(url)([picture(0)], ["a"]).tolist() == [65.0]  # asks again
        [connection.close() for connection in silent]

    def test_other_paths(self, serve):
        url = serve(width)
        assert post(url, b"{}", "/elsewhere") == (404, {"error": "there is no /elsewhere"})
        with pytest.raises(UsageError, match="status 404, there is no /x/"):
            RemoteReward(url + "/x")


def start(*command, **kwargs):
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Shells start background jobs with interrupts ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **kwargs,
    )
    line = process.stdout.readline()
    found = re.fullmatch(r"\[serve-reward\] (\w+) at (http://127.0.0.1:\d+)\n", line)
    assert found, line + process.communicate(timeout=60)[1]
    return process, found[2]


class TestCommand:
    def test_serve_and_use(self, tiny, recipes, capsys):
        """`craft serve-reward` in a process of its own, named by a recipe, gives the pool that the same reward gives."""
        process, url = start(
            "-m", "craft_trl.cli.main", "serve-reward", f"hpsv2={tiny / 'rewards' / 'hps'}", "--port", "0"
        )
        try:
            path = recipes(
                "candidates", num_prompts=2, generate_all=True, rewards=[f"far={url}", "hpsv2=./rewards/hps"]
            )
            for command in ("expand", "generate"):
                assert main([command, "--config", str(path)]) == 0, capsys.readouterr().err
            from craft_trl.candidates.pool import CandidatePool

            scores = np.array(list(CandidatePool(Path("runs/tiny/pool"), ["far", "hpsv2"]).scores.values()))
            assert len(scores) == 6
            # Rounded otherwise in a batch of another size, which the server does not fill up.
            np.testing.assert_allclose(scores[:, 0], scores[:, 1], atol=1e-6)
        finally:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        assert process.returncode == 0 and err.rstrip().endswith("[serve-reward] stopped") and "Traceback" not in err
        # The pool is the server's: without it nobody can say whether the scores would be the same.
        capsys.readouterr()
        assert main(["generate", "--config", str(path)]) == 2
        assert f"craft: error: The reward at {url} does not answer" in capsys.readouterr().err

    def test_a_copy_of_the_server_alone(self, tmp_path):
        """In an environment without PyTorch or this package: one file, Pillow and the standard library."""
        copy = tmp_path / "server.py"
        copy.write_bytes(Path(server_module.__file__).read_bytes())
        (tmp_path / "scorer.py").write_text(
            "import sys\n"
            "class Scorer:\n"
            "    higher_is_better = False\n"
            "    def __call__(self, images, prompts):\n"
            "        assert not {'torch', 'numpy', 'craft_trl', 'transformers'} & set(sys.modules)\n"
            "        return [image.width * 0.1 for image in images]\n"
        )
        process, url = start(copy, tmp_path / "scorer.py:Scorer", "--port", "0")
        try:
            remote = RemoteReward(url)
            assert remote([picture(0, (30, 8))], ["a"]).tolist() == [torch.tensor(3.0).item()]
            assert remote.higher_is_better is False and remote.fingerprint.endswith(":Scorer")
        finally:
            process.kill()
            process.communicate()

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ([], "craft serve-reward needs a reward, such as pickscore"),
            (["--port", "1"], "craft serve-reward needs a reward"),
            (["hpsv9"], "There is no reward 'hpsv9'"),
            (["far=http://127.0.0.1:9"], "Reward far=http://127.0.0.1:9 is served already"),
            (["pickscore", "--port", "70000"], "port must be from 0 to 65535, got 70000"),
            (["pickscore", "--port", "x"], "invalid int value: 'x'"),
            (["pickscore", "--ports", "1"], "Unknown argument --ports. Did you mean --port"),
            (["pickscore", "--dtype", "int8"], "invalid choice: 'int8'"),
            (
                ["x=math:hypot", "--dtype", "bfloat16"],
                "a reward of your own is in the precision that it chooses itself",
            ),
            (["pickscore", "--host", "256.0.0.1"], "Cannot listen at 256.0.0.1:8000"),
            (["pickscore", "--port", "0"], "is neither a folder nor to be had from the Hub or its cache"),
        ],
    )
    def test_mistakes(self, capsys, argv, message):
        assert main(["serve-reward", *argv]) == 2
        err = capsys.readouterr().err
        assert err.startswith("craft: error: ") and err.count("\n") == 1 and message in err

    def test_a_port_in_use(self, serve, capsys):
        port = serve(width).rpartition(":")[2]
        assert main(["serve-reward", "pickscore", "--port", port]) == 2
        assert f"Cannot listen at 127.0.0.1:{port}: " in capsys.readouterr().err

    def test_help(self, capsys):
        assert main(["serve-reward", "--help"]) == 0
        assert "--port" in capsys.readouterr().out
