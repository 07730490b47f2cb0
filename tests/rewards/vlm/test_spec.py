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

"""How a judge is named in a recipe, and what it is asked."""

import re
from pathlib import Path

import pytest

from craft_trl.errors import UsageError
from craft_trl.parser import at_home, relative_to
from craft_trl.rewards import REWARDS, RewardSpec, parse_rewards
from craft_trl.rewards.vlm.spec import BUILT_IN, JudgeSpec, read_template


URL = "http://gpu1:8000/v1"


class TestNames:
    def test_all_options(self, tmp_path):
        (tmp_path / "q.txt").write_text("Is it good?\n\nIs it a fox?\n")
        spec = RewardSpec.parse(
            f"mine=vlm:org/Model-8B@{URL}?questions={tmp_path}/q.txt&reading=text&samples=3&temperature=0.5&concurrency=2"
            "&api_key_env=MY_KEY&prices=0.2,0.6&refused=0&probe=false&timeout=5&max_retries=1&requests_per_minute=60"
        )
        assert spec.vlm and not spec.custom and not spec.remote and spec.name not in REWARDS
        judge = spec.judge
        assert (judge.model, judge.base_url, judge.host) == ("org/Model-8B", URL, "gpu1:8000")
        assert judge.template.questions == (("Is it good?", "Yes", 1.0), ("Is it a fox?", "Yes", 1.0))
        assert (judge.samples, judge.temperature, judge.prices, judge.refused) == (3, 0.5, (0.2, 0.6), 0.0)
        assert (judge.probe, judge.timeout, judge.max_retries, judge.requests_per_minute) == (False, 5.0, 1, 60.0)
        assert judge.api_key_env == "MY_KEY" and judge.concurrency == 2

    def test_benchmarks_are_named_by_the_column_or_by_questions(self):
        assert {*BUILT_IN} == {"vqascore", "vqascore_v3", "geneval2_am", "geneval2_gm", "dpg"}
        assert RewardSpec.parse(f"dpg=vlm:m@{URL}").needs == ("questions",)
        assert RewardSpec.parse(f"other=vlm:m@{URL}?questions=geneval2_gm").needs == ("vqa_list",)
        assert RewardSpec.parse(f"vqascore=vlm:m@{URL}").needs == ()
        assert RewardSpec.parse("geneval").needs == ("tag", "include")

    def test_inference_providers(self):
        judge = RewardSpec.parse("vqascore=vlm:Qwen/Qwen3-VL-8B-Instruct?provider=novita").judge
        assert (judge.base_url, judge.host) == (None, "Inference Providers (novita)")

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("vlm:", "a judge is named like mine=vlm:MODEL@http://host:8000/v1, got 'vlm:'"),
            ("vlm:m@localhost:8000", "a judge is named like"),
            ("vlm:m@http://host:99999/v1", "a judge is named like"),
            (f"vlm:m@{URL}", r"say what it is asked, \?questions=FILE, or one of vqascore"),
            (f"vlm:m@{URL}?question=dpg", "no option 'question'. Did you mean questions"),
            (f"vlm:m@{URL}?questions=dpg&questions=dpg", "questions is there twice"),
            (f"vlm:m@{URL}?questions=none.yaml", "Cannot read the judge's questions none.yaml"),
            (f"vlm:m@{URL}?questions=none.json", "questions are a .yaml or .txt file, or one of vqascore"),
            (f"vlm:m@{URL}?questions=dpg&reading=mas", "reading 'mas'. Did you mean mass"),
            (f"vlm:m@{URL}?questions=dpg&reading=score", "needs a template that says its scale, and DPG-Bench by a VLM does"),
            (f"vlm:m@{URL}?questions=dpg&samples=5", "samples, temperature and thinking are of answers in words"),
            (f"vlm:m@{URL}?questions=dpg&reading=text&samples=2&temperature=0", "at temperature 0 all samples are the same"),
            (f"vlm:m@{URL}?questions=dpg&reading=text&samples=many", "samples must be a whole number, got 'many'"),
            (f"vlm:m@{URL}?questions=dpg&reading=text&samples=0", "samples must be from 1 to 100, got 0"),
            (f"vlm:m@{URL}?questions=dpg&reading=text&temperature=-1", "temperature must be at least 0"),
            (f"vlm:m@{URL}?questions=dpg&refused=nan", "refused must be finite"),
            (f"vlm:m@{URL}?questions=dpg&probe=maybe", "probe must be true or false, got 'maybe'"),
            (f"vlm:m@{URL}?questions=dpg&prices=1", "prices must be two numbers"),
            (f"vlm:m@{URL}?questions=dpg&concurrency=101", "concurrency must be from 1 to 100"),
            ("vlm:m?questions=dpg&reading=systemone", "Inference Providers have no /v1/systemone"),
            ("vlm:m@http://me:secret@host/v1?questions=dpg", "keys do not belong there"),
            (f"vlm:m@{URL}?questions=dpg&api_key_env=sk-secretsecretsecretsecret", "keys do not belong there"),
        ],
    )  # fmt: skip
    def test_wrong(self, source, message):
        with pytest.raises(UsageError, match=message) as error:
            RewardSpec.parse(f"mine={source}")
        assert "secret" not in str(error.value)

    def test_a_dtype_is_none_of_its_business(self):
        from craft_trl.rewards.config import ScoringConfig

        with pytest.raises(UsageError, match="choose their precision themselves"):
            ScoringConfig(reward_dtype="bfloat16").check_scoring(parse_rewards([f"dpg=vlm:m@{URL}"]))

    def test_a_path_of_a_recipe(self, tmp_path):
        value = f"mine=vlm:m@{URL}?reading=text&questions=./q.yaml"
        assert relative_to(tmp_path, value) == f"mine=vlm:m@{URL}?reading=text&questions={tmp_path}/q.yaml"
        assert "~" not in at_home(f"mine=vlm:m@{URL}?questions=~/q.yaml")
        assert relative_to(tmp_path, f"dpg=vlm:m@{URL}") == f"dpg=vlm:m@{URL}"


