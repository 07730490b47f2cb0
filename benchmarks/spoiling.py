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


"""What `bad_input_kinds.py` spoils a run with: values, bytes, files that are cut, and a server that answers wrongly."""

import json
import math
import os
import random
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import yaml


TINY = Path(__file__).parents[1] / "recipes" / "tiny"
SMALL = {
    "candidates": {
        "num_prompts": 6, "batch_size": 4, "num_inference_steps": 1, "filter_level": "image", "target_groups": None,
        "rewards": ["aesthetic=./rewards/aesthetic"],
    },
    "craft": {"max_steps": 1, "global_batch_size": 2, "per_device_train_batch_size": 2, "save_strategy": "no"},
    "evaluate": {
        "num_prompts": 2, "batch_size": 4, "num_inference_steps": 1, "num_bootstrap": 20,
        "rewards": ["aesthetic=./rewards/aesthetic"], "held_out_rewards": ["quality=./inspector.py:quality"],
    },
    "bakeoff": {"num_prompts": 2, "num_test_prompts": 2, "max_steps": 1, "seeds": [0]},
}  # fmt: skip
VALUES = [
    None, "", " ", "x", "a b", "é\u2028ü", "a" * 5000, "-1", -1, 0, 1, 3, 2**63, 10**30, 0.5, math.nan, math.inf, True, False, [],
    [None], [1, "a"], [""], ["x", "x"], {}, {"a": 1}, "nowhere/at/all", "/proc/nowhere", "..", "org/name", "./", "%s %d", "{prompt}",
    "a\0b", "x=y", "x=./nowhere", "=", ":", "http://", "http://127.0.0.1:9", "null", "<b>", "--help", "1e400", "../" * 40,
]  # fmt: skip
BYTES = [
    b"",
    b"\n",
    b"\0",
    b"\xff\xfe",
    b"{",
    b"[]",
    b"null",
    b"1",
    b'"a"',
    b"{}\n{}\n",
    b"\xef\xbb\xbf{}",
    b"a: [",
    b"- a\n- b\n",
]

ANSWERS = [
    b"", b"{}", b"[]", b"null", b"<html>busy</html>", b'{"error": "no"}', b'{"scores": []}', b'{"scores": ["a", "b"]}', b"\xff" * 9,
    b'{"scores": [NaN, 1, 2, 3]}', b'{"reward": 1}', b'{"reward": "x", "fingerprint": "a", "higher_is_better": true}', b"{" * 5000,
    b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b'{"choices": [{"message": {"content": [{"text": 1}]}}]}',
    b'{"choices": [{"message": {"content": "[\\"a fox\\"]"}, "finish_reason": "stop"}]}', b'{"choices": {"a": 1}, "usage": "much"}',
    b'{"choices": [{"message": {"content": "\\ud83c"}}]}', b'{"data": {}}',
]  # fmt: skip


def recipes(folder: Path) -> Path:
    """The tiny recipes, small enough to run in seconds."""
    (folder / "recipes").mkdir(parents=True)
    for name in ("pipeline", "rewards", "evaluators", "prompts", "inspector.py"):
        (folder / "recipes" / name).symlink_to(TINY / name)
    for name, changes in SMALL.items():
        content = yaml.safe_load((TINY / f"{name}.yaml").read_text())
        content = {k: v for k, v in content.items() if not k.startswith(("guard_", "save_")) or name != "craft"}
        if name == "craft":
            del content["held_out_rewards"]
        write_recipe(folder, name, {k: v for k, v in {**content, **changes}.items() if v is not None})
    return folder


def read_recipe(folder: Path, name: str) -> dict:
    return yaml.safe_load((folder / "recipes" / f"{name}.yaml").read_text())


def write_recipe(folder: Path, name: str, content: object) -> None:
    (folder / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))


def damage_lines(rng: random.Random, path: Path) -> None:
    """Cut, change or replace lines of a `.jsonl` file."""
    lines = path.read_bytes().splitlines(keepends=True)
    number = rng.randrange(len(lines))
    row = json.loads(lines[number])
    how = rng.randrange(6)
    if how == 0:
        lines[number] = lines[number][: rng.randrange(len(lines[number]))]
    elif how == 1:
        lines[number] = rng.choice(BYTES) + b"\n"
    elif how == 2:
        lines = [rng.choice(BYTES)]
    elif how == 3:
        lines.append(lines[number])
    else:
        key = rng.choice(list(row))
        row[key] = rng.choice([value for value in VALUES if value != "a" * 5000])
        if how == 5:
            del row[key]
        lines[number] = json.dumps(row).encode() + b"\n"
    path.write_bytes(b"".join(lines))


def damage(rng: random.Random, path: Path) -> None:
    """Cut, change, replace or remove a file."""
    data = path.read_bytes()
    position = rng.randrange(max(1, len(data)))
    flipped = (
        data[:position] + bytes([data[position] ^ 1 << rng.randrange(8)]) + data[position + 1 :] if data else b"x"
    )
    how = rng.randrange(6)
    if how < 4:
        path.write_bytes([data[:position], flipped, rng.choice(BYTES), data + b"x"][how])
    else:
        path.unlink()
        if how == 5:
            path.mkdir()


RUNNING: list[int] = []  # processes of servers


def serve(status: int, body: bytes, length: object) -> int:
    """Port of a server that gives this answer to everything, in a process that [`check`] ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    if not (pid := os.fork()):
        with suppress(BaseException):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            server.serve_forever()
        os._exit(0)
    RUNNING.append(pid)
    server.socket.close()
    return server.server_port
