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

"""What a server refuses that is not the prompt, and keys: sent where they belong, and said nowhere."""

import json
import logging
import threading

import pytest

from craft_trl import EndpointExpander
from craft_trl.chat.completions import complaint
from craft_trl.errors import UsageError

from ..chat_server import ChatServer
from .test_endpoint import EXPECTED, PROMPTS, expander


OPENAI = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0.8 with this model. Only the default (1) is supported.",
    "seed": "Unknown parameter.",
}


def refusing(*names, mistral=False):
    """A server whose model knows none of these parameters, in OpenAI's or in Mistral's words."""

    def behave(number, prompt, body):
        name = next((name for name in names if name in body), None)
        if name is None:
            return None
        error = {
            "error": {"message": OPENAI.get(name, f"Unknown: {name}"), "param": name, "code": "unsupported_parameter"}
        }
        if mistral:
            detail = [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", name],
                    "msg": "Extra inputs are not permitted",
                    "input": body,
                }
            ]
            error = {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error"}
        return (422 if mistral else 400), {}, json.dumps(error).encode()

    return behave


class TestParameters:
    @pytest.mark.parametrize(
        ("names", "mistral", "concurrency"),
        [
            (("max_tokens", "temperature", "seed"), False, 1),
            (("max_tokens", "temperature", "seed"), True, 6),
            (("seed",), True, 1),
            (("temperature",), False, 6),
        ],
    )
    def test_that_a_model_refuses_are_left_out(self, names, mistral, concurrency, caplog):
        with caplog.at_level(logging.WARNING), ChatServer(refusing(*names, mistral=mistral)) as server:
            expand = expander(server, concurrency=concurrency)
            assert expand(PROMPTS[:6], 2) == EXPECTED[:6] and not expand.failures
            known = {"max_tokens", "temperature", "seed"} - set(names)
            assert server.requests[-1].keys() & {*OPENAI, "max_completion_tokens"} == known
            assert server.requests[-1]["response_format"]["type"] == "json_schema"
            # Those that are asked at the same time find out for themselves, in as many tries.
            assert len(server.requests) <= 6 + concurrency * len(names)
        said = [record.getMessage() for record in caplog.records]
        assert said == [
            f"The endpoint of test at {server.url} does not take {', '.join(sorted(names))}: asked without."
        ]

    def test_a_limit_that_was_given_is_kept(self, caplog):
        with caplog.at_level(logging.WARNING), ChatServer(refusing("max_tokens")) as server:
            assert expander(server, max_tokens=2000)(PROMPTS[:2], 2) == EXPECTED[:2]
        assert server.requests[-1]["max_completion_tokens"] == 2000 and "max_tokens" not in server.requests[-1]
        assert "asked without. max_completion_tokens is sent instead of max_tokens." in caplog.text

    def test_a_server_that_knows_no_limit_at_all(self):
        with ChatServer(refusing("max_tokens", "max_completion_tokens")) as server:
            assert expander(server, max_tokens=2000)(PROMPTS[:2], 2) == EXPECTED[:2]

    def test_a_refused_prompt_that_names_one(self):
        """`seed` and `temperature` are words of prompts too; the parameters stay."""
        prompt = "a seed at a low temperature"
        flagged = (400, {}, json.dumps({"error": {"message": f"flagged: {prompt}"}}).encode())
        with ChatServer(lambda number, text, body: flagged if text == prompt else None) as server:
            expand = expander(server, concurrency=1)
            assert expand([prompt, PROMPTS[0]], 2) == [[], EXPECTED[0]]
            assert len(server.requests) == 4 and all(
                {"seed", "temperature"} <= body.keys() for body in server.requests
            )

    def test_in_extra_body_they_are_the_users(self):
        with ChatServer(refusing("max_tokens", "seed")) as server:
            expand = expander(server, extra_body={"seed": 1, "max_tokens": 900})
            assert expand(PROMPTS[:1], 2) == [[]]
            assert expand.failures[PROMPTS[0]][0].startswith(
                "refused: status 400, Unsupported parameter: 'max_tokens'"
            )

    def test_formats_found_out_at_the_same_time(self):
        """What one question has found out while others were on their way is no refusal of these."""
        release = threading.Event()

        def behave(number, prompt, body):
            if body.get("response_format", {}).get("type") == "json_schema":
                if prompt != PROMPTS[0]:
                    assert release.wait(30)
                return 400, {}, b'{"error": {"message": "response_format is not supported"}}'
            threading.Timer(0.2, release.set).start()  # after the answer has arrived

        with ChatServer(behave) as server:
            expand = expander(server, concurrency=4)
            assert expand(PROMPTS, 2) == EXPECTED and not expand.failures


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"error": {"message": "slow down", "type": "x", "param": "seed"}}', "seed: slow down"),
        ('{"error": "gone"}', "gone"),
        ('{"message": "no", "error": null}', "no"),
        ('{"detail": [{"loc": ["body", 0], "msg": "bad", "input": "x"}, {"msg": "worse"}]}', "body.0: bad; worse"),
        ("<html>", "<html>"),
        ('"overloaded"', "overloaded"),
        ('{"error": ' * 2000, '{"error": ' * 2000),
        ("[]", "[]"),
    ],
)
def test_complaint(text, said):
    assert complaint(text) == said