class TestTemplates:
    def write(self, tmp_path, text):
        (tmp_path / "q.yaml").write_text(text)
        return str(tmp_path / "q.yaml")

    def test_questions(self, tmp_path):
        template = read_template(
            self.write(
                tmp_path,
                'system: You judge images.\nquestions:\n- Is there "{prompt}"?\n- question: Are there extra fingers?\n'
                "  answer: No\n  weight: 2\n- {question: 'How many foxes?', answer: three}\nextra_body: {top_k: 1}\n",
            )
        )
        assert template.asked("a {fox}")[0] == ('Is there "a {fox}"?', "Yes")
        assert template.questions[1:] == (("Are there extra fingers?", "No", 2.0), ("How many foxes?", "three", 1.0))
        assert (
            template.system == "You judge images." and template.reading == "normalised" and template.name == "q.yaml"
        )

    def test_a_score(self, tmp_path):
        text = "questions: ['How good is it?']\nscore: {low: 1, high: 5, pattern: 'Score: (\\d)'}\nmax_tokens: 1024\n"
        template = read_template(self.write(tmp_path, text))
        assert template.reading == "score" and template.score["high"] == 5 and template.max_tokens == 1024

    def test_what_counts_for_its_hash(self, tmp_path):
        """All that is asked, and neither its name nor a key."""
        one = read_template(self.write(tmp_path, "questions: ['a?']\nextra_body: {api_key: one}\n"))
        (tmp_path / "r.yaml").write_text("extra_body: {api_key: two}\nquestions: ['a?']\n")
        assert one.hash == read_template(str(tmp_path / "r.yaml")).hash
        assert one.hash != read_template(self.write(tmp_path, "questions: ['b?']\nextra_body: {api_key: one}\n")).hash

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("- \n", "a question is a text, or has one under `question`; got null"),
            ("questions: []\n", "holds no list of questions"),
            ("just text\n", "holds no list of questions"),
            ("questions: ['a?']\nsistem: x\n", "there is no 'sistem'. Did you mean system"),
            ("questions: ['a?']\nmax_tokens: many\n", 'max_tokens must be int, got "many"'),
            ("questions: ['a?']\nreading: score\n", "the reading score needs `score:"),
            ("questions: ['a?']\nreading: text\nscore: {low: 1, high: 5}\n", "the reading score needs `score:"),
            ("questions: ['a?']\nscore: {low: 5, high: 1}\n", "needs numbers low and high, of which high is larger"),
            ("questions: ['a?']\nscore: {low: 1, high: 5, pattern: '('}\n", "is no regular expression"),
            ("questions: ['a?']\nscore: {low: 1, high: 5, pattern: 'x'}\n", "must have one group"),
            ("questions: [{question: 'a?', answer: maybe}]\n", "must be Yes, No or one to ten, got 'maybe'"),
            ("questions: [{question: 'a?', weight: 0}]\n", "the weight of 'a\\?' must be above 0, got 0"),
            ("questions: [{question: 'a?', wait: 1}]\n", "a question has no 'wait'. Did you mean weight"),
        ],
    )
    def test_wrong(self, tmp_path, text, message):
        with pytest.raises(UsageError, match=message):
            read_template(self.write(tmp_path, text))

    def test_questions_for_a_number_are_read_as_one(self, tmp_path):
        path = self.write(tmp_path, "questions: ['How good?']\nscore: {low: 1, high: 5}\n")
        with pytest.raises(UsageError, match="q.yaml asks for a number, which reading=token does not read"):
            JudgeSpec.parse("mine", f"vlm:m@{URL}?questions={path}&reading=token")

    def test_in_words(self):
        note = RewardSpec.parse(f"geneval2_gm=vlm:org/Qwen@{URL}").judge.describe("mass")
        assert note.startswith(
            f"org/Qwen at gpu1:8000, template GenEval 2, Soft-TIFA GM ({BUILT_IN['geneval2_gm'].hash}), "
        )
        assert note.endswith("not among the 20 likeliest counts as the least of these")
        note = RewardSpec.parse(f"dpg=vlm:m@{URL}?refused=0&probe=false").judge.describe("text")
        assert "whether it says the right answer, mean of 5 samples at temperature 1; yes is a score above 0.5" in note
        assert note.endswith("an image that it refuses counts 0; not tried whether it sees")


def test_the_files_of_the_page(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "source" / "judges.md").read_text()
    files = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(files) == 2
    readings = []
    for text in files:
        (tmp_path / "q.yaml").write_text(text)
        readings.append(read_template(str(tmp_path / "q.yaml")).reading)
    assert readings == ["normalised", "score"]
