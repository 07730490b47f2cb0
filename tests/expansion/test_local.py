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


import json
import socket
import time

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.import_utils import is_serve_available

from craft_trl import EndpointExpander, TransformersExpander
from craft_trl.errors import UsageError
from craft_trl.expansion.local import SeededSampling, render


CHAT = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
VARIANTS = ["a fox in snow", "a fox at noon"]
PROMPTS = ["a fox", "a fox!", "one fox", "the fox in a wood", "fox"]


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """Folder of a byte-level language model of one layer, of random weights."""
    torch.manual_seed(0)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: number for number, token in enumerate(["<end>", *sorted(alphabet)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=CHAT)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("random")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    path = tmp_path_factory.mktemp("instructions") / "own.txt"
    path.write_text("Rewrite.")
    return path


@pytest.fixture(scope="module")
def trained_model(random_model, instructions, tmp_path_factory):
    """The same after it has learnt one answer to one question by heart."""
    expand = TransformersExpander(random_model, instructions=instructions)
    question = expand.tokenizer(render(expand.tokenizer, expand._question("a fox", 0, 2).messages)).input_ids
    answer = [*expand.tokenizer(json.dumps({"variants": VARIANTS})).input_ids, 0]
    tokens, labels = torch.tensor([question + answer]), torch.tensor([[-100] * len(question) + answer])
    model = LlamaForCausalLM.from_pretrained(random_model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(500):
        loss = model(input_ids=tokens, labels=labels).loss
        if loss < 0.01:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.01
    folder = tmp_path_factory.mktemp("trained")
    model.save_pretrained(folder)
    expand.tokenizer.save_pretrained(folder)
    return str(folder)


class TestTransformersExpander:
    def test_variants(self, trained_model, instructions):
        expand = TransformersExpander(trained_model, instructions=instructions, max_tokens=120, temperature=0.05)
        assert expand(PROMPTS[:1], 2) == [VARIANTS] and not expand.failures
        (answer,) = expand.answers
        text = json.dumps({"variants": VARIANTS})
        assert (answer.text, answer.finish_reason, answer.completion_tokens) == (text, "stop", len(text) + 1)
        question = render(expand.tokenizer, expand._question("a fox", 0, 2).messages)
        assert question.startswith("<system>Rewrite.<user>{") and question.endswith("}<assistant>")
        assert answer.prompt_tokens == len(question)

    def test_random_weights_fail_honestly_and_alike_in_every_batch(self, random_model, instructions, tmp_path):
        answers = {}
        for batch_size in (1, 3):
            cache = tmp_path / f"{batch_size}.jsonl"
            expand = TransformersExpander(
                random_model,
                instructions=instructions,
                max_tokens=12,
                batch_size=batch_size,
                cache=cache,
                max_attempts=2,
            )
            assert expand(PROMPTS, 2) == [[]] * len(PROMPTS)
            assert list(expand.failures) == PROMPTS and len(expand.answers) == 2 * len(PROMPTS)
            answers[batch_size] = [answer.text for answer in expand.answers]
        assert answers[1] == answers[3] and len(set(answers[1])) == 2 * len(PROMPTS)

        # Again: from the cache, without so much as loading the model.
        again = TransformersExpander(
            random_model, instructions=instructions, max_tokens=12, cache=cache, max_attempts=2
        )
        again(PROMPTS, 2)
        assert [answer.text for answer in again.answers] == answers[3] and again._network is None

    def test_wrong(self, random_model, tmp_path):
        with pytest.raises(UsageError, match="Language model .*nowhere"):
            TransformersExpander(str(tmp_path / "nowhere"))
        with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
            TransformersExpander(random_model, batch_size=0)
        tokenizer = TransformersExpander(random_model).tokenizer
        tokenizer.chat_template = None
        tokenizer.save_pretrained(tmp_path / "base")
        with pytest.raises(UsageError, match="has no chat template: take an instruct model"):
            TransformersExpander(str(tmp_path / "base"))

    def test_no_system_message(self, random_model):
        tokenizer = TransformersExpander(random_model).tokenizer
        tokenizer.chat_template = (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
        )
        messages = [{"role": "system", "content": "Rewrite."}, {"role": "user", "content": "a fox"}]
        assert render(tokenizer, messages) == "<user>Rewrite.\n\na fox<assistant>"


@pytest.mark.skipif(not is_serve_available(), reason="needs `pip install transformers[serving]`")
def test_transformers_serve(trained_model, instructions, monkeypatch):
    """The endpoint's client against the server that transformers brings."""
    from transformers.cli.serve import Serve

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = Serve(force_model=trained_model, device="cpu", host="127.0.0.1", port=port, non_blocking=True)
    try:
        while not serve.server.started:
            time.sleep(0.05)
        expand = EndpointExpander(
            trained_model, f"http://127.0.0.1:{port}/v1", instructions=instructions, temperature=0.05, max_tokens=120
        )
        assert expand(PROMPTS[:1], 2) == [VARIANTS]
        (answer,) = expand.answers
        assert answer.finish_reason == "stop" and answer.completion_tokens and answer.prompt_tokens
    finally:
        serve.kill_server()


def test_seeded_sampling_samples_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    rows = 20_000
    noisy = SeededSampling(range(rows), temperature=0.7)(None, logits.expand(rows, 4))
    shares = torch.bincount(noisy.argmax(-1), minlength=4) / rows
    torch.testing.assert_close(shares, (logits / 0.7).softmax(-1), atol=0.015, rtol=0)
