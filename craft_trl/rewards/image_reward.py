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

"""ImageReward (https://huggingface.co/papers/2304.05977). CRAFT keeps it as a held-out judge and never trains on it."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from . import loading
from .aesthetic import LinearHead
from .preprocessing import TorchvisionCrop
from .reward_model import RewardModel
from .weights import BERT_TOKENIZER, IMAGE_REWARD


# Size of the published network. The decoder flag gives the text tower its cross-attention; attention is bidirectional.
CONFIG = {
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    },
    "text_config": {
        "vocab_size": 30524,
        "hidden_size": 768,
        "encoder_hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "layer_norm_eps": 1e-12,
        "is_decoder": True,
    },
    "mlp_widths": [1024, 128, 64, 16],
    "mean": 0.16717362830052426,
    "std": 1.0333394966054072,
    "max_length": 35,
}
# The published checkpoint is a timm-style ViT and a BERT with the names of BLIP's own repository.
RENAMED = (
    ("blip.visual_encoder.norm.", "vision_model.post_layernorm."),
    ("blip.visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("blip.visual_encoder.blocks.", "vision_model.encoder.layers."),
    ("blip.text_encoder.", "text_model."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "text_model.embeddings.position_ids")


class ImageRewardModel(nn.Module):
    """BLIP's vision tower, its text tower with cross-attention to the image, and a linear head on `[CLS]`."""

    def __init__(self, config: dict):
        super().__init__()
        self.vision_model = BlipVisionModel(BlipVisionConfig(**config["vision_config"]))
        self.text_model = BlipTextModel(BlipTextConfig(**config["text_config"]), add_pooling_layer=False)
        self.mlp = LinearHead(config["text_config"]["hidden_size"], tuple(config["mlp_widths"]))
        self.mean, self.std = config["mean"], config["std"]

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        """Pixels `(N, 3, S, S)` and tokens `(N, L)` to scores `(N,)`."""
        image_embeds = self.vision_model(pixel_values=pixel_values).last_hidden_state
        hidden = self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image_embeds,
            encoder_attention_mask=torch.ones(image_embeds.shape[:2], dtype=torch.long, device=image_embeds.device),
        ).last_hidden_state
        return (self.mlp(hidden[:, 0].float()) - self.mean) / self.std


class ImageReward(RewardModel):
    """
    Human preference of an image for a prompt, as ImageReward v1.0 predicts it.

    Larger is better; normalised to about mean 0 and standard deviation 1 over its training data. A prompt is truncated
    to 35 tokens. Source: https://github.com/zai-org/ImageReward.

    Args:
        source (`str`, *optional*, defaults to `"THUDM/ImageReward"`):
            A folder or a repository on the Hub, with `config.json`, `model.safetensors` and a BERT tokenizer, or with
            the published `ImageReward.pt`. Defaults to the published weights, pinned.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Where to run.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Precision of the two towers; the head is always float32.
    """

    def __init__(
        self,
        source: str = "THUDM/ImageReward",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(device, dtype)
        folder = loading.find(source, IMAGE_REWARD)
        checkpoint = folder / IMAGE_REWARD.files[0]
        if checkpoint.is_file():
            config, weights = CONFIG, convert(loading.read(checkpoint))
            vocabulary = folder if (folder / "vocab.txt").is_file() else loading.find(None, BERT_TOKENIZER)
        else:
            checkpoint, vocabulary = folder / "model.safetensors", folder
            config, weights = loading.read_config(folder, CONFIG), loading.read(checkpoint)
        with loading.explain(f"The tokenizer in {vocabulary} cannot be read"):
            self.tokenizer = BertTokenizer.from_pretrained(vocabulary, local_files_only=True)
        if config is CONFIG:
            # Two names that the reference adds to the vocabulary. They count only where a prompt spells them.
            self.tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
        model = ImageRewardModel(config)
        loading.load_into(model, weights, checkpoint)
        model.to(device, dtype).eval().requires_grad_(False).mlp.float()
        self.model, self.max_length = model, config["max_length"]
        self.preprocess = TorchvisionCrop(config["vision_config"]["image_size"])

    def forward(self, pixel_values: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores of shape `(N,)`."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.device)
        return self.model(pixel_values, tokens.input_ids, tokens.attention_mask)


def convert(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published checkpoint's state dict under the names of [`ImageRewardModel`]."""
    converted = {}
    for key, value in state_dict.items():
        for old, new in RENAMED:
            key = key.replace(old, new)
        if not key.startswith(UNUSED):
            converted[key] = value
    return converted
