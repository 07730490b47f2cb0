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


import pytest
from transformers import AutoTokenizer

from craft_trl.errors import UsageError
from craft_trl.expansion import PromptExpander
from craft_trl.expansion.checks import find_faults, load_tokenizers
from craft_trl.expansion.config import KEYS, ExpansionConfig

from ..families.random_pipelines import CASES
from ..models import edit, linked


TEMPLATES = ["{prompt}, sharp", "a photo of {prompt}", "{prompt}, high quality", "oil painting, {prompt}"]


class TestPromptExpander:
    def test_variants_are_distinct_and_hold_the_prompt(self):
        (variants,) = PromptExpander(TEMPLATES)(["a fox"], 4)
        assert sorted(variants) == sorted(t.replace("{prompt}", "a fox") for t in TEMPLATES)

    def test_depends_on_the_prompt_alone(self):
        expander = PromptExpander(TEMPLATES, seed=1)
        prompts = [f"prompt {i}" for i in range(50)]
        together = expander(prompts, 2)
        assert together == [expander([prompt], 2)[0] for prompt in prompts]
        assert len({tuple(v.replace(p, "{}") for v in vs) for p, vs in zip(prompts, together, strict=True)}) > 5
        assert together != PromptExpander(TEMPLATES, seed=2)(prompts, 2)

    def test_braces_in_the_prompt(self):
        assert PromptExpander(["{prompt}, sharp"])(["a {curly} {prompt}"], 1) == [["a {curly} {prompt}, sharp"]]

    @pytest.mark.parametrize("n", [0, -1, 5])
    def test_number_of_variants(self, n):
        with pytest.raises(UsageError, match=f"num_variants must be from 1 to 4, the templates; got {n}"):
            PromptExpander(TEMPLATES)(["a fox"], n)

    @pytest.mark.parametrize("template", ["sharp", "{prompt} {prompt}", "{prompt}", " {prompt} "])
    def test_bad_templates(self, template):
        with pytest.raises(UsageError, match="must contain {prompt} once, and words of its own"):
            PromptExpander([template])

    def test_repeated_template(self):
        with pytest.raises(UsageError, match="is there twice"):
            PromptExpander(["{prompt}, sharp", "{prompt}, sharp"])

    def test_a_variant_that_would_be_cut_off(self, tiny):
        tokenizer = AutoTokenizer.from_pretrained(tiny / "pipeline", subfolder="tokenizer")
        expander = PromptExpander(["{prompt}, sharp"], tokenizers=[tokenizer])
        long = "a red car " * 15
        assert expander(["a fox", long], 1) == [["a fox, sharp"], []]
        assert list(expander.failures) == [long] and "the model reads 32" in expander.failures[long][0]


class TestFindFaults:
    @pytest.mark.parametrize(
        ("prompt", "variant"),
        [
            ("two dogs", "a pair of dogs"),
            ("2 dogs", "two dogs running"),
            ("twelve eggs", "a dozen eggs in a nest"),
            ("a couple in love", "a man and a woman in love"),  # no number, though it could stand for one
            ("one dog", "a dog alone in a field"),
            ("a grey cat with golden eyes", "a gray cat, gold eyes"),
            ("a robot, 8k, 3 d render, 85mm, f/1.8, 16:9, 1970s", "a robot of polished steel, rendered"),
            ("dogs' tails and cats' ears", "tails of dogs beside the ears of cats"),
            ("rock 'n' roll", "a rock 'n' roll band on a stage"),
            ("a sign that says “Hello World”", 'a wooden sign with "Hello World" on it'),
            ("la la land", "la la land, a couple dancing under the stars of the city"),
            ("一只红色的狐狸", "一只红色的狐狸坐在雪地里，柔和的光线"),
            ("キツネ", "雪の中のキツネ、柔らかい光"),
            ("un renard dans la neige", "un renard roux dans la neige avec une lumière douce"),
            ("🦊", "a fox in a wood"),
        ],
    )
    def test_none(self, prompt, variant):
        assert find_faults(prompt, variant) == []

    @pytest.mark.parametrize(
        ("prompt", "variant", "faults"),
        [
            ("A fox.", "a  FOX", ["unchanged: it says the same as the prompt"]),
            ("three cats and 14 birds", "two cats and birds", ["lost number: 3", "lost number: 14"]),
            ("a red and blue car", "a car in red", ["lost colour: blue"]),
            ('"Open" and «zu»', '"open" and zu in chalk', ["lost text: Open"]),
            ("the word 'Stop' in chalk", "the word 'stop' in chalk dust", ["lost text: Stop"]),
            ("a fox in the snow", "лиса сидит в снегу", ["language: Cyrillic letters instead of Latin"]),
            ("一只狐狸", "a fox in the snow", ["language: Latin letters instead of Chinese Or Japanese"]),
            (
                "un renard dans la neige avec une fleur",
                "a fox in the snow with a flower",
                ["language: English instead of French"],
            ),
        ],
    )
    def test_some(self, prompt, variant, faults):
        assert find_faults(prompt, variant) == faults

    def test_every_tokenizer_of_the_pipeline(self, tiny):
        tokenizers = load_tokenizers(str(tiny / "pipeline"))
        assert [tokenizer.model_max_length for tokenizer in tokenizers] == [32, 32]
        assert find_faults("a fox", "a fox" + ", sharp" * 14, tokenizers) == []
        assert "too long: 34 tokens, the model reads 32" in find_faults("a fox", "a fox" + ", sharp" * 15, tokenizers)
        assert len(load_tokenizers(str(tiny / "pipeline" / "model.safetensors"))) == 2
        with pytest.raises(UsageError, match="Model ./nowhere: there is no such folder"):
            load_tokenizers("./nowhere")

    @pytest.mark.parametrize("stated", [..., 512])
    def test_as_long_as_the_text_encoder_has_positions(self, tiny, tmp_path, stated):
        folder = linked(tiny / "pipeline", tmp_path / "model")
        edit(folder, "tokenizer/tokenizer_config.json", model_max_length=stated)
        tokenizers = load_tokenizers(str(folder))
        assert [tokenizer.model_max_length for tokenizer in tokenizers] == [32, 32]
        assert "too long: 34 tokens, the model reads 32" in find_faults(
            "a fox", "a fox" + ", sharp" * 15, tokenizers[:1]
        )

    def test_a_token_of_several_vectors(self, tiny):
        """As the pipeline tokenizes it: the token and one for each further vector, `<style>` to `<style>_23`."""
        tokenizer = load_tokenizers(str(tiny / "pipeline"))[0]
        text = "a fox in <style>, sharp, and a star"
        plain = len(tokenizer(text.replace("<style>", "fox")).input_ids)
        tokenizer.add_tokens(["<style>", *(f"<style>_{i}" for i in range(1, 24))])
        assert plain < 32 < plain + 23
        assert find_faults("a fox", text, [tokenizer]) == [f"too long: {plain + 23} tokens, the model reads 32"]
        assert find_faults("a fox", "a fox in <style>_1", [tokenizer]) == []


