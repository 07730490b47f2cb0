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

"""`transformers serve` itself as the server, with a tiny vision-language model of random weights."""

import socket
import time
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    pipeline,
)

from craft_trl import VLMJudge
from craft_trl.errors import UsageError
from craft_trl.rewards import RewardSpec
from craft_trl.rewards.vlm.readings import NUMBERS


pytest.importorskip("fastapi")
pytest.importorskip("openai")

TEMPLATE = (
    "{% for message in messages %}{{ message.role }} : {% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %} "
    "{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
PICTURES = [Image.new("RGB", (56, 56), color) for color in ("#e00000", "#0000e0", "#c02020", "#00c000", "white")]
PROMPTS = ["a red fox", "a fox", "three foxes", "a blue car", "a red car under a tree"]


def make_tokenizer():
    words = 'Yes No user assistant : ? . , " ( ) image a red blue fox foxes three car Is this picture Answer or only Does show'
    letters = "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z"
    special = ["<unk>", "<pad>", "</s>", "<image>"]
    vocabulary = dict.fromkeys([*special, *words.split(), *letters.split(), *NUMBERS])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>",
        additional_special_tokens=["<image>"], chat_template=TEMPLATE,
    )  # fmt: skip


def text_config(tokenizer):
    return LlamaConfig(
        vocab_size=len(tokenizer) + 2, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, pad_token_id=1, bos_token_id=None, eos_token_id=2,
        tie_word_embeddings=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model that sees, random but for the two rows by which it answers, and one that reads only."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    # Wider than any prompt has tokens: where both are the same, transformers 5.24 takes the pixels for token ids.
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=70, patch_size=14
    )
    config = LlavaConfig(vision_config=vision, text_config=text_config(tokenizer), image_token_index=3, image_token_id=3, vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(8 if "projector" in name or "patch" in name else 3)
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 70}, crop_size={"height": 70, "width": 70}), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", chat_template=TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip
    # The two answers are told apart by what differs between a red and a blue picture.
    text = "user : <image>\n\nIs this picture red? Answer Yes or No.\nAnswer Yes or No only. assistant :"
    with torch.no_grad():
        states = []
        for picture in PICTURES[:2]:
            inputs = processor(images=picture, text=text, return_tensors="pt")
            states.append(model.model(**inputs).last_hidden_state[0, -1])
        difference, middle = states[0] - states[1], (states[0] + states[1]) / 2
        direction = difference - (difference @ middle) / (middle @ middle) * middle
        direction *= 3 / (direction @ difference)
        model.lm_head.weight[4], model.lm_head.weight[5] = direction, -direction
    seeing, reading = tmp_path_factory.mktemp("seeing"), tmp_path_factory.mktemp("reading")
    model.save_pretrained(seeing)
    processor.save_pretrained(seeing)
    LlamaForCausalLM(text_config(tokenizer)).save_pretrained(reading)
    make_tokenizer().save_pretrained(reading)  # the other one says whose processor it is in
    return seeing, reading


@pytest.fixture(scope="module")
def serve(folders):
    """`transformers serve MODEL`, in this process."""
    from transformers.cli.serve import Serve

    servers = []

    def start(folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        servers.append(
            Serve(
                str(folder),
                host="127.0.0.1",
                port=port,
                device="cpu",
                dtype="float32",
                non_blocking=True,
                log_level="error",
            )
        )
        for _ in range(600):
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                time.sleep(0.05)
        return f"http://127.0.0.1:{port}/v1"

    yield start
    for server in servers:
        server.kill_server()


def judge(folder, url, tmp_path, options="", name="vqascore"):
    spec = RewardSpec.parse(f"{name}=vlm:{folder}@{url}?cache={tmp_path}/answers.jsonl&max_retries=1{options}")
    return VLMJudge(spec.judge, name, first_pause=0.01)


@pytest.fixture(scope="module")
def url(folders, serve):
    return serve(folders[0])


def test_exact_probabilities(folders, url, tmp_path, caplog):
    """They are found by themselves, since its chat gives none, and are those of the model."""
    vqascore = judge(folders[0], url, tmp_path)
    scores = vqascore(PICTURES, PROMPTS)
    assert vqascore.asking.reading == "systemone" and "by /v1/systemone" in vqascore.note
    decide = pipeline("decision", model=str(folders[0]), device="cpu")
    expected = []
    for picture, prompt in zip(PICTURES, PROMPTS, strict=True):
        question = {"type": "noul", "instructions": f'Does this figure show "{prompt}"? Please answer Yes or No.'}
        asked = {"state": "<p>", "questions": {"q": question}, "assets": {"<p>": picture}}
        expected.append(decide(asked)["q"]["noul"])
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5)
    assert scores[0] - scores[1] > 0.3 and vqascore.usage["answers"] == 5
    again = judge(folders[0], url, tmp_path, "&reading=systemone&probe=false")
    assert again(PICTURES, PROMPTS).tolist() == scores.tolist() and again.fingerprint == vqascore.fingerprint


def test_numbers_are_a_choice(folders, url, tmp_path):
    geneval2 = judge(folders[0], url, tmp_path, "&reading=systemone", name="geneval2_am")
    geneval2.metadata = {"three foxes": {"vqa_list": [["How many foxes are there?", "three"]]}}
    (value,) = geneval2(PICTURES[:1], ["three foxes"]).tolist()
    decide = pipeline("decision", model=str(folders[0]), device="cpu")
    question = {
        "type": "choice", "instructions": "How many foxes are there? Answer in one word.", "criteria": dict.fromkeys(NUMBERS),
    }  # fmt: skip
    asked = {"state": "<p>", "questions": {"q": question}, "assets": {"<p>": PICTURES[0]}}
    assert value == pytest.approx(decide(asked)["q"]["probabilities"]["three"], abs=1e-5)


def test_its_chat_takes_the_picture_but_gives_no_probabilities(folders, url, tmp_path):
    with pytest.raises(
        UsageError, match="was asked whether a picture is red: there are no log-probabilities; reading=text"
    ):
        judge(folders[0], url, tmp_path, "&reading=token")(PICTURES, PROMPTS)


def test_a_model_that_reads_only_is_found_out(folders, serve, tmp_path):
    """Its chat drops the picture in silence, and answers all the same."""
    url = serve(folders[1])
    with pytest.raises(
        UsageError, match="was shown a red and a blue picture, and says .*It does not see the pictures"
    ):
        judge(folders[1], url, tmp_path, "&reading=text")(PICTURES, PROMPTS)
    with pytest.raises(UsageError, match="refuses a question about a picture .*Images need a model whose processor"):
        judge(folders[1], url, tmp_path, "&reading=systemone")(PICTURES, PROMPTS)
