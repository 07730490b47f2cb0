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


import asyncio
import gzip
import json
import logging
import threading
import time
from collections import Counter
from email.utils import formatdate

import pytest
from huggingface_hub import constants
from transformers import AutoTokenizer

from craft_trl import EndpointExpander
from craft_trl.chat import completions
from craft_trl.chat.cache import Answer
from craft_trl.chat.completions import retry_after
from craft_trl.chat.endpoint import MOST_REFUSALS
from craft_trl.errors import UsageError

from ..chat_server import ChatServer, completion, good_variants


PROMPTS = [f"a red fox number {i} under a tree" for i in range(12)]
EXPECTED = [good_variants(prompt, 2) for prompt in PROMPTS]


def expander(server, **kwargs):
    return EndpointExpander("test", server.url, **{"first_pause": 0.01, "timeout": 20.0, **kwargs})


class TestRequests:
    def test_as_openai_documents_them(self, keys):
        keys.setenv("MY_KEY", "sk-123")
        with ChatServer() as server:
            expand = expander(server, api_key_env="MY_KEY", temperature=0.5, extra_body={"enable_thinking": False})
            assert expand(["a red fox"], 3) == [good_variants("a red fox", 3)]
        (body,), (headers,) = server.requests, server.headers
        assert headers["authorization"] == "Bearer sk-123"
        assert body["model"] == "test" and body["temperature"] == 0.5 and body["max_tokens"] == 256 + 3 * 160
        assert body["enable_thinking"] is False and 0 <= body["seed"] < 2**31
        system, user = body["messages"]
        assert system == {"role": "system", "content": expand.instructions} and "max_words" in expand.instructions
        assert json.loads(user["content"]) == {"prompt": "a red fox", "num_variants": 3, "max_words": 56}
        schema = body["response_format"]["json_schema"].pop("schema")
        assert body["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "variants", "strict": True},
        }
        assert schema["properties"]["variants"]["minItems"] == schema["properties"]["variants"]["maxItems"] == 3

    def test_the_hub_token_goes_to_no_other_server(self, keys):
        keys.setenv("HF_TOKEN", "hf_secret")
        with ChatServer() as server:
            expander(server)(["a red fox"], 1)
            keys.setenv("OPENAI_API_KEY", "sk-456")
            expander(server)(["a red fox"], 1)
        assert [headers["authorization"] for headers in server.headers] == ["Bearer none", "Bearer sk-456"]

    def test_variants_depend_on_the_prompt_alone(self):
        with ChatServer(lambda n, prompt, body: json.dumps([f"{prompt} {body['seed']} {i}" for i in "ab"])) as server:
            together = expander(server)(PROMPTS, 2)
            alone = [expander(server, concurrency=1)([prompt], 2)[0] for prompt in reversed(PROMPTS)]
            assert together == alone[::-1] != expander(server, seed=1)(PROMPTS, 2)

    def test_in_a_running_loop(self):
        async def notebook(server):
            return expander(server)(PROMPTS, 2)

        with ChatServer() as server:
            assert asyncio.run(notebook(server)) == EXPECTED

    def test_rate_limit(self):
        # Only that requests are not closer than asked for: how long they take is the machine's affair.
        with ChatServer() as server:
            expander(server, requests_per_minute=1200)(PROMPTS, 2)
        gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
        assert len(gaps) == 11 and sum(gaps) > 0.45  # eleven pauses of 0.05, the first request perhaps late on its way

    def test_never_more_at_a_time(self):
        lock, now, most = threading.Lock(), [0], []

        def behave(number, prompt, body):
            with lock:
                now[0] += 1
                most.append(now[0])
            time.sleep(0.05)
            with lock:
                now[0] -= 1

        with ChatServer(behave) as server:
            assert expander(server, concurrency=3)(PROMPTS, 2) == EXPECTED
        assert max(most) == 3