class TestSecrets:
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r", " ", "\t"])
    def test_blanks_around_a_key(self, keys, end):
        keys.setenv("MY_KEY", f" sk-secret123{end}")
        with ChatServer() as server:
            assert expander(server, api_key_env="MY_KEY")(PROMPTS[:1], 2) == EXPECTED[:1]
        assert server.headers[0]["authorization"] == "Bearer sk-secret123"

    @pytest.mark.parametrize(
        "key", ["sk-sec\nret123", "sk-sec ret123", "sk-secrét123", "sk-secret123\u200b", "sk-secret\x7f"]
    )
    def test_a_key_that_cannot_be_sent(self, keys, key):
        keys.setenv("MY_KEY", key)
        with pytest.raises(
            UsageError, match="in the environment variable MY_KEY, holds a blank or .* not ASCII"
        ) as error:
            EndpointExpander("test", "http://host/v1", api_key_env="MY_KEY")
        assert "sk-" not in str(error.value)

    def test_blanks_are_no_key(self, keys):
        keys.setenv("MY_KEY", " \n")
        with pytest.raises(UsageError, match="key is missing: put it into the environment variable MY_KEY"):
            EndpointExpander("test", "http://host/v1", api_key_env="MY_KEY")

    @pytest.mark.parametrize("name", ["sk-secret1234", "hf_" + "s" * 34, "SECRET KEY", "secret"])
    def test_a_key_for_the_name_of_a_variable(self, name):
        with pytest.raises(UsageError, match="takes the name of a variable, not a key") as error:
            EndpointExpander("test", "http://host/v1", api_key_env=name)
        assert name not in str(error.value)

    @pytest.mark.parametrize(
        "url", ["me:secret@host/v1", "ftp://me:secret@host", "http://me:secret@host:port/v1", "http://[h/?k=secret"]
    )
    def test_a_key_in_a_wrong_url(self, url):
        with pytest.raises(UsageError, match="base_url holds a key") as error:
            EndpointExpander("test", url)
        assert "secret" not in str(error.value)

    @pytest.mark.parametrize("status", [400, 401, 500])
    def test_what_a_server_repeats(self, keys, status):
        keys.setenv("MY_KEY", "sk-secret123")
        said = {"error": {"message": "x" * 290 + "Bearer sk-secret123, pass word-1, id \x1b[31m hf_" + "a" * 34}}
        with ChatServer(lambda number, prompt, body: (status, {}, json.dumps(said).encode())) as server:
            expand = expander(server, api_key_env="MY_KEY", extra_body={"user_password": "pass word-1"}, max_retries=0)
            try:
                expand(PROMPTS[:2], 2)
                text = str(expand.failures)
            except UsageError as error:
                text = str(error)
        assert "xBearer" in text and not any(part in text for part in ("sk-", "pass", "word", "hf_", "\x1b"))

    def test_no_key_is_no_secret(self):
        said = (400, {}, b'{"error": {"message": "there is none"}}')
        with ChatServer(lambda number, prompt, body: said) as server:
            expand = expander(server)
            expand(PROMPTS[:1], 2)
        assert expand.failures[PROMPTS[0]] == ["refused: status 400, there is none"]

    def test_in_extra_body(self, tmp_path):
        """They are sent, and are in no record: neither in the settings nor beside the answers."""
        body = {
            "api_key": "hunter2",
            "nested": {"Authorization": "Bearer hunter2"},
            "tokens": ["a"],
            "max_tokens": 5,
            "top_p": 0.5,
        }
        with ChatServer() as server:
            expand = expander(server, extra_body=body, cache=tmp_path / "answers.jsonl")
            assert expand(PROMPTS[:1], 2) == EXPECTED[:1]
            assert server.requests[0]["api_key"] == "hunter2"
        assert expand.settings["extra_body"] == body | {"api_key": "***", "nested": {"Authorization": "***"}}
        assert "hunter2" not in (tmp_path / "answers.jsonl").read_text()

    def test_other_extra_parameters_are_recorded_as_they_are(self):
        body = {
            "enable_thinking": False,
            "stop": ["x"],
            "max_completion_tokens": 5,
            "chat_template_kwargs": {"a": None},
        }
        assert EndpointExpander("test", "http://host/v1", extra_body=body).settings["extra_body"] == body
