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

"""The rules of judges that are asked, on answers made by hand."""

import math

import pytest

from craft_trl.prompts.benchmarks import dpg_prompts
from craft_trl.rewards.vlm.readings import NoAnswer, forms, read_first, read_score, read_words, unseen
from craft_trl.rewards.vlm.rules import dpg_answers, dpg_categories, dpg_score, skill_scores, soft_tifa, tifa


LIKELY = [["Yes", 0.60], ["No", 0.25], [" yes", 0.10], ["Yeah", 0.05]]


class TestProbabilities:
    @pytest.mark.parametrize(
        ("reading", "value"),
        [("mass", 0.70), ("token", 0.60), ("normalised_exact", 0.705882), ("normalised", 0.736842)],
    )
    def test_readings(self, reading, value):
        assert read_first(LIKELY, "Yes", reading) == pytest.approx(value, abs=1e-6)

    def test_no_is_expected(self):
        assert read_first(LIKELY, "No", "mass") == 0.25
        assert read_first(LIKELY, "No", "normalised") == pytest.approx(0.25 / 0.95)

    def test_blanks_of_other_tokenizers(self):
        likely = [["Ġyes", 0.5], ["▁Yes", 0.3], ["no", 0.2]]
        assert read_first(likely, "Yes", "mass") == pytest.approx(0.8)
        assert read_first([["YES", 0.6], ["no", 0.2]], "Yes", "normalised") == pytest.approx(0.75)

    def test_numbers(self):
        likely = [["three", 0.5], ["3", 0.2], [" Three", 0.1], ["Four", 0.15], ["Many", 0.05]]
        assert forms("three") == ["three", " three", "Three", " Three", "3", " 3"]
        assert read_first(likely, "three", "mass") == pytest.approx(0.8)
        assert read_first(likely, "four", "normalised") == pytest.approx(0.15 / 0.95)

    def test_an_answer_that_is_not_among_the_likeliest(self):
        """It has the most that can be left for it where all probabilities count, and no share among those that are seen."""
        likely = [["No", 0.9], ["Nope", 0.06]]
        assert unseen(likely) == pytest.approx(0.04)
        assert read_first(likely, "Yes", "mass") == read_first(likely, "Yes", "token") == pytest.approx(0.04)
        assert read_first(likely, "Yes", "normalised") == 0.0
        assert read_first([["four", 0.5], ["five", 0.001]], "two", "mass") == 0.001

    @pytest.mark.parametrize("likely", [[["<think>", 1.0]], [["The", 0.6], ["three", 0.4]]])
    def test_no_answer_at_all(self, likely):
        with pytest.raises(NoAnswer, match="Yes or No is not among the likeliest answers: '(<think>' 1.00|The' 0.60)"):
            read_first(likely, "Yes", "mass")


class TestWords:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("Yes", 1), ("yes.", 1), ("**No**", 0), ("No, the fox is blue.", 0), ("The answer is: yes", 1),
            ("<think>no, no, no</think>\nYes", 1), ("Yes, there is no doubt.", 1),
        ],
    )  # fmt: skip
    def test_yes_or_no(self, text, value):
        assert read_words(text, "Yes") == value == 1 - read_words(text, "No")

    def test_numbers(self):
        assert read_words("3", "three") == read_words("There are Three.", "three") == 1
        assert read_words("four", "three") == 0

    @pytest.mark.parametrize("text", ["", "I cannot see it.", "It could be yes or no.", "<think>yes", "Eleven"])
    def test_none(self, text):
        with pytest.raises(NoAnswer, match="it says "):
            read_words(text, "Yes")


class TestScore:
    def test_the_first_number(self):
        assert read_score("7/10, and 3 of it for the light", 0, 10) == 0.7
        assert read_score("<think>2</think> 4.5", 1, 5) == pytest.approx(0.875)

    def test_of_a_pattern(self):
        text = "Alignment Score (1-5): 4.0\nCoherence Score (1-5): 3.0\nStyle Score (1-5): 2.0"
        pattern = r"Score \(1-5\): *([\d.]+)"
        assert read_score(text, 1, 5, pattern, 3) == pytest.approx(0.5)
        with pytest.raises(NoAnswer, match="3 numbers instead of 2"):
            read_score(text, 1, 5, pattern, 2)

    @pytest.mark.parametrize("text", ["", "good", "11", "-1", "Final Score: nan"])
    def test_none(self, text):
        pattern = r"Final Score: *(\w+)" if "nan" in text else None
        with pytest.raises(NoAnswer):
            read_score(text, 0, 10, pattern)