HTML = (200, {"Content-Type": "text/html"}, b"<html>Bad gateway</html>")
FAULTS = {
    "429": (429, {"Retry-After": "0"}, b'{"error": {"message": "slow down", "type": "rate_limit"}}'),
    "500": (500, {}, b"oops"),
    "503 with a date": (503, {"Retry-After": formatdate(0, usegmt=True)}, b""),
    "an error that is a text": (502, {}, b'"overloaded"'),
    "not JSON": HTML,
    "JSON of something else": (200, {}, b'{"choices": []}'),
    "a list": (200, {}, b"[]"),
    "cut off": "cut",
}


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_that_pass(self, fault):
        with ChatServer(lambda number, prompt, body: FAULTS[fault] if number % 3 == 1 else None) as server:
            expand = expander(server)
            assert expand(PROMPTS, 2) == EXPECTED and not expand.failures
        assert len(server.requests) > len(PROMPTS)

    @pytest.mark.parametrize("fault", ["hang", "trickle"])
    def test_time_out(self, fault):
        with ChatServer(lambda number, prompt, body: fault if number == 0 else None) as server:
            assert expander(server, timeout=0.5)(PROMPTS[:2], 2) == EXPECTED[:2]

    def test_retry_after_wins_over_our_own_pauses(self):
        with ChatServer(lambda number, prompt, body: FAULTS["429"] if number == 0 else None) as server:
            assert expander(server, first_pause=10_000.0)(PROMPTS[:1], 2) == EXPECTED[:1]

    def test_asked_to_come_back_tomorrow(self):
        tomorrow = (429, {"Retry-After": "86400"}, b'{"error": {"message": "quota"}}')
        with ChatServer(lambda number, prompt, body: tomorrow) as server:
            with pytest.raises(
                UsageError, match="status 429, quota; asked 1 times.*asks to wait 86400 seconds.*is kept"
            ):
                expander(server)(PROMPTS[:1], 2)

    def test_dies_halfway(self, tmp_path):
        cache = tmp_path / "answers.jsonl"
        with ChatServer() as server:
            port = server.port
            server.behave = lambda number, prompt, body: "cut" if number >= 5 else None
            with pytest.raises(
                UsageError, match=r"The endpoint of test at http://127.0.0.1:\d+/v1 does not answer \("
            ):
                expander(server, max_retries=2, cache=cache, concurrency=2)(PROMPTS, 2)
        with pytest.raises(UsageError, match="does not answer .*connection.*: run the same command again to go on"):
            expander(server, max_retries=1, cache=cache)(PROMPTS, 2)
        assert len(cache.read_text().splitlines()) == 5
        with ChatServer(port=port) as server:
            expand = expander(server, cache=cache)
            assert expand(PROMPTS, 2) == EXPECTED
            assert len(server.requests) == len(PROMPTS) - 5 and len(expand.answers) == len(PROMPTS)
        assert expander(server, cache=cache)(PROMPTS, 2) == EXPECTED  # of a server that is gone

    @pytest.mark.parametrize("status", [401, 402, 403, 404])
    def test_wrong_key_or_model(self, keys, status):
        keys.setenv("OPENAI_API_KEY", "sk-secret")
        refusal = (status, {}, b'{"error": {"message": "no such thing as sk-secret"}}')
        with ChatServer(lambda number, prompt, body: refusal) as server:
            with pytest.raises(UsageError, match=f"refuses with status {status}, no such thing as ") as error:
                expander(server, concurrency=1)(PROMPTS, 2)
        assert len(server.requests) == 1 and "sk-secret" not in str(error.value)
        assert ("OPENAI_API_KEY" in str(error.value)) == (status != 404)

    def test_one_prompt_is_refused(self):
        inspection = (400, {}, b'{"error": {"message": "inappropriate content", "code": "data_inspection_failed"}}')
        with ChatServer(lambda number, prompt, body: inspection if prompt == PROMPTS[0] else None) as server:
            expand = expander(server, concurrency=1, max_attempts=2)
            assert expand(PROMPTS, 2) == [[], *EXPECTED[1:]]
        assert expand.failures == {PROMPTS[0]: ["refused: status 400, inappropriate content"]}
        # Three times, to see whether it is the format that is refused; it was not.
        assert server.prompts().count(PROMPTS[0]) == 3 and len(server.requests) == len(PROMPTS) + 2
        assert all(body["response_format"]["type"] == "json_schema" for body in server.requests[3:])

    def test_many_prompts_are_refused_among_others(self, tmp_path):
        inspection = (400, {}, b'{"error": {"message": "inappropriate content"}}')
        bad = [f"a bad fox number {i}" for i in range(2 * MOST_REFUSALS)]
        with ChatServer(lambda number, prompt, body: inspection if "bad" in prompt else None) as server:
            for _ in range(2):  # the second time, all that is left to be asked is refused
                expand = expander(server, cache=tmp_path / "answers.jsonl", concurrency=1)
                assert expand([PROMPTS[0], *bad], 2) == [EXPECTED[0], *([] for _ in bad)]
                assert list(expand.failures) == bad

    @pytest.mark.parametrize("fault", ["500", "not JSON", "hang"])
    def test_one_prompt_that_the_server_cannot_answer(self, fault):
        reply = FAULTS.get(fault, fault)
        with ChatServer(lambda number, prompt, body: reply if prompt == PROMPTS[3] else None) as server:
            expand = expander(server, concurrency=1, max_retries=1, timeout=1.0)
            assert expand(PROMPTS[:6], 2) == [*EXPECTED[:3], [], *EXPECTED[4:6]]
        assert list(expand.failures) == [PROMPTS[3]] and "asked 2 times" in expand.failures[PROMPTS[3]][0]

    def test_all_prompts_that_the_server_cannot_answer(self):
        with ChatServer(lambda number, prompt, body: FAULTS["500"]) as server:
            with pytest.raises(UsageError, match="does not answer .status 500, oops; asked 2 times"):
                expander(server, concurrency=1, max_retries=1)(PROMPTS, 2)
        assert len(server.requests) == 4  # two prompts, twice each

    def test_a_rate_limit_that_is_reached_again_and_again(self):
        """One prompt is turned away more often than `max_retries` allows, while others get their answers."""
        changed, asked = threading.Condition(), Counter()

        def behave(number, prompt, body):
            with changed:
                asked[prompt] += 1
                changed.notify_all()
                if prompt == PROMPTS[0] and asked[prompt] < 5:
                    # A request for one prompt more says that the answer to the one before has arrived.
                    assert changed.wait_for(lambda: asked.total() > 2 * asked[PROMPTS[0]], timeout=30)
                    return FAULTS["429"]

        with ChatServer(behave) as server:
            assert expander(server, max_retries=2, concurrency=2)(PROMPTS, 2) == EXPECTED
        assert asked[PROMPTS[0]] == 5

    def test_a_filtered_answer(self):
        filtered = (200, {}, completion(None, "content_filter").encode())
        with ChatServer(lambda number, prompt, body: filtered) as server:
            expand = expander(server, max_attempts=1)
            assert expand(PROMPTS[:1], 2) == [[]] and expand.failures == {PROMPTS[0]: ["refused: its content filter"]}

    def test_everything_is_refused(self):
        with ChatServer(lambda number, prompt, body: (422, {}, b'{"detail": "seed: unexpected"}')) as server:
            with pytest.raises(
                UsageError, match=f"refused the first {MOST_REFUSALS} prompts.* status 422, .*seed: unexpected"
            ):
                expander(server)([f"a fox {i}" for i in range(100)], 2)

    @pytest.mark.parametrize("known", [{"json_object", None}, {None}])
    def test_formats_the_server_does_not_know(self, known, caplog):
        def behave(number, prompt, body):
            if body.get("response_format", {}).get("type") not in known:
                return 400, {}, b'{"error": {"message": "response_format is not supported"}}'

        with caplog.at_level(logging.WARNING), ChatServer(behave) as server:
            expand = expander(server, concurrency=1)
            assert expand(PROMPTS, 2) == EXPECTED
        assert len(server.requests) == len(PROMPTS) + (1 if "json_object" in known else 2)
        assert "does not take the format json_schema" in caplog.text and expand.formats[0] in known

    @pytest.mark.parametrize("packed", [False, True])
    def test_an_endless_answer(self, packed, monkeypatch):
        """It is not read to its end, neither what comes nor what that unpacks to."""
        monkeypatch.setattr(completions, "MAX_BYTES", 1 << 20)
        body = b'{"choices": "' + b"x" * (64 << 20 if packed else 2 << 20)
        headers = {"Content-Encoding": "gzip"} if packed else {}
        endless = (200, headers, gzip.compress(body) if packed else body)
        with ChatServer(lambda number, prompt, body: endless if number == 0 else None) as server:
            assert expander(server)(PROMPTS[:1], 2) == EXPECTED[:1]
            assert len(server.requests) == 2