class TestExpansionConfig:
    GOOD = {
        "templates": {"templates": TEMPLATES},
        "endpoint": {"expander_model": "qwen-plus"},
        "transformers": {"expander_model": "org/model"},
    }

    @pytest.mark.parametrize("expander", GOOD)
    def test_a_key_of_another_expander(self, expander):
        ExpansionConfig(expander=expander, **self.GOOD[expander])
        values = {"templates": TEMPLATES, "expander_prices": [1.0, 2.0], "expander_extra_body": {"a": 1}}
        for key in set().union(*KEYS.values()) - KEYS[expander]:
            with pytest.raises(UsageError, match=f"{key} is read by expander: .*, but expander is {expander}. Remove"):
                ExpansionConfig(expander=expander, **self.GOOD[expander], **{key: values.get(key, 7)})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, "templates is missing: give it in the recipe or as --templates"),
            ({"expander": "endpoint"}, "expander_model is missing"),
            ({"expander": "qwen"}, "expander must be one of templates, endpoint, transformers, got 'qwen'"),
            ({"num_variants": 0, "templates": TEMPLATES}, "num_variants must be at least 1, got 0"),
            (
                {**GOOD["endpoint"], "expander": "endpoint", "expander_prices": [1.0]},
                "expander_prices must be two numbers",
            ),
            (
                {**GOOD["endpoint"], "expander": "endpoint", "expander_extra_body": "{a"},
                "expander_extra_body is not JSON",
            ),
            (
                {**GOOD["endpoint"], "expander": "endpoint", "expander_extra_body": "[1]"},
                "must be a JSON object, got \\[1\\]",
            ),
        ],
    )
    def test_wrong(self, settings, message):
        with pytest.raises(UsageError, match=message):
            ExpansionConfig(**settings)


class TestSeveralTextEncoders:
    """CLIP reads 32 tokens here, T5 as many as it is asked to."""

    @pytest.fixture(scope="class")
    def folders(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("models")
        for name in ("stable_diffusion_3", "stable_diffusion_3_without_t5"):
            CASES[name]().save_pretrained(folder / name)
        return folder

    @pytest.mark.parametrize(
        ("name", "length", "lengths"),
        [
            ("stable_diffusion_3", None, [32, 32, 256]),
            ("stable_diffusion_3", 40, [32, 32, 40]),
            ("stable_diffusion_3", 0, [32, 32, 0]),
            ("stable_diffusion_3_without_t5", None, [32, 32]),
        ],
    )
    def test_the_one_that_reads_most_decides(self, folders, name, length, lengths):
        tokenizers = load_tokenizers(str(folders / name), max_sequence_length=length)
        assert [tokenizer.model_max_length for tokenizer in tokenizers] == lengths
        most = max(lengths)
        assert find_faults("a fox", "a fox" + ", sharp" * ((most - 4) // 2), tokenizers) == []
        faults = find_faults("a fox", "a fox" + ", sharp" * (most // 2), tokenizers)
        assert [fault.partition(" tokens")[2] for fault in faults] == [f", the model reads {most}"]

    def test_of_the_recipe(self, folders, tmp_path):
        model = str(folders / "stable_diffusion_3")
        config = ExpansionConfig(templates=TEMPLATES)
        assert config.make_expander(0, str(tmp_path), model).tokenizers[2].model_max_length == 256
        assert config.make_expander(0, str(tmp_path), model, None, 77).tokenizers[2].model_max_length == 77
