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
Features and scores are those of the references within 1e-5 in float32.

Small random-weight instances of the references' own classes, whose weights go through our own converters and loaders.
"""

import inspect
import json
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from references import (
    AWKWARD_PROMPTS,
    clip_tokenizer,
    hpsv2,
    image_reward,
    imscore_aesthetic,
    imscore_mps,
    imscore_pickscore,
    open_clip,
    picture,
    randomise,
    small_clip,
    torchmetrics_clip_score,
)
from safetensors.torch import save_file
from torchvision.transforms import functional as TF
from transformers import BertTokenizer, CLIPProcessor, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from craft_trl.rewards import image_reward as our_image_reward
from craft_trl.rewards import loading, weights
from craft_trl.rewards.aesthetic import Aesthetic
from craft_trl.rewards.clip_score import CLIPScore
from craft_trl.rewards.hpsv2 import HPSv2
from craft_trl.rewards.image_reward import ImageReward
from craft_trl.rewards.mps import CONDITION, MPS
from craft_trl.rewards.pickscore import PickScore


IMAGES = [
    picture(*size, seed=i) for i, size in enumerate([(512, 512), (832, 1216), (1216, 832), (1344, 768), (64, 80)])
]
PROMPTS = ["a red fox in the snow", *AWKWARD_PROMPTS[5:9]]


def assert_close(ours: torch.Tensor, reference: torch.Tensor) -> None:
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
    assert (reference - reference.mean(0)).abs().max() > 1e-3, "what hardly varies would prove nothing"


HPSV2_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 3, "width": 80, "head_width": 20, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
}


class TestHPSv2:
    @pytest.fixture
    def reference(self):
        return randomise(hpsv2.src.open_clip.CLIP(**HPSV2_CONFIG, output_dict=True))

    @torch.no_grad()
    def test_features(self, reference, tmp_path):
        preprocess_cfg = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
        config = {"model_cfg": HPSV2_CONFIG, "preprocess_cfg": preprocess_cfg}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        save_file(reference.state_dict(), tmp_path / "open_clip_model.safetensors")
        ours = HPSv2(str(tmp_path))
        transform = hpsv2.src.open_clip.image_transform(224, is_train=False, resize_longest_max=True)
        tokens = hpsv2.src.open_clip.get_tokenizer("ViT-H-14")(PROMPTS)
        outputs = reference(torch.stack([transform(image) for image in IMAGES]), tokens)
        assert_close(ours.image_features(IMAGES), outputs["image_features"])
        assert_close(ours.text_features(PROMPTS), outputs["text_features"])
        assert_close(ours(IMAGES, PROMPTS), (outputs["image_features"] @ outputs["text_features"].T).diagonal())

    @pytest.mark.parametrize("version", ["v2.0", "v2.1"])
    @pytest.mark.filterwarnings("ignore")
    def test_score(self, reference, tmp_path, monkeypatch, version):
        """`hpsv2.score` itself, on a checkpoint as it is published, which both read."""
        (tmp_path / "small.json").write_text(json.dumps(HPSV2_CONFIG))
        open_clip.add_model_config(tmp_path / "small.json")
        monkeypatch.setattr("craft_trl.rewards.hpsv2.ARCHITECTURE", "small")
        file = tmp_path / weights.HPSV2[version].files[0]
        torch.save({"state_dict": reference.state_dict(), "epoch": 1}, file)
        transform = hpsv2.src.open_clip.image_transform(224, is_train=False, resize_longest_max=True)
        models = {"model": reference, "preprocess_val": transform}
        monkeypatch.setattr(hpsv2.img_score, "model_dict", models)
        ours = HPSv2(str(tmp_path), version)
        for prompt in PROMPTS:
            scores = hpsv2.img_score.score(IMAGES, prompt, cp=file, hps_version=version)
            assert_close(ours(IMAGES, [prompt] * len(IMAGES)), torch.tensor(scores))


class TestPickScore:
    @torch.no_grad()
    def test_score(self, tmp_path, monkeypatch):
        clip = small_clip()
        clip.save_pretrained(tmp_path)
        processor = CLIPProcessor(CLIPImageProcessorPil(), clip_tokenizer())
        monkeypatch.setattr(imscore_pickscore.AutoProcessor, "from_pretrained", lambda _: processor)
        reference = imscore_pickscore.PickScorer(str(tmp_path))
        settings = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
        inputs = reference.processor(text=PROMPTS, images=IMAGES, **settings)
        ours = PickScore(str(tmp_path))
        outputs = reference.model(**inputs)
        assert_close(ours.image_features(IMAGES), outputs.image_embeds)
        assert_close(ours.text_features(PROMPTS), outputs.text_embeds)
        assert_close(ours(IMAGES, PROMPTS), reference(**inputs).diagonal())


class TestAesthetic:
    @pytest.fixture
    def reference(self, tmp_path, monkeypatch):
        clip = CLIPVisionModelWithProjection(small_clip(768).config.vision_config)
        clip = randomise(clip)
        monkeypatch.setattr(CLIPVisionModelWithProjection, "from_pretrained", lambda _: clip)
        reference = randomise(imscore_aesthetic.LAIONAestheticScorer(), seed=1)
        monkeypatch.undo()
        reference.clip.save_pretrained(tmp_path)
        return reference

    @torch.no_grad()
    def test_score(self, reference, tmp_path):
        save_file(reference.mlp.state_dict(), tmp_path / "aesthetic_head.safetensors")
        ours = Aesthetic(str(tmp_path))
        # OpenAI's `clip`, which the original uses, is not on PyPI; image-reward carries its transform.
        pixel_values = torch.stack([image_reward._transform(224)(image) for image in IMAGES])
        features = reference.clip(pixel_values=pixel_values).image_embeds
        assert_close(ours.image_features(IMAGES), F.normalize(features))
        assert_close(ours(IMAGES), reference(pixel_values=pixel_values))

    def test_published_head(self, reference, tmp_path):
        """The head as a pickle, which is how it is published."""
        torch.save(reference.mlp.state_dict(), tmp_path / "aesthetic_head.pth")
        weights = loading.read(tmp_path / "aesthetic_head.pth")
        assert weights.keys() == reference.mlp.state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in reference.mlp.state_dict().items())


class TestImageReward:
    config = {
        **our_image_reward.CONFIG,
        "vision_config": our_image_reward.CONFIG["vision_config"]
        | {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4},
        "text_config": our_image_reward.CONFIG["text_config"]
        | {"num_hidden_layers": 2, "intermediate_size": 96, "encoder_hidden_size": 64},
    }

    @pytest.fixture
    def reference(self, tmp_path, monkeypatch):
        words = {word for prompt in PROMPTS for word in prompt.lower().split()} - set("abcdefghijklmnopqrstuvwxyz")
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *sorted(words)]
        vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
        vocabulary += [f"[unused{i}]" for i in range(30522 - len(vocabulary))]
        (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
        med = {
            **{
                "architectures": ["BertModel"],
                "model_type": "bert",
                "add_cross_attention": True,
                "encoder_width": 768,
            },
            **{"hidden_act": "gelu", "hidden_size": 768, "intermediate_size": 96, "layer_norm_eps": 1e-12},
            **{"max_position_embeddings": 512, "num_attention_heads": 12, "num_hidden_layers": 2, "pad_token_id": 0},
            **{"type_vocab_size": 2, "vocab_size": 30524, "attention_probs_dropout_prob": 0.1},
            **{"hidden_dropout_prob": 0.1, "initializer_range": 0.02},
        }
        (tmp_path / "med_config.json").write_text(json.dumps(med))
        blip = sys.modules["ImageReward.models.BLIP.blip"]
        pretrain = sys.modules["ImageReward.models.BLIP.blip_pretrain"]
        vit = blip.VisionTransformer(img_size=224, patch_size=16, embed_dim=64, depth=3, num_heads=4)
        monkeypatch.setattr(our_image_reward, "CONFIG", self.config)
        with monkeypatch.context() as patch:
            patch.setattr(pretrain, "create_vit", lambda *_: (vit, 64))
            # Instead of bert-base-uncased, which is on the Hub; and what transformers 5 took away.
            patch.setattr(blip.BertTokenizer, "from_pretrained", lambda _: BertTokenizer(str(tmp_path / "vocab.txt")))
            patch.setattr(BertTokenizer, "additional_special_tokens_ids", [30523], raising=False)
            return randomise(image_reward.ImageReward(str(tmp_path / "med_config.json")))

    def test_tokens(self, reference, tmp_path):
        torch.save(reference.state_dict(), tmp_path / "ImageReward.pt")
        settings = {"padding": "max_length", "truncation": True, "max_length": 35}
        ours = ImageReward(str(tmp_path))
        for prompt in [*AWKWARD_PROMPTS, "[DEC] a fox [ENC]"]:
            ids = reference.blip.tokenizer(prompt, **settings).input_ids
            assert ours.tokenizer(prompt, **settings).input_ids == ids and len(ids) == 35, prompt
        assert ids[1] == 30522 and 30523 in ids

    @torch.no_grad()
    def test_score(self, reference, tmp_path):
        torch.save(reference.state_dict(), tmp_path / "ImageReward.pt")
        ours = ImageReward(str(tmp_path))
        scores = [reference.score(prompt, image) for prompt, image in zip(PROMPTS, IMAGES, strict=True)]
        assert_close(ours(IMAGES, PROMPTS), torch.tensor(scores))
        assert_close(ours(IMAGES, PROMPTS[:1] * len(IMAGES)), torch.tensor(reference.score(PROMPTS[0], IMAGES)))
        pixel_values = torch.stack([ours.preprocess(image) for image in IMAGES])
        features = reference.blip.visual_encoder(pixel_values)
        assert_close(ours.model.vision_model(pixel_values=pixel_values).last_hidden_state, features)


class TestMPS:
    config = {
        **{key: small_clip().config.to_dict()[key] for key in ("projection_dim", "text_config", "vision_config")},
        "cross_config": {"num_layers": 2, "num_heads": 4, "head_width": 16},
    }

    @pytest.fixture
    def reference(self, monkeypatch):
        # `MPS()` would build ViT-H/14 with the weights of the Hub; its own classes in small take their places.
        monkeypatch.setattr(
            imscore_mps.XCLIPModel, "from_pretrained", lambda _: imscore_mps.XCLIPModel(small_clip().config)
        )
        cross_model = imscore_mps.CrossModel
        monkeypatch.setattr(imscore_mps, "CrossModel", lambda **_: cross_model(64, layer_num=2, dim_head=16, heads=4))
        monkeypatch.setattr(imscore_mps.AutoTokenizer, "from_pretrained", lambda *_, **__: clip_tokenizer())
        return randomise(imscore_mps.MPS())

    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(self.config))
        return tmp_path

    @torch.no_grad()
    @pytest.mark.parametrize("layout", ["imscore", "modelscope", "authors"])
    def test_score(self, reference, folder, monkeypatch, layout):
        if layout == "imscore":
            save_file(reference.state_dict(), folder / "model.safetensors")
        elif layout == "modelscope":
            torch.save(reference.mps.state_dict(), folder / "MPS_overall_state_dict.pt")
        else:
            save_as_the_authors_did(reference.mps, folder / "MPS_overall_checkpoint.pth", monkeypatch)
        assert reference.condition.strip() == CONDITION
        ours = MPS(str(folder), threshold=0.01)
        # The reference rounds pixels to float16 before the network, whatever its precision.
        pixel_values = torch.stack([ours.preprocess(image).half().float() for image in IMAGES])
        condition = reference._tokenize(reference.condition)
        expected = []
        for pixels, prompt in zip(pixel_values, PROMPTS, strict=True):  # its mask depends on the largest of a batch
            text, image = reference.mps(reference._tokenize([prompt]), pixels[None], condition)
            expected.append(reference.mps.logit_scale.exp() * F.cosine_similarity(text, image)[0])
        assert_close(ours.score_pixels(pixel_values, PROMPTS), torch.stack(expected))

    @torch.no_grad()
    @pytest.mark.parametrize("threshold", [0.3, 0.9])
    def test_threshold(self, reference, folder, threshold):
        """The authors' evaluation takes 0.3; it is a script, whose steps are here on the reference's own parts."""
        save_file(reference.state_dict(), folder / "model.safetensors")
        ours, model = MPS(str(folder), threshold), reference.mps
        pixel_values = torch.stack([ours.preprocess(image) for image in IMAGES])
        condition, _ = model.get_text_features(reference._tokenize(reference.condition))
        expected = []
        for pixels, prompt in zip(pixel_values, PROMPTS, strict=True):
            tokens, end = model.get_text_features(reference._tokenize([prompt]))
            image = model.get_image_features(pixels[None])
            similarity = torch.einsum("bid,bjd->bji", tokens, condition).max(dim=1, keepdim=True)[0]
            mask = torch.where(similarity / similarity.max() > threshold, 0, float("-inf")).repeat(
                1, image.shape[1], 1
            )
            image = model.cross_model(image, tokens, mask)[:, 0]
            expected.append(model.logit_scale.exp() * F.cosine_similarity(end, image)[0])
        scores = ours(IMAGES, PROMPTS)
        assert_close(scores, torch.stack(expected))
        alone = torch.cat([ours([image], [prompt]) for image, prompt in zip(IMAGES, PROMPTS, strict=True)])
        torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-5)
        everything_seen = all(ours.prompt_features(prompt)[1].all() for prompt in PROMPTS)
        assert everything_seen == (threshold == 0.3), "only at 0.9 do these random weights mask anything"


def save_as_the_authors_did(model, file, monkeypatch):
    """A module pickled whole, under the names of the authors' package, which is not there when it is read."""
    cross = sys.modules[imscore_mps.CLIPModel.__module__.replace("model", "cross")]
    homes = {
        "trainer.models.clip_model": [imscore_mps.CLIPModel, imscore_mps.XCLIPModel],
        "trainer.models.cross_modeling": [value for value in vars(cross).values() if inspect.isclass(value)],
    }
    with monkeypatch.context() as patch:
        for name in ("trainer", "trainer.models", *homes):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        for name, classes in homes.items():
            for its_class in classes:
                patch.setattr(its_class, "__module__", name)
                setattr(sys.modules[name], its_class.__name__, its_class)
        torch.save(model, file)


class TestCLIPScore:
    @torch.no_grad()
    def test_score(self, tmp_path):
        clip = small_clip()
        clip.save_pretrained(tmp_path)
        processor = CLIPProcessor(CLIPImageProcessorPil(), clip_tokenizer())
        # torchmetrics expects what transformers 4 returned: the features alone.
        for name in ("get_image_features", "get_text_features"):
            method = getattr(clip, name)
            setattr(clip, name, lambda *args, method=method: method(*args).pooler_output)
        images = [TF.pil_to_tensor(image) for image in IMAGES]
        reference, _ = torchmetrics_clip_score(images, PROMPTS, clip, processor)
        assert reference.min() < 0 < reference.max()  # both sides of the cut
        assert_close(CLIPScore(str(tmp_path))(IMAGES, PROMPTS), reference.clamp(min=0))
