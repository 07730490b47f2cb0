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

"""GenEval: the rules on detections made by hand and by the tiny inspector, and the detector against mmdet's formulas."""

import importlib.util
import json

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from craft_trl import ImageGenerator, SamplingConfig
from craft_trl.errors import UsageError
from craft_trl.rewards.geneval.colors import COLORS, ColorClassifier, cut_out
from craft_trl.rewards.geneval.judge import GenEval
from craft_trl.rewards.geneval.mask2former import (
    NOT_IN_MMDET,
    Mask2FormerDetector,
    channels_of_unfold,
    convert,
    from_mmdet,
    instances,
    mmdet_config,
    preprocess,
)
from craft_trl.rewards.geneval.rules import (
    OBJECT_NAMES,
    Detection,
    Thresholds,
    evaluate,
    overlap,
    relative_position,
    select,
)


LEFT, RIGHT = (0, 20, 20, 40), (60, 20, 80, 40)
TOP, BELOW = (30, 0, 50, 20), (30, 60, 50, 80)


def objects(*items, score=0.95):
    """Detections from `(name, box)` or `(name, box, score)`."""
    return select([Detection(item[0], item[1], *(item[2:] or (score,))) for item in items], 0.3)


def judge(metadata, *items, colors=()):
    painted = dict(colors)  # colour by box
    return evaluate(objects(*items), metadata, lambda found, name: [painted[d.box] for d in found])[0]


