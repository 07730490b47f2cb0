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

"""Judges that are asked, over HTTP on loopback, with every fault that a server may have."""

import base64
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from craft_trl import VLMJudge
from craft_trl.chat import completions
from craft_trl.errors import UsageError
from craft_trl.rewards import RewardSpec, score
from craft_trl.rewards.vlm import asking
from craft_trl.rewards.vlm.asking import BLIND

from ...chat_server import ChatServer, VisionServer, completion


PROMPTS = [f"a fox number {i}" for i in range(6)]
REDS = [255, 204, 153, 102, 51, 0]
IMAGES = [Image.new("RGB", (16, 16), (red, 0, 255 - red)) for red in REDS]
SHARES = [max(0.001, min(0.999, red / 255)) for red in REDS]


@pytest.fixture
def make(tmp_path):
    """A judge at a server, with pauses that are short."""

    def judge(server, options="", name="vqascore", cache="answers.jsonl", **kwargs):
        spec = RewardSpec.parse(f"{name}=vlm:judge@{server.url}?cache={tmp_path}/{cache}{options and '&' + options}")
        return VLMJudge(spec.judge, name, **{"first_pause": 0.01, **kwargs})

    return judge


def file_of(tmp_path, text, name="q.yaml"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


class TestScores:
    @pytest.mark.parametrize(
        ("reading", "scale"), [("token", 0.9), ("mass", 1.0), ("normalised", 1.0), ("normalised_exact", None)]
    )
    def test_probabilities(self, make, reading, scale):
        with VisionServer() as server:
            scores = make(server, f"reading={reading}")(IMAGES, PROMPTS)
        expected = [share * scale if scale else share * 0.9 / (share * 0.9 + 1 - share) for share in SHARES]
        np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)

    def test_what_is_sent(self, make, keys):
        keys.setenv("OPENAI_API_KEY", "sk-123")
        with VisionServer() as server:
            make(server)(IMAGES[:1], ['a "red" {fox}'])
        body, headers = server.requests[-1], server.headers[-1]
        assert server.questions() == ['Does this figure show "a "red" {fox}"? Please answer Yes or No.']
        assert np.array_equal(np.asarray(server.picture_of(body)), np.asarray(IMAGES[0]))
        assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
        rest = {key: value for key, value in body.items() if key != "messages" and value is not None}
        assert rest == {
            "model": "judge", "stream": False, "max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": 20,
            "chat_template_kwargs": {"enable_thinking": False},
        }  # fmt: skip
        assert headers["authorization"] == "Bearer sk-123" and server.gets == ["/v1/models"]

    def test_questions_of_ones_own(self, make, tmp_path):
        """A mean by weight; of a question to which no is right, the probability of no."""
        path = file_of(
            tmp_path,
            "system: You judge.\nquestions:\n- Is it red?\n- {question: 'Is it ugly?', answer: No, weight: 3}\n"
            "- {question: 'How many foxes?', answer: three}\n",
        )
        with VisionServer() as server:
            scores = make(server, f"questions={path}", name="mine")(IMAGES[1:3], PROMPTS[:2])
            assert server.requests[-1]["messages"][0] == {"role": "system", "content": "You judge."}
        np.testing.assert_allclose(scores.numpy(), [(p + 3 * (1 - p) + p) / 5 for p in SHARES[1:3]], atol=1e-6)

    def test_a_number(self, make, tmp_path):
        path = file_of(tmp_path, "questions: ['Rate \"{prompt}\".']\nscore: {low: 1, high: 5}\nmax_tokens: 64\n")
        with VisionServer(lambda n, question, body: "I say 4.5." if question.startswith("Rate") else None) as server:
            judge = make(server, f"questions={path}", name="mine")
            assert judge(IMAGES[:2], PROMPTS[:2]).tolist() == [0.875, 0.875]
            assert server.requests[-1]["max_tokens"] == 64 and "logprobs" not in server.requests[-1]
        assert judge.usage == {"images": 2, "answers": 2, "prompt_tokens": 1000, "completion_tokens": 200}

    def test_words_are_asked_for_again_and_averaged(self, make):
        """Each sample has a seed of its own, the same in every run."""
        said = {}

        def behave(number, question, body):
            if "figure" in question:
                return said.setdefault(body["seed"], "Yes" if len(said) % 5 < 3 else "no.")

        seeds = []
        for cache in "ab":
            with VisionServer(behave) as server:
                judge = make(server, "reading=text&concurrency=1", cache=cache)
                assert judge(IMAGES[:1], PROMPTS[:1]).tolist() == pytest.approx([0.6])
            seeds.append([body["seed"] for body in server.requests[2:]])
            assert {body["temperature"] for body in server.requests[2:]} == {1.0}
            assert {body["temperature"] for body in server.requests[:2]} == {0.0}
        assert seeds[0] == seeds[1] and len({*seeds[0]}) == 5

    def test_in_the_one_pass_of_all_rewards(self, make):
        with VisionServer() as server:
            scores = score({"vqascore": make(server)}, IMAGES, PROMPTS)["vqascore"]
        assert scores.dtype == np.float32 and scores.argmax() == 0

    def test_modes_of_images(self, make):
        with VisionServer() as server:
            scores = make(server)([IMAGES[0].convert(mode) for mode in ("RGB", "RGBA", "P")], ["a", "b", "c"])
        assert scores.tolist() == pytest.approx([0.9 * 0.999] * 3)


