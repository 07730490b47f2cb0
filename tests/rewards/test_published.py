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

"""
The published weights and prompt lists themselves.

They are not in this repository, so each test here says what it needs and is skipped without it:

    HF_HUB_OFFLINE=0 pytest tests/rewards/test_published.py     # the Hub: 12 GB of weights, and patience or a GPU
    CRAFT_TRL_AESTHETIC_HEAD=sac+logos+ava1-l14-linearMSE.pth   # LAION's head, a file of 4 MB, without the Hub
    CRAFT_TRL_PROMPTS=folder                                    # prompt lists: PartiPrompts.tsv, hpdv2_*.jsonl
"""

import csv
import io
import json
import os
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import hf_hub_download, snapshot_download
from PIL import Image

from craft_trl.devices import default_device
from craft_trl.rewards import REWARDS, RewardSpec, loading, weights
from craft_trl.rewards.aesthetic import LinearHead


needs_network = [
    pytest.mark.needs_network,
    pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") == "1", reason="HF_HUB_OFFLINE is set"),
]
# zai-org/ImageReward, the example of its README.
IMAGES = "https://raw.githubusercontent.com/zai-org/ImageReward/c1392c6dd0fd6ecd6d416c96959ab744a6d0a8fb/assets/images"
PROMPT = "a painting of an ocean with clouds and birds, day time, low depth field effect"


@pytest.fixture(scope="module")
def paintings():
    return [Image.open(io.BytesIO(urllib.request.urlopen(f"{IMAGES}/{number}.webp").read())) for number in range(1, 5)]


class TestWeights:
    pytestmark = needs_network

    # Of the README's four paintings, which are good to bad.
    RANGES = {
        "hpsv2": (0.1, 0.4),
        "pickscore": (14, 26),
        "aesthetic": (3, 8),
        "imagereward": (-3, 3),
        "mps": (0, 25),
        "clipscore": (10, 45),
    }

    # GenEval judges its own prompts only.
    @pytest.mark.parametrize("name", [name for name in REWARDS if REWARDS[name].weights and name != "geneval"])
    def test_every_key_and_hash(self, paintings, name):
        """They load, which checks their hashes, and each key and shape, and their scores are of the documented scale."""
        scores = RewardSpec.parse(name).load(default_device())(paintings, [PROMPT] * 4)
        low, high = self.RANGES[name]
        assert ((scores > low) & (scores < high)).all(), scores
        for pinned in REWARDS[name].weights:
            assert pinned.cached() is not None

    def test_image_reward(self, paintings):
        """What the README prints for them."""
        scores = RewardSpec.parse("imagereward").load(default_device())(paintings, [PROMPT] * 4)
        expected = [0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492]
        torch.testing.assert_close(scores, torch.tensor(expected), atol=0.02, rtol=0)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="3,200 images need a GPU")
    def test_hpsv2_benchmark(self):
        """The published mean of SD v1.4 over the benchmark's 3,200 images; its table prints cosines times 100."""
        folder = Path(snapshot_download("zhwang/HPDv2", repo_type="dataset", allow_patterns="benchmark/*.json"))
        archive = hf_hub_download("zhwang/HPDv2", "benchmark/benchmark_imgs/sdv1.tar.gz", repo_type="dataset")
        reward, scores = RewardSpec.parse("hpsv2").load("cuda"), []
        prompts = {path.stem: json.loads(path.read_text()) for path in (folder / "benchmark").glob("*.json")}
        with tarfile.open(archive) as images:
            for member in images:
                style, number = Path(member.name).parent.name, Path(member.name).stem
                if member.isfile() and style in prompts:
                    image = Image.open(io.BytesIO(images.extractfile(member).read()))
                    scores.append(reward([image], [prompts[style][int(number)]]).item())
        assert len(scores) == 3200 and abs(100 * np.mean(scores) - 25.35) < 0.3


@pytest.fixture
def aesthetic_head():
    if path := os.environ.get("CRAFT_TRL_AESTHETIC_HEAD"):
        return Path(path)
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        pytest.skip("CRAFT_TRL_AESTHETIC_HEAD is not set, and HF_HUB_OFFLINE is")
    return loading.find(None, weights.AESTHETIC_HEAD) / weights.AESTHETIC_HEAD.files[0]


def test_aesthetic_head(aesthetic_head):
    """LAION's real weights, through our reader: numbers that were computed from them in float64, layer by layer."""
    assert loading.sha256(aesthetic_head) == weights.AESTHETIC_HEAD.sha256
    head = LinearHead(768)
    loading.load_into(head, loading.read(aesthetic_head), aesthetic_head)
    head = head.double().eval()
    basis, even = torch.zeros(768, dtype=torch.double), torch.full((768,), 768**-0.5, dtype=torch.double)
    basis[0] = 1
    with torch.no_grad():
        scores = head(torch.stack([basis, even, torch.zeros_like(basis)]))
        gradient = head(torch.eye(768, dtype=torch.double)) - scores[2]
    expected = torch.tensor([4.5450524006, 4.8832848544, 5.2366458448], dtype=torch.double)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert abs(gradient.norm().item() - 17.9956) < 1e-4


@pytest.fixture(scope="module")
def prompts():
    if not (folder := os.environ.get("CRAFT_TRL_PROMPTS")):
        pytest.skip("CRAFT_TRL_PROMPTS is not set")
    with (Path(folder) / "PartiPrompts.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = [row["Prompt"] for row in rows]
    for name in ("hpdv2_benchmark_3200.jsonl", "hpdv2_test_400.jsonl"):
        found += [json.loads(line)["prompt"] for line in (Path(folder) / name).read_text().splitlines()]
    assert len(found) == 1632 + 3200 + 400
    return found


def test_tokens_of_prompt_lists(prompts, tmp_path, monkeypatch):
    """Both CLIP tokenizers, on every prompt, against hpsv2's and transformers' own."""
    import hpsv2.src.open_clip
    import open_clip

    from craft_trl.rewards.clip import clip_tokenizer

    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "parity")
    import references

    reference, ours = hpsv2.src.open_clip.get_tokenizer("ViT-H-14"), open_clip.get_tokenizer("ViT-H-14")
    assert torch.equal(ours(prompts), reference(prompts))
    settings = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
    expected = references.clip_tokenizer()(prompts, **settings).input_ids
    tokenize = clip_tokenizer(tmp_path, 77)
    assert torch.equal(torch.cat([tokenize(prompt) for prompt in prompts]), expected)
    # The two differ from each other, on curly quotes and HTML entities: neither can stand for the other.
    first_end = torch.arange(77) <= (expected == 49407).int().argmax(1, keepdim=True)
    different = ((ours(prompts) != expected) & first_end).any(1)
    assert different[:1632].sum() == 12 and different[-400:].sum() == 0