class TestTasks:
    """Each of the six, right and wrong, with the benchmark's own metadata."""

    def test_single_object(self):
        metadata = {"tag": "single_object", "include": [{"class": "bench", "count": 1}]}
        assert judge(metadata, ("bench", LEFT))
        assert judge(metadata, ("bench", LEFT), ("bench", RIGHT), ("dog", TOP))  # more do no harm
        assert not judge(metadata, ("chair", LEFT))
        assert not judge(metadata, ("bench", LEFT, 0.3))  # above 0.3, not at it

    def test_two_object(self):
        metadata = {"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 1}]}
        assert judge(metadata, ("dog", LEFT), ("bench", RIGHT))
        assert not judge(metadata, ("dog", LEFT), ("dog", RIGHT))

    def test_counting(self):
        metadata = {
            "tag": "counting",
            "include": [{"class": "clock", "count": 2}],
            "exclude": [{"class": "clock", "count": 3}],
        }
        assert judge(metadata, ("clock", LEFT), ("clock", RIGHT), ("dog", TOP))
        assert not judge(metadata, ("clock", LEFT))
        assert not judge(metadata, ("clock", LEFT), ("clock", RIGHT), ("clock", TOP))
        assert Thresholds().min_score(metadata) == 0.9 and Thresholds().min_score({"tag": "colors"}) == 0.3

    def test_colors(self):
        metadata = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "blue"}]}
        assert judge(metadata, ("car", LEFT), colors=[(LEFT, "blue")])
        assert not judge(metadata, ("car", LEFT), colors=[(LEFT, "red")])
        # Only the most certain car is asked for its colour.
        both = [("car", LEFT, 0.5), ("car", RIGHT, 0.9)]
        assert not judge(metadata, *both, colors=[(LEFT, "blue"), (RIGHT, "red")])
        assert judge(metadata, *both, colors=[(LEFT, "red"), (RIGHT, "blue")])

    @pytest.mark.parametrize(
        ("relation", "dog", "bear"),
        [("right of", RIGHT, LEFT), ("left of", LEFT, RIGHT), ("above", TOP, BELOW), ("below", BELOW, TOP)],
    )
    def test_position(self, relation, dog, bear):
        metadata = {
            "tag": "position",
            "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": [relation, 0]}],
        }
        assert judge(metadata, ("dog", dog), ("teddy bear", bear))
        assert not judge(metadata, ("dog", bear), ("teddy bear", dog))
        assert not judge(metadata, ("dog", dog))  # nothing to be right of

    def test_color_attr(self):
        metadata = {
            "tag": "color_attr",
            "include": [
                {"class": "wine glass", "count": 1, "color": "purple"},
                {"class": "apple", "count": 1, "color": "black"},
            ],
        }
        both = [("wine glass", LEFT), ("apple", RIGHT)]
        assert judge(metadata, *both, colors=[(LEFT, "purple"), (RIGHT, "black")])
        assert not judge(metadata, *both, colors=[(LEFT, "black"), (RIGHT, "purple")])

    def test_reason(self):
        metadata = {"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 2}]}
        assert evaluate(objects(("dog", LEFT)), metadata, None) == (
            False,
            "expected bench>=1, found 0; expected dog>=2, found 1",
        )


def test_relative_position():
    # Centres 30 apart, sizes 20: 30 - 0.1 * 40 = 26, over 30.
    assert relative_position((30, 0, 50, 20), (0, 0, 20, 20)) == {"right of"}
    # Diagonal: 26 / 42.4 = 0.61 on both axes.
    assert relative_position((30, 30, 50, 50), (0, 0, 20, 20)) == {"right of", "below"}
    # Centres 6 apart: 6 - 4 = 2, over 6: too near to say.
    assert relative_position((6, 0, 26, 20), (0, 0, 20, 20)) == set()
    assert relative_position((3, 0, 23, 20), (0, 0, 20, 20)) == set()
    # A large object needs more distance: 30 - 0.1 * 120 = 18, over 30.
    assert relative_position((30, 0, 50, 20), (-40, 0, 60, 20)) == {"right of"}
    assert relative_position((30, 0, 50, 20), (-90, 0, 110, 20)) == set()


def test_select():
    many = [Detection("cat", (i, 0, i + 9, 9), 0.9 - i / 100) for i in range(20)]
    chosen = select([*many, Detection("dog", LEFT, 0.2)], 0.3)
    assert list(chosen) == ["cat"] and chosen["cat"] == many[:16]
    assert overlap((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(50 / 150)
    apart = select(many, 0.3, Thresholds(max_overlap=0.4))["cat"]
    assert [d.box[0] for d in apart] == [0, 5, 10, 15]


class TestReward:
    metadata = {
        "a photo of two clocks": {
            "tag": "counting",
            "include": [{"class": "clock", "count": 2}],
            "exclude": [{"class": "clock", "count": 3}],
        },
        "a photo of a red car": {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]},
    }

    def reward(self):
        """A detector that finds a car in colourful images and clocks in grey ones; the brightest pixel is their score."""

        def detect(image, min_score):
            pixels = np.asarray(image) / 255
            if np.ptp(pixels, axis=-1).max() > 0.1:
                return [Detection("car", (0, 0, 8, 8), 0.5)]
            return [Detection("clock", box, pixels.max()) for box in ((0, 0, 3, 3), (5, 5, 8, 8))]

        def most(image, found, name):
            return [("red", "green", "blue")[np.asarray(cut_out(image, d)).mean(axis=(0, 1)).argmax()] for d in found]

        reward = GenEval(detector=detect, colors=most)
        reward.metadata = self.metadata
        return reward

    def test_scores(self):
        images = [Image.new("RGB", (8, 8), color) for color in ("#f00", "#00f", "#fff", "#ddd")]
        prompts = ["a photo of a red car"] * 2 + ["a photo of two clocks"] * 2
        # The last two clocks score 0.87: enough to be there, too little to be counted.
        assert self.reward()(images, prompts).tolist() == [1, 0, 1, 0]

    def test_says_how(self):
        note = self.reward().note
        assert "detector detect" in note and "score above 0.3, counting 0.9" in note

    def test_unknown_prompt(self):
        with pytest.raises(ValueError, match="does not know what 'a fox' asks for"):
            self.reward()([Image.new("RGB", (8, 8))], ["a fox"])


def test_with_the_tiny_inspector(tiny):
    """The inspector's findings as detections: GenEval's rules then agree with the inspector's own verdict."""
    spec = importlib.util.spec_from_file_location("inspector", tiny / "inspector.py")
    inspector = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inspector)
    rows = [json.loads(line) for line in (tiny / "prompts" / "tiny-geneval.jsonl").read_text().splitlines()][::26]

    def metadata(row):
        _, count, noun0, color0, noun1, color1, relation, *_ = row["ask_ids"]
        pairs = [(noun0, color0), (noun1, color1)][: 1 + (noun1 >= 0)]
        include = [
            {"class": str(noun), "count": count, **({"color": str(color)} if color >= 0 else {})}
            for noun, color in pairs
        ]
        if relation >= 0:
            include = include[::-1]  # the benchmark names the target first
            include[1]["position"] = [("left of", "right of", "above", "below")[relation], 0]
        exclude = [{"class": str(noun0), "count": count + 1}] if row["tag"] == "counting" else []
        return {"tag": row["tag"], "include": include, "exclude": exclude}

    def look(image):
        network, _, _ = inspector._load()
        with torch.no_grad():
            return {k: v[0] for k, v in network.probabilities(inspector._pixels([image])).items()}

    def detect(image, min_score):
        p = look(image)
        layout = int(p["layout"].argmax())
        nouns = [[(str(i), float(v)) for i, v in enumerate(p[head])] for head in ("noun0", "noun1")]
        if layout < 4:  # so many of one kind
            return [Detection(n, (9 * i, 0, 9 * i + 8, 8), s) for n, s in nouns[0] for i in range(layout + 1)]
        boxes = (LEFT, RIGHT) if layout == inspector.LAYOUT_SIDE_BY_SIDE else (TOP, BELOW)
        return [Detection(n, box, s) for slot, box in zip(nouns, boxes, strict=True) for n, s in slot]

    def colors(image, found, name):
        p = look(image)
        return [str(int(p["color1" if d.box in (RIGHT, BELOW) else "color0"].argmax())) for d in found]

    reward = GenEval(detector=detect, colors=colors, thresholds=Thresholds(score=0.5, counting=0.5))
    reward.metadata = {row["prompt"]: metadata(row) for row in rows}
    prompts = [row["prompt"] for row in rows]
    sampling = SamplingConfig(num_inference_steps=4, guidance_scale=5.0, height=64, width=64, batch_size=10)
    images = ImageGenerator(str(tiny / "pipeline"), sampling)(prompts, range(len(prompts)))
    ours, theirs = reward(images, prompts), inspector.all_atoms(images, prompts)
    assert 0 < theirs.sum() < len(theirs)
    assert (ours == theirs).float().mean() >= 0.9


class TestMmdet:
    def test_instances_are_those_of_mmdets_formula(self):
        """All at once, as `MaskFormerFusionHead.instance_postprocess` has it."""
        torch.manual_seed(0)
        class_logits, mask_logits = 4 * torch.randn(12, 81), 3 * torch.randn(12, 16, 16)
        padded, resized, original = (64, 64), (64, 50), (40, 31)
        masks = F.interpolate(mask_logits[None], size=padded, mode="bilinear", align_corners=False)[0]
        masks = F.interpolate(masks[None, :, :64, :50], size=original, mode="bilinear", align_corners=False)[0]
        scores, top = class_logits.softmax(-1)[:, :-1].flatten().topk(100)
        masks = masks[top // 80]
        binary = (masks > 0).float()
        scores = scores * (masks.sigmoid() * binary).flatten(1).sum(1) / (binary.flatten(1).sum(1) + 1e-6)
        expected = sorted(
            ((OBJECT_NAMES[i % 80], float(s), m.bool()) for i, s, m in zip(top.tolist(), scores, binary, strict=True)),
            key=lambda item: -item[1],
        )
        found = sorted(instances(class_logits, mask_logits, padded, resized, original), key=lambda d: -d.score)
        assert [d.name for d in found] == [name for name, _, _ in expected]
        np.testing.assert_allclose([d.score for d in found], [score for _, score, _ in expected], rtol=1e-5)
        for detection, (_, _, mask) in zip(found, expected, strict=True):
            assert (detection.mask == mask.numpy()).all()
            ys, xs = np.nonzero(detection.mask)
            assert detection.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        certain = instances(class_logits, mask_logits, padded, resized, original, min_score=0.3)
        assert 0 < len(certain) < len(found)
        assert sorted(d.score for d in certain) == pytest.approx(sorted(d.score for d in found if d.score > 0.3))

    @pytest.mark.parametrize(
        ("size", "resized", "padded"),
        [
            ((1024, 1024), (800, 800), (800, 800)),
            ((512, 512), (800, 800), (800, 800)),
            ((1344, 768), (762, 1333), (768, 1344)),
            ((832, 1216), (1169, 800), (1184, 800)),
        ],
    )
    def test_pixels(self, size, resized, padded):
        pixels, got = preprocess(Image.new("RGB", size, "#808080"))
        assert got == resized and tuple(pixels.shape) == (1, 3, *padded)
        # Padded with 128 before it was normalised: a grey image stays one.
        assert pixels.std(dim=(0, 2, 3)).max() == 0
        assert pixels[0, 0, 0, 0] == pytest.approx((128 - 123.675) / 58.395)

    def test_every_tensor_of_the_checkpoint_has_its_place(self):
        """The names and shapes of mmdet's modules, as its configuration makes them, against transformers' own."""
        with torch.device("meta"):
            expected = {
                k: v.shape for k, v in Mask2FormerForUniversalSegmentation(mmdet_config()).state_dict().items()
            }
            converted = {k: v.shape for k, v in from_mmdet(mmdet_state_dict()).items()}
        assert converted.keys() == expected.keys() - NOT_IN_MMDET
        assert {k: s for k, s in expected.items() if k in converted} == converted

    def test_attention_is_cut_into_query_key_and_value(self):
        state = from_mmdet(
            {"panoptic_head.transformer_decoder.layers.3.attentions.1.attn.in_proj_bias": torch.arange(6)}
        )
        prefix = "model.transformer_module.decoder.layers.3.self_attn."
        assert {k.removeprefix(prefix): v.tolist() for k, v in state.items()} == {
            "q_proj.bias": [0, 1],
            "k_proj.bias": [2, 3],
            "v_proj.bias": [4, 5],
        }

    def test_patch_merging(self):
        """mmdet merges patches with `nn.Unfold`, Swin by slices: with converted weights they give the same."""
        torch.manual_seed(0)
        x = torch.randn(1, 5, 6, 8)  # (B, C, H, W)
        weight, norm = torch.randn(10, 20), torch.randn(20)
        unfolded = F.unfold(x, kernel_size=2, stride=2).transpose(1, 2)  # (B, patches, 4 * C)
        slices = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        sliced = torch.cat(slices, dim=1).flatten(2).transpose(1, 2)
        expected = (unfolded * norm) @ weight.T
        torch.testing.assert_close((sliced * channels_of_unfold(norm)) @ channels_of_unfold(weight).T, expected)

    def test_wrong_checkpoint(self, tmp_path):
        torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}}, tmp_path / "r50.pth")
        with pytest.raises(UsageError, match="of another architecture: it lacks class_predictor.bias and"):
            convert(tmp_path / "r50.pth", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def mmdet_state_dict():
    """Tensors of mmdet's `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco`, module by module."""
    state = {}

    def add(name, *shape, bias=True):
        state[f"{name}.weight"] = torch.empty(shape)
        if bias:
            state[f"{name}.bias"] = torch.empty(shape[0])

    add("backbone.patch_embed.projection", 96, 3, 4, 4)
    add("backbone.patch_embed.norm", 96)
    for stage, (depth, heads) in enumerate(zip((2, 2, 18, 2), (3, 6, 12, 24), strict=True)):
        width = 96 * 2**stage
        for block in range(depth):
            prefix = f"backbone.stages.{stage}.blocks.{block}"
            add(f"{prefix}.norm1", width)
            state[f"{prefix}.attn.w_msa.relative_position_bias_table"] = torch.empty(13 * 13, heads)
            state[f"{prefix}.attn.w_msa.relative_position_index"] = torch.empty(49, 49)
            add(f"{prefix}.attn.w_msa.qkv", 3 * width, width)
            add(f"{prefix}.attn.w_msa.proj", width, width)
            add(f"{prefix}.norm2", width)
            add(f"{prefix}.ffn.layers.0.0", 4 * width, width)
            add(f"{prefix}.ffn.layers.1", width, 4 * width)
        if stage < 3:
            add(f"backbone.stages.{stage}.downsample.norm", 4 * width)
            add(f"backbone.stages.{stage}.downsample.reduction", 2 * width, 4 * width, bias=False)
        add(f"backbone.norm{stage}", width)
    decoder = "panoptic_head.pixel_decoder"
    for i, width in enumerate((768, 384, 192)):
        add(f"{decoder}.input_convs.{i}.conv", 256, width, 1, 1)
        add(f"{decoder}.input_convs.{i}.gn", 256)
    for i in range(6):
        layer = f"{decoder}.encoder.layers.{i}"
        for name, size in (
            ("sampling_offsets", 192),
            ("attention_weights", 96),
            ("value_proj", 256),
            ("output_proj", 256),
        ):
            add(f"{layer}.attentions.0.{name}", size, 256)
        add(f"{layer}.ffns.0.layers.0.0", 1024, 256)
        add(f"{layer}.ffns.0.layers.1", 256, 1024)
        for norm in range(2):
            add(f"{layer}.norms.{norm}", 256)
    add(f"{decoder}.level_encoding", 3, 256, bias=False)
    add(f"{decoder}.lateral_convs.0.conv", 256, 96, 1, 1, bias=False)
    add(f"{decoder}.lateral_convs.0.gn", 256)
    add(f"{decoder}.output_convs.0.conv", 256, 256, 3, 3, bias=False)
    add(f"{decoder}.output_convs.0.gn", 256)
    add(f"{decoder}.mask_feature", 256, 256, 1, 1)
    for i in range(9):
        layer = f"panoptic_head.transformer_decoder.layers.{i}"
        for attention in range(2):
            state[f"{layer}.attentions.{attention}.attn.in_proj_weight"] = torch.empty(768, 256)
            state[f"{layer}.attentions.{attention}.attn.in_proj_bias"] = torch.empty(768)
            add(f"{layer}.attentions.{attention}.attn.out_proj", 256, 256)
        add(f"{layer}.ffns.0.layers.0.0", 2048, 256)
        add(f"{layer}.ffns.0.layers.1", 256, 2048)
        for norm in range(3):
            add(f"{layer}.norms.{norm}", 256)
    add("panoptic_head.transformer_decoder.post_norm", 256)
    for name, rows in (("query_embed", 100), ("query_feat", 100), ("level_embed", 3)):
        add(f"panoptic_head.{name}", rows, 256, bias=False)
    add("panoptic_head.cls_embed", 81, 256)
    for i in (0, 2, 4):
        add(f"panoptic_head.mask_embed.{i}", 256, 256)
    return state


def test_detector_from_a_folder(tmp_path):
    """A small network of the real classes, with random weights."""
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    sizes = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
    }
    config = Mask2FormerConfig(
        backbone_config=backbone, num_labels=80, num_queries=10, encoder_layers=1, decoder_layers=2, num_attention_heads=2, **sizes
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path / "detector")
    detector = Mask2FormerDetector(tmp_path / "detector")
    image = Image.effect_noise((96, 64), 80).convert("RGB")
    found = detector(image, 0.0)
    assert found and all(d.mask.shape == (64, 96) and 0 < d.score < 1 and d.name in OBJECT_NAMES for d in found)
    config.num_labels = 3
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path / "three")
    with pytest.raises(UsageError, match="knows 3 kinds of objects; GenEval needs COCO's 80"):
        Mask2FormerDetector(tmp_path / "three")