class TestAnswers:
    PROMPT = 'two red cars beside a sign that says "STOP"'
    GOOD = ['two red cars parked by a "STOP" sign at dusk', 'a pair of red cars beside a "STOP" sign in fog']

    def ask(self, replies, **kwargs):
        """What comes of replies to successive questions, the last for all after it."""
        with ChatServer(lambda number, prompt, body: replies[min(number, len(replies) - 1)]) as server:
            expand = expander(server, **kwargs)
            return expand([self.PROMPT], 2)[0], expand, server

    @pytest.mark.parametrize(
        "reply",
        [
            "{}",
            "```json\n{}\n```",
            "<think>[two] {{cars}}</think>\n{}",
            "Here you are: {} I hope you like them.",
        ],
    )
    def test_around_the_json(self, reply):
        for content in (self.GOOD, {"variants": self.GOOD}):
            assert self.ask([reply.format(json.dumps(content))])[0] == self.GOOD

    @pytest.mark.parametrize(
        ("bad", "fault"),
        [
            ("I cannot do that.", "format: no JSON in the answer"),
            ('{"variants": ["two red cars', "format: not JSON (Unterminated string starting at)"),
            ('{"variants": "two red cars"}', "format: no list of texts under `variants`"),
            ('{"variants": []}', "too few: 0 variants instead of 2"),
            ("", "format: no JSON in the answer"),
            (['Two red cars, beside a sign that says "STOP".'] * 2, "unchanged: it says the same as the prompt"),
            (['red cars by a "STOP" sign'] * 2, "lost number: 2"),
            (['two cars by a "STOP" sign'] * 2, "lost colour: red"),
            (["two red cars by a stop sign"] * 2, "lost text: STOP"),
            (['два красных автомобиля у знака "STOP", red, two'] * 2, "language: Cyrillic letters instead of Latin"),
        ],
    )
    def test_a_bad_answer_is_asked_for_again(self, bad, fault):
        bad = bad if isinstance(bad, str) else json.dumps({"variants": bad})
        got, expand, server = self.ask([bad, json.dumps(self.GOOD)])
        assert got == self.GOOD and not expand.failures and expand.faults[fault.partition(":")[0]] >= 1
        assert len(server.requests) == 2 and server.requests[0]["seed"] != server.requests[1]["seed"]

        got, expand, server = self.ask([bad], max_attempts=3)
        assert got == [] and len(server.requests) == 3
        assert set(expand.failures[self.PROMPT]) == {fault}

    def test_what_is_good_of_an_answer_is_kept(self):
        answers = [[self.GOOD[0], "two red cars"], [self.GOOD[0], self.GOOD[0].upper()], [self.GOOD[1], "x"]]
        got, expand, _ = self.ask([json.dumps(answer) for answer in answers])
        assert got == self.GOOD
        assert expand.faults == {"lost text": 1, "repeated": 2}

    def test_more_than_asked_for(self):
        assert self.ask([json.dumps([*self.GOOD, 'two red cars, "STOP", snow'])])[0] == self.GOOD

    def test_too_long_for_the_image_model(self, tiny):
        tokenizer = AutoTokenizer.from_pretrained(tiny / "pipeline", subfolder="tokenizer")
        long = self.GOOD[0] + ", sharp" * 30
        got, expand, server = self.ask([json.dumps([long, long])], tokenizers=[tokenizer], max_attempts=1)
        assert got == [] and "tokens, the model reads 32" in expand.failures[self.PROMPT][0]
        assert json.loads(server.requests[0]["messages"][1]["content"])["max_words"] == 22

    @pytest.mark.parametrize(
        "parts",
        [
            [{"type": "text", "text": "{}"}],
            [{"type": "thinking", "thinking": [{"type": "text", "text": "[hm]"}]}, {"type": "text", "text": "{}"}],
            ["{}"],
            [{"type": "output_text", "text": '{{"variants": '}, {"type": "output_text", "text": "{}"}, {"text": "}}"}],
        ],
    )
    def test_parts(self, parts):
        """Models that reason answer in a list of parts; the texts of it are the answer."""
        good = json.dumps(self.GOOD)
        parts = json.loads(
            json.dumps(parts).replace("{}", json.dumps(good)[1:-1]).replace("{{", "{").replace("}}", "}")
        )
        got, expand, server = self.ask([(200, {}, completion(parts).encode())])
        assert got == self.GOOD and len(server.requests) == 1

    @pytest.mark.parametrize("content", [[], [3], [{"type": "refusal", "refusal": "no"}], {"text": "x"}, 3, [[]]])
    def test_content_that_is_no_text(self, content, tmp_path):
        cache = tmp_path / "answers.jsonl"
        got, expand, server = self.ask([(200, {}, completion(content).encode()), json.dumps(self.GOOD)], cache=cache)
        assert got == self.GOOD and len(server.requests) == 2 == len(cache.read_text().splitlines()) + 1

    @pytest.mark.parametrize(
        "variant", ["two red cars, \ud83c", "two red cars, \ufffd", "two red \0 cars", "\udf4e\ud83c two red cars"]
    )
    @pytest.mark.parametrize("escaped", [False, True])
    def test_half_an_emoji(self, variant, escaped, tmp_path):
        """Where a server has cut one, or a model writes one, the variant is not taken, and the rest is."""
        cache = tmp_path / "answers.jsonl"
        bad = json.dumps([self.GOOD[0], f'{variant} "STOP"'], ensure_ascii=escaped)
        good = json.dumps(self.GOOD)
        got, expand, server = self.ask([(200, {}, completion(bad).encode()), good], cache=cache)
        assert got == self.GOOD and expand.faults == {"format": 1, "repeated": 1} and len(server.requests) == 2
        again, expand, server = self.ask([good], cache=cache)
        assert again == self.GOOD and not server.requests and expand.faults["format"] == 1

    @pytest.mark.parametrize(
        "usage", [None, {}, {"prompt_tokens": "12"}, {"prompt_tokens": -1, "completion_tokens": True}]
    )
    def test_odd_counts_of_tokens(self, usage):
        body = json.loads(completion(json.dumps(self.GOOD))) | {"usage": usage}
        got, expand, _ = self.ask([(200, {}, json.dumps(body).encode())])
        assert got == self.GOOD and expand.answers == [Answer(json.dumps(self.GOOD), "stop")]

    def test_a_key_that_is_there_twice(self):
        bad = json.dumps({"variants": self.GOOD})[:-1] + ', "variants": []}'
        assert set(self.ask([bad], max_attempts=1)[1].failures[self.PROMPT]) == {
            "format: not JSON (the key 'variants' is there twice)"
        }

    def test_truncated(self):
        cut = (200, {}, completion('{"variants": ["two', "length").encode())
        got, expand, _ = self.ask([cut, json.dumps(self.GOOD)])
        assert got == self.GOOD and expand.faults == {"truncated": 1}