class TestGenEval2:
    def test_means(self):
        assert soft_tifa([0.9, 0.5, 0.8]) == pytest.approx(0.733333, abs=1e-6)
        assert soft_tifa([0.9, 0.5, 0.8], "geometric") == pytest.approx(0.711379, abs=1e-6)
        assert soft_tifa([1, 0, 1]) == pytest.approx(2 / 3) and soft_tifa([1, 0, 1], "geometric") == 0.0

    def test_a_benchmark_of_two_prompts(self):
        atoms = [[0.9, 0.5, 0.8], [1, 0, 1]]
        assert 100 * sum(map(soft_tifa, atoms)) / 2 == pytest.approx(70.0)
        geometric = [soft_tifa(values, "geometric") for values in atoms]
        assert 100 * sum(geometric) / 2 == pytest.approx(35.57, abs=0.005)

    def test_tifa(self):
        accepted = [forms("Yes"), forms("three"), forms("Yes")]
        assert tifa(["Yes", "3", "no"], accepted) == pytest.approx(2 / 3)

    def test_skills_are_pooled_over_questions(self):
        scores = skill_scores([[1.0, 0.0], [0.5, 0.5, 0.7]], [["object", "count"], ["count", "count", "object"]])
        assert scores == pytest.approx({"object": 0.85, "count": 1 / 3})


class TestDPG:
    @pytest.mark.parametrize(
        ("parents", "raw", "expected"),
        [
            ({1: [0], 2: [1], 3: [2], 4: [3], 5: [1, 3]}, [1, 1, 0, 1, 1], [1, 1, 0, 0, 0]),
            ({1: [0], 2: [1], 3: [2]}, [0, 1, 1], [0, 0, 0]),
            ({1: [2], 2: [3], 3: [0]}, [1, 1, 0], [1, 0, 0]),  # a child that stands before its parent
        ],
    )
    def test_dependencies_as_published(self, parents, raw, expected):
        raw = dict(zip(parents, map(float, raw), strict=True))
        assert list(dpg_answers(raw, parents).values()) == expected
        assert dpg_score(raw, parents) == pytest.approx(sum(expected) / len(expected))

    def test_dependencies_of_any_order(self):
        assert dpg_score({1: 1.0, 2: 1.0, 3: 0.0}, {1: [2], 2: [3], 3: [0]}, transitive=True) == 0.0

    def test_categories(self):
        parents, tuples = {1: [0], 2: [1]}, {1: "entity - whole (cube)", 2: "attribute - color (cube, red)"}
        images = [{1: 1.0, 2: 0.0}, {1: 0.0, 2: 1.0}]
        assert dpg_categories(images, parents, tuples) == {"entity": [0.0], "attribute": [1.0]}  # as published
        own = dpg_categories(images, parents, tuples, level=2, dependencies=True, last_image=False)
        assert own == {"entity - whole": [1.0, 0.0], "attribute - color": [0.0, 0.0]}

    ROWS = [
        {
            "item_id": item, "text": text, "proposition_id": str(number), "dependency": dependency,
            "tuple": f"entity - whole ({number})", "question_natural_language": f"Is there {number}?",
        }
        for item, text, number, dependency in [("a", "A", 1, "0"), ("a", "A", 2, "1"), ("b", "B", 1, "0"), ("b", "B", 2, "0, 1")]
    ]  # fmt: skip

    def test_prompts_of_its_table(self):
        first, second = dpg_prompts(self.ROWS)
        assert (first["prompt"], second["item_id"]) == ("A", "b")
        assert second["questions"][1] == {
            "id": 2, "parents": [0, 1], "tuple": "entity - whole (2)", "question": "Is there 2?",
        }  # fmt: skip

    def test_the_first_row_that_the_published_script_passes_over(self):
        assert [item["prompt"] for item in dpg_prompts(self.ROWS, skip_first=True)] == ["B"]

    def test_a_question_that_is_not_there(self):
        with pytest.raises(ValueError, match="a depends on question 1, which is not there"):
            dpg_prompts(self.ROWS[1:])


def test_the_geometric_mean_is_of_logarithms():
    assert soft_tifa([1e-200] * 3, "geometric") == pytest.approx(1e-200) and math.isfinite(
        soft_tifa([1e-300], "geometric")
    )