def test_colors(tmp_path):
    """open_clip's real classes, small and with random weights: the prototypes are those of the benchmark's formula."""
    (tmp_path / "small.json").write_text(
        json.dumps(
            {
                "embed_dim": 16,
                "quick_gelu": True,
                "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
                "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
            }
        )
    )
    open_clip.add_model_config(tmp_path / "small.json")

    class Small(ColorClassifier):
        architecture = "small"

    torch.manual_seed(0)
    classifier = Small(pretrained=None)
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:30, 10:20] = True
    image = Image.effect_noise((40, 40), 90).convert("RGB")
    masked, plain = Detection("car", (10, 10, 20, 30), 0.9, mask), Detection("car", (5, 5, 35, 35), 0.9)
    assert np.asarray(cut_out(image, masked)).shape == (20, 10, 3)
    assert (np.asarray(cut_out(image, Detection("car", (0, 0, 40, 40), 1.0, mask)))[~mask] == 0x99).all()
    got = classifier(image, [masked, plain], "car")

    prototypes = []
    with torch.no_grad():
        for color in COLORS:
            texts = [f"a photo of a {color} car", f"a photo of a {color}-colored car", f"a photo of a {color} object"]
            features = F.normalize(classifier.model.encode_text(classifier.tokenize(texts)), dim=-1).mean(0)
            prototypes.append(features / features.norm())
        pixels = torch.stack([classifier.preprocess(cut_out(image, d)) for d in (masked, plain)])
        logits = 100 * F.normalize(classifier.model.encode_image(pixels), dim=-1) @ torch.stack(prototypes).T
    assert got == [COLORS[i] for i in logits.argmax(1)]
    assert open_clip.get_model_config(ColorClassifier.architecture)["quick_gelu"] is True