class TestCache:
    def test_other_settings_are_other_questions(self, tmp_path):
        cache, own = tmp_path / "a" / "answers.jsonl", tmp_path / "own.txt"
        own.write_text("Answer with JSON.")
        with ChatServer() as server:
            for kwargs in ({}, {"temperature": 1.0}, {"seed": 1}, {"instructions": own}, {"max_tokens": 900}):
                for _ in range(2):
                    expander(server, cache=cache, **kwargs)(PROMPTS[:2], 2)
            expander(server, cache=cache)(PROMPTS[:2], 3)
        assert len(server.requests) == 12 == len(cache.read_text().splitlines())
        row = json.loads(cache.read_text().splitlines()[0])
        assert {"prompt", "instructions", "model", "temperature", "seed", "index"} <= row["question"].keys()

    def test_bad_answers_are_kept_too(self, tmp_path):
        with ChatServer(lambda number, prompt, body: "no") as server:
            for _ in range(2):
                expand = expander(server, cache=tmp_path / "answers.jsonl", max_attempts=3)
                assert expand(PROMPTS[:1], 2) == [[]]
        assert len(server.requests) == 3

    def test_a_line_that_was_cut_off(self, tmp_path):
        cache = tmp_path / "answers.jsonl"
        with ChatServer() as server:
            expander(server, cache=cache)(PROMPTS[:3], 2)
            cache.write_bytes(cache.read_bytes()[:-30])
            for asked in (4, 4):
                expand = expander(server, cache=cache)
                assert expand(PROMPTS[:3], 2) == EXPECTED[:3] and len(server.requests) == asked
        assert expand.cache.damaged == 1

    @pytest.mark.parametrize(
        "answer",
        [
            {"text": [{"type": "text", "text": "x"}]},
            {"text": "a \ud83c"},
            {"text": None},
            {"text": "[]", "prompt_tokens": "7"},
            {"text": "[]", "tokens": 7},
            ["[]"],
            None,
        ],
    )
    def test_a_line_that_holds_no_answer(self, tmp_path, answer):
        """Whatever put it there, its question is asked again, and the run goes on."""
        cache = tmp_path / "answers.jsonl"
        with ChatServer() as server:
            expander(server, cache=cache)(PROMPTS[:3], 2)
            rows = [json.loads(line) for line in cache.read_text().splitlines()]
            rows[1]["answer"] = answer
            cache.write_text("".join(json.dumps(row) + "\n" for row in rows))
            for asked in (4, 4):
                expand = expander(server, cache=cache)
                assert expand(PROMPTS[:3], 2) == EXPECTED[:3] and len(server.requests) == asked
        assert expand.cache.damaged == 1

    def test_a_folder_in_its_place(self, tmp_path):
        with pytest.raises(UsageError, match="Cannot read the expander's answers .*: Is a directory"):
            EndpointExpander("test", "http://host/v1", cache=tmp_path)


