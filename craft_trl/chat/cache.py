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

"""Answers of language models, kept on disk so that no question is ever paid for twice."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..stages import fingerprint
from ..texts import find_flaw, parse_json


@dataclass(frozen=True)
class Answer:
    """
    What a language model answered.

    Args:
        text (`str`):
            The answer as it came.
        finish_reason (`str`, *optional*):
            Why it ended: `"stop"`, or `"length"` where it was cut off.
        prompt_tokens (`int`, *optional*):
            Tokens of the question, if the server says so.
        completion_tokens (`int`, *optional*):
            Tokens of the answer, if the server says so.
        first (`list[list]`, *optional*):
            What the answer may begin with, tokens and their probabilities, where these were asked for and came.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first: list[list] | None = None

    def __post_init__(self):
        counts = (self.prompt_tokens, self.completion_tokens)
        if not (
            isinstance(self.text, str)
            and find_flaw(self.text) is None
            and isinstance(self.finish_reason, str | None)
            and all(count is None or (type(count) is int and count >= 0) for count in counts)
            and (self.first is None or (isinstance(self.first, list) and all(map(_is_likely, self.first))))
        ):
            raise TypeError("what came is no answer")

    def row(self) -> dict[str, Any]:
        """It as JSON; an answer without probabilities says nothing of them."""
        return {name: value for name, value in asdict(self).items() if name != "first" or value is not None}


def _is_likely(pair: Any) -> bool:
    """Whether this is a token and its probability."""
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and find_flaw(pair[0]) is None):
        return False
    return isinstance(pair[1], float | int) and 0 <= pair[1] <= 1.001  # rounded, and no NaN


@dataclass(frozen=True)
class Refusal:
    """
    What a server says when it will not answer a question. It is not kept: the next run asks again.

    Args:
        reason (`str`):
            Why, in its words.
        failed (`bool`, *optional*, defaults to `False`):
            Whether it was not unwilling but unable.
    """

    reason: str
    failed: bool = False


class AnswerCache:
    """
    Answers by question in an append-only `.jsonl` file, a line each.

    A line is written as soon as its answer is there. A line that is none when the file is read again, because a kill cut
    it off or because it holds what is no answer, is passed over, so that its question is asked again.

    Args:
        path (`str` or `Path`, *optional*):
            The file. Defaults to keeping answers in memory only.
        owner (`str`, *optional*, defaults to `"expander"`):
            Whose answers they are, for error messages.
    """

    def __init__(self, path: str | Path | None = None, owner: str = "expander"):
        self.path = None if path is None else Path(path)
        self.owner, self.damaged, self._seen = owner, 0, 0
        self._answers: dict[str, Answer] = {}
        if self.path is None or not self.path.exists():
            return
        self._take(self._read())

    def refresh(self) -> None:
        """Take in what others have added to the file meanwhile."""
        if self.path is not None and self.path.exists() and self.path.stat().st_size > self._seen:
            whole, newline, _ = self._read().rpartition(b"\n")  # somebody may be writing
            self._take(whole + newline)

    def _read(self) -> bytes:
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._seen)
                return stream.read()
        except OSError as error:
            raise UsageError(f"Cannot read the {self.owner}'s answers {self.path}: {error.strerror}.") from error

    def _take(self, content: bytes) -> None:
        self._seen += content.rfind(b"\n") + 1
        for line in filter(None, content.split(b"\n")):
            try:
                row = parse_json(line.decode())
                self._answers[fingerprint(row["question"])] = Answer(**row["answer"])
            except (ValueError, KeyError, TypeError):
                self.damaged += 1

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, question: dict[str, Any]) -> Answer | None:
        """The answer to a question, a dictionary of all that decides it, if there is one."""
        return self._answers.get(fingerprint(question))

    def add(self, question: dict[str, Any], answer: Answer) -> None:
        """Keep an answer."""
        self._answers[fingerprint(question)] = answer
        if self.path is None:
            return
        line = json.dumps({"question": question, "answer": answer.row()}, ensure_ascii=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b", buffering=0) as stream:  # in one piece, so that runs may share a file
            if stream.tell() and not self._ends_with_newline(stream):
                line = b"\n" + line
            stream.write(line)

    @staticmethod
    def _ends_with_newline(stream) -> bool:
        stream.seek(-1, 2)
        return stream.read(1) == b"\n"