class TestKept:
    def test_nothing_is_asked_twice(self, make, tmp_path):
        with VisionServer() as server:
            first = make(server)([*IMAGES, IMAGES[0]], [*PROMPTS, PROMPTS[0]])
            assert len(server.requests) == 2 + 6
            again = make(server, "reading=mass")(IMAGES, PROMPTS)  # read otherwise, from the same answers
            assert len(server.requests) == 2 + 6 + 2
            assert first[:6].tolist() == pytest.approx([0.9 * p for p in again.tolist()])
            make(server)(IMAGES[:1], ["another prompt"])
            make(server, "top=5")(IMAGES[:1], PROMPTS[:1])
            assert len(server.requests) == 2 + 6 + 2 + 3 + 3
        row = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])
        assert row["question"]["model"] == "judge" and len(row["question"]["image"]) == 64
        assert row["answer"]["first"][0][0] == "Yes"

    def test_another_model_behind_the_name_is_another_judge(self, make):
        with VisionServer() as server:
            one = make(server)
            one(IMAGES, PROMPTS)
            server.models[0] |= {"root": "other", "created": 7}
            other = make(server)
            other(IMAGES, PROMPTS)
            assert len(server.requests) == 2 * (2 + 6) and one.fingerprint != other.fingerprint
            server.models[0]["created"] = 9
            assert make(server).fingerprint == other.fingerprint

    def test_a_server_that_says_nothing_of_its_models(self, make):
        with VisionServer() as server:
            server.models = None
            assert make(server)(IMAGES, PROMPTS)[0] > 0.8

    def test_the_fingerprint(self, make):
        with VisionServer() as server:
            judge = make(server)
            name = re.escape(f"VQAScore {judge.template.hash}")
            pattern = f"vlm: judge, {name}, token, top 20, id judge owned_by test"
            assert re.fullmatch(pattern, judge.fingerprint)
            assert judge.note.startswith(
                f"judge at 127.0.0.1:{server.port}, template VQAScore ({judge.template.hash}), P(Yes)"
            )
            assert make(server, "reading=text").fingerprint != judge.fingerprint

    def test_a_thousand_images_and_a_server_that_dies(self, make):
        """It dies in the middle of an answer, and comes back on its port. Every answer that was given is paid for once."""
        images = [Image.new("RGB", (8, 8), (i % 256, i // 256, 255 - i % 256)) for i in range(1000)]
        prompts = [f"a fox number {i}" for i in range(1000)]
        with VisionServer() as server:
            port = server.port
            server.behave = lambda number, question, body: "cut" if number >= 2 + 600 else None
            with pytest.raises(UsageError, match="does not answer .* What it has answered is kept: run the same"):
                make(server, "max_retries=1&concurrency=16")(images, prompts)
            answered = server.prompts()[2:602]
        with VisionServer(port=port) as server:
            judge = make(server, "max_retries=1&concurrency=16")
            scores = judge(images, prompts)
            assert len(server.questions()) == 400 and not {*answered} & {*server.questions()}
            asked = len(server.requests)
            assert make(server)(images, prompts).tolist() == scores.tolist() and len(server.requests) == asked + 2
        assert judge.usage["answers"] == 1000
        expected = [0.9 * max(0.001, min(0.999, (i % 256) / 255)) for i in range(1000)]
        np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)


HUGE = b'{"choices": "' + b"x" * (2 << 20)
FAULTS = {
    "429": (429, {"Retry-After": "0"}, b'{"error": {"message": "slow down"}}'),
    "500": (500, {}, b"oops"),
    "not JSON": (200, {}, b"<html>Bad gateway</html>"),
    "no choices": (200, {}, b'{"choices": []}'),
    "cut off": "cut",
    "huge": (200, {}, HUGE),
}


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_that_pass(self, make, fault, monkeypatch):
        monkeypatch.setattr(completions, "MAX_BYTES", 1 << 20)
        with VisionServer(lambda number, question, body: FAULTS[fault] if number % 3 == 1 else None) as server:
            np.testing.assert_allclose(make(server)(IMAGES, PROMPTS).numpy(), [0.9 * p for p in SHARES], atol=1e-6)

    @pytest.mark.parametrize("fault", ["500", "not JSON", "no choices"])
    def test_that_stay(self, make, fault, tmp_path):
        """It is no score of 0, also where a refusal is to be one, and what others got is kept."""
        bad = re.escape(PROMPTS[3])
        with VisionServer(lambda n, question, body: FAULTS[fault] if PROMPTS[3] in question else None) as server:
            judge = make(server, "refused=0&max_retries=1")
            with pytest.raises(
                UsageError, match=f"vqascore: The endpoint of judge at .*{bad}.*; asked 2 times. What it"
            ):
                judge(IMAGES, PROMPTS)
        assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 5

    REFUSALS = {
        "a filter": (200, {}, completion(None, "content_filter").encode()),
        "words": (200, {}, completion(None, refusal="I will not look at this.").encode()),
        "a status": (400, {}, b'{"error": {"message": "data may contain inappropriate content"}}'),
    }

    @pytest.mark.parametrize("kind", REFUSALS)
    def test_refusals(self, make, kind, tmp_path, caplog):
        refuse = self.REFUSALS[kind]
        with VisionServer(lambda number, question, body: refuse if PROMPTS[2] in question else None) as server:
            with pytest.raises(
                UsageError, match=f"refused questions about 1 images, first one of '{PROMPTS[2]}': .*refused=0"
            ):
                make(server)(IMAGES, PROMPTS)
            assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 5
            judge = make(server, "refused=-1")
            assert judge(IMAGES, PROMPTS)[2] == -1 and "They count -1." in caplog.text and "counts -1" in judge.note

    def test_a_picture_that_is_too_large_is_no_refusal_of_its_content(self, make):
        large = (413, {}, b'{"error": {"message": "too large"}}')
        with VisionServer(lambda number, question, body: large if PROMPTS[2] in question else None) as server:
            with pytest.raises(
                UsageError, match=f"does not answer a question about an image of '{PROMPTS[2]}': status 413"
            ):
                make(server, "refused=0")(IMAGES, PROMPTS)

    def test_no_probabilities_where_they_are_asked_for(self, make, tmp_path):
        with VisionServer(lambda number, question, body: "Yes" if PROMPTS[2] in question else None) as server:
            with pytest.raises(
                UsageError, match="1 questions without an answer; to 'Does.*no log-probabilities; reading=text"
            ):
                make(server)(IMAGES, PROMPTS)
            assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 5

    @pytest.mark.parametrize(
        "first", [[("<think>", 1.0)], [("The", 0.9), ("A", 0.1)]], ids=["thinks", "says something else"]
    )
    def test_probabilities_of_something_else(self, make, first):
        reply = (200, {}, completion("x", first=first).encode())
        with VisionServer(lambda number, question, body: reply if number >= 2 else None) as server:
            with pytest.raises(UsageError, match=f"Yes or No is not among the likeliest answers: '{first[0][0]}'"):
                make(server)(IMAGES[:1], PROMPTS[:1])

    def test_words_without_an_answer(self, make):
        """They are asked for again with another seed, three times in all where words are sampled."""
        with VisionServer(lambda n, question, body: "I cannot tell." if PROMPTS[1] in question else None) as server:
            with pytest.raises(
                UsageError, match="5 questions without an answer; to .*it says 'I cannot tell.', neither Yes"
            ):
                make(server, "reading=text")(IMAGES[:2], PROMPTS[:2])
            asked = [body for body in server.requests if PROMPTS[1] in server.prompt_of(body)]
            assert len(asked) == len({body["seed"] for body in asked}) == 15

    def test_one_bad_sample_is_replaced(self, make):
        with VisionServer(lambda n, question, body: "Hm." if number_of(server, body) == 0 else None) as server:
            assert make(server, "reading=text&concurrency=1")(IMAGES[:1], PROMPTS[:1]).tolist() == [1.0]
            assert len(server.questions()) == 6

    def test_words_that_were_cut_off(self, make):
        cut = (200, {}, completion("Yes, because", "length").encode())
        with VisionServer(lambda number, question, body: cut if "figure" in question else None) as server:
            with pytest.raises(UsageError, match=r"cut off after 512 tokens \(max_tokens\)"):
                make(server, "reading=text&samples=1")(IMAGES[:1], PROMPTS[:1])

    def test_a_parameter_that_the_server_does_not_take(self, make, caplog):
        unknown = (400, {}, b'{"error": {"message": "Unknown parameter: chat_template_kwargs"}}')
        with VisionServer(lambda n, question, body: unknown if "chat_template_kwargs" in body else None) as server:
            assert make(server)(IMAGES, PROMPTS)[0] > 0.8
        assert "does not take chat_template_kwargs: asked without." in caplog.text

    def test_keys_are_said_nowhere(self, make, keys, tmp_path):
        keys.setenv("MY_KEY", "sk-secret123")
        refusal = (401, {}, b'{"error": {"message": "no such key: sk-secret123"}}')
        with VisionServer(lambda number, question, body: refusal if number >= 4 else None) as server:
            judge = make(server, "api_key_env=MY_KEY&concurrency=1")
            with pytest.raises(
                UsageError, match=r"status 401, no such key: \*\*\*. The key is that of MY_KEY"
            ) as error:
                judge(IMAGES, PROMPTS)
        said = f"{error.value}{judge.note}{judge.fingerprint}{vars(judge)}{(tmp_path / 'answers.jsonl').read_text()}"
        assert "sk-secret123" not in said and server.headers[-1]["authorization"] == "Bearer sk-secret123"

    def test_a_server_that_is_not_there(self, make):
        with VisionServer() as server:
            pass
        with pytest.raises(UsageError, match="The endpoint of judge at .* does not answer"):
            str(make(server, "max_retries=1").fingerprint)


def number_of(server, body):
    """How many questions were asked before this one."""
    return [id(request) for request in server.requests[2:]].index(id(body)) if body in server.requests[2:] else None


class TestSight:
    @pytest.mark.parametrize("options", ["", "reading=text", "reading=mass"])
    def test_a_judge_that_does_not_see(self, make, options):
        """As a server that drops the picture for a model that takes none: the same for every picture."""

        def blind(number, question, body):
            if body.get("logprobs"):
                return 200, {}, completion("Yes", first=[("Yes", 0.8), ("No", 0.2)]).encode()
            return "It looks red."

        with VisionServer(blind) as server:
            with pytest.raises(UsageError, match="was shown a red and a blue picture, and .*" + re.escape(BLIND)):
                make(server, options)(IMAGES, PROMPTS)
            assert len(server.requests) == 2
            if not options:
                assert make(server, "probe=false")(IMAGES[:1], PROMPTS[:1]).tolist() == pytest.approx([0.8])

    def test_a_judge_that_sees_the_opposite(self, make):
        def turned(number, question, body):
            p = 0.4 if number == 0 else 0.45
            return 200, {}, completion("No", first=[("No", 1 - p), ("Yes", p)]).encode()

        with VisionServer(turned) as server:
            with pytest.raises(UsageError, match="the probability that they are red is 0.4[05]0 and 0.4[05]0"):
                make(server, "concurrency=1")(IMAGES, PROMPTS)

    def test_pictures_that_are_refused(self, make):
        with VisionServer(lambda *_: (400, {}, b'{"error": {"message": "the model takes no images"}}')) as server:
            with pytest.raises(UsageError, match="refuses a question about a picture of one color: .*takes no images"):
                make(server)(IMAGES, PROMPTS)


class TestWithoutProbabilities:
    def test_words_are_read_then_and_it_is_said(self, make, caplog):
        with VisionServer(probabilities=False) as server:
            judge = make(server)
            assert judge(IMAGES, PROMPTS).tolist() == [1, 1, 1, 0, 0, 0]
            assert judge.asking.reading == "text" and "5 samples" in judge.note and "text, 5 at 1" in judge.fingerprint
            assert "gives no log-probabilities: every question of vqascore is asked 5 times" in caplog.text
            assert len([q for q in server.prompts() if "figure" in q]) == 5 * 6
            with pytest.raises(UsageError, match="no log-probabilities; reading=text"):
                make(server, "reading=token")(IMAGES, PROMPTS)


def systemone(body):
    """As `/v1/systemone` of `transformers serve`."""
    (asset,) = body["assets"].values()
    picture = Image.open(io.BytesIO(base64.b64decode(asset["data_base64"])))
    assert body["state"] in body["assets"] and body["questions"]["q"]["type"] == "noul"
    return {
        "answers": {"q": {"type": "noul", "noul": picture.getpixel((0, 0))[0] / 255}},
        "usage": {"input_tokens": 70},
    }


class TestSystemOne:
    def test_it_is_found_where_the_chat_gives_no_probabilities(self, make):
        with VisionServer(probabilities=False) as server:
            server.others["/v1/systemone"] = systemone
            judge = make(server)
            assert judge(IMAGES, PROMPTS).tolist() == pytest.approx([red / 255 for red in REDS])
        assert judge.asking.reading == "systemone" and judge.usage["prompt_tokens"] == 6 * 70

    @pytest.mark.parametrize(
        "reply",
        [
            {}, [], {"answers": {}}, {"answers": {"other": {"noul": 0.5}}}, {"answers": {"q": {"noul": "high"}}},
            {"answers": {"q": {"noul": 1.7}}}, {"answers": {"q": {"noul": float("nan")}}},
            {"answers": {"q": {"choice": "Yes"}}},
        ],
    )  # fmt: skip
    def test_what_is_no_answer(self, make, reply, tmp_path):
        """Other names, other numbers of answers, and what is no probability, never count as a score."""
        bad = lambda body: reply if PROMPTS[3] in body["questions"]["q"]["instructions"] else systemone(body)  # noqa: E731
        with VisionServer() as server:
            server.others["/v1/systemone"] = bad
            with pytest.raises(UsageError, match="what came is no chat completion; asked 2 times"):
                make(server, "reading=systemone&max_retries=1&refused=0")(IMAGES, PROMPTS)
        assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 5


class TestBenchmarks:
    ROW = {
        "prompt": "three red foxes",
        "vqa_list": [["How many foxes are in the image?", "three"], ["Are the foxes red?", "Yes"]],
        "questions": [
            {"id": 1, "parents": [0], "tuple": "entity - whole (foxes)", "question": "Are there foxes?"},
            {"id": 2, "parents": [1], "tuple": "attribute - color (foxes, red)", "question": "Are the foxes red?"},
            {"id": 3, "parents": [2], "tuple": "other - count (foxes)", "question": "Is one of them blue?"},
        ],
    }

    def judge(self, make, server, name, options=""):
        judge = make(server, options, name=name)
        judge.metadata = {self.ROW["prompt"]: self.ROW}
        return judge

    def test_geneval2(self, make):
        def behave(number, question, body):
            if question.startswith("Are the"):
                return 200, {}, completion("Yes", first=[("Yes", 0.5), ("No", 0.3), (" yes", 0.14)]).encode()

        with VisionServer(behave) as server:
            prompts = [self.ROW["prompt"]] * 2
            arithmetic = self.judge(make, server, "geneval2_am")(IMAGES[1:3], prompts)
            assert {*server.questions()} == {f"{q} Answer in one word." for q, _ in self.ROW["vqa_list"]}
            asked = len(server.requests)
            geometric = self.judge(make, server, "geneval2_gm")(IMAGES[1:3], prompts)
            assert len(server.requests) == asked + 2  # the other mean of the same answers
        atoms = [[share, 0.64] for share in SHARES[1:3]]
        np.testing.assert_allclose(arithmetic.numpy(), [sum(a) / 2 for a in atoms], atol=1e-6)
        np.testing.assert_allclose(geometric.numpy(), [math.sqrt(a[0] * a[1]) for a in atoms], atol=1e-6)

    def test_dpg(self, make):
        no = (200, {}, completion("No", first=[("No", 0.9), ("Yes", 0.1)]).encode())
        with VisionServer(lambda n, question, body: no if question.startswith("Are the f") else None) as server:
            judge = self.judge(make, server, "dpg")
            scores = judge([IMAGES[0], IMAGES[5]], [self.ROW["prompt"]] * 2)
        assert scores.tolist() == pytest.approx([1 / 3, 0])  # the blue one depends on the red one
        assert "Are there foxes? Please answer Yes or No." in server.questions()
        assert "published tables are of another judge, mPLUG" in judge.note

    @pytest.mark.parametrize(
        ("name", "row"),
        [
            ("geneval2_am", {"vqa_list": [["What color is the fox?", "red"]]}),
            ("geneval2_am", {"vqa_list": "[]"}),
            ("geneval2_gm", {"vqa_list": []}),
            ("dpg", {"questions": [{"id": 1, "parents": [7], "question": "Is it?"}]}),
            ("dpg", {"questions": [{"id": 1, "question": "Is it?"}]}),
        ],
    )
    def test_rows_of_another_format(self, make, name, row):
        with VisionServer() as server:
            judge = make(server, name=name)
            judge.metadata = {"a fox": row}
            with pytest.raises(UsageError, match="what is asked of 'a fox' is not in the published format"):
                judge(IMAGES[:1], ["a fox"])
            assert not server.requests

    def test_a_prompt_of_another_set(self, make):
        with VisionServer() as server:
            with pytest.raises(
                UsageError, match="dpg does not know what 'a fox' asks for: DPG-Bench by a VLM judges its own"
            ):
                self.judge(make, server, "dpg")(IMAGES[:1], ["a fox"])


def test_a_chat_server_without_pictures_is_no_judge(make):
    """One that answers everything with the same text."""
    with ChatServer(lambda *_: "Yes") as server:
        server.prompt_of = lambda body: ""
        with pytest.raises(UsageError, match="says 'Yes' and 'Yes'"):
            make(server)(IMAGES[:1], PROMPTS[:1])
    assert asking.SURE == 0.1