class TestSettings:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"base_url": "localhost:8000"}, "base_url must be like https://host/v1, got 'localhost:8000'"),
            ({"base_url": "https://me:secret@host/v1"}, "base_url holds a key: give it in an environment variable"),
            ({"base_url": "https://host/v1?key=secret"}, "base_url holds a key"),
            ({"base_url": "http://host/v1", "provider": "groq"}, "its provider 'groq' would be ignored"),
            ({"provider": "grok", "api_key_env": "MY_KEY"}, "no Inference Provider 'grok'. Did you mean groq"),
            ({"base_url": "http://host/v1", "api_key_env": "MY_KEY"}, "environment variable MY_KEY"),
            ({}, "environment variable HF_TOKEN"),
            ({"base_url": "http://host/v1", "concurrency": 0}, "concurrency must be from 1 to 100, got 0"),
            ({"base_url": "http://host/v1", "timeout": 0}, "timeout must be above 0, got 0"),
            ({"base_url": "http://host/v1", "requests_per_minute": -1}, "requests_per_minute must be above 0"),
            ({"base_url": "http://host/v1", "max_retries": -1}, "max_retries must be at least 0"),
            ({"base_url": "http://host/v1", "temperature": 0}, "temperature of the expander must be above 0, got 0"),
            ({"base_url": "http://host/v1", "max_attempts": 0}, "max_attempts must be at least 1"),
            (
                {"base_url": "http://host/v1", "instructions": "none.txt"},
                "Cannot read the expander's instructions none",
            ),
        ],
    )
    def test_wrong(self, kwargs, message, tmp_path, keys):
        keys.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        keys.setattr(constants, "HF_HUB_OFFLINE", False)
        with pytest.raises(UsageError, match=message) as error:
            EndpointExpander("test", **kwargs)
        assert "secret" not in str(error.value)

    def test_offline(self, keys):
        keys.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set, and the expander has no base_url"):
            EndpointExpander("test")
        with ChatServer() as server:  # not the Hub
            assert expander(server)(PROMPTS, 2) == EXPECTED

    def test_the_key_is_not_among_the_settings(self, keys):
        keys.setenv("MY_KEY", "sk-secret")
        expand = EndpointExpander("test", "http://host/v1", api_key_env="MY_KEY")
        assert "secret" not in json.dumps(expand.settings) and "sk-secret" not in str(vars(expand))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("7", 7.0), ("0.5", 0.5), ("-3", 0.0), (formatdate(0, usegmt=True), 0.0), ("soon", None)],
)
def test_retry_after(value, seconds):
    assert retry_after(value) == seconds
