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

"""MPS: the Multi-dimensional Preference Score (https://huggingface.co/papers/2405.14705), its overall preference."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from . import loading
from .clip import clip_tokenizer
from .mps_network import CONFIG, MPSNetwork, convert
from .preprocessing import TransformersCrop
from .reward_model import RewardModel
from .weights import MPS as PUBLISHED


# What the overall preference looks for; a prompt's tokens that resemble none of it are masked.
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
# The authors' file is a module pickled whole, by transformers 4.27.
PICKLED = ("torch.nn.modules.", "transformers.models.clip.", "transformers.activations.", "trainer.models.")


class MPS(RewardModel):
    """
    Human preference of an image for a prompt: a scaled cosine between the prompt and an image that has looked at it.

    Larger is better: `exp(logit_scale) * cosine`, about 10 to 16. Only images of the same prompt can be compared.
    Source: https://github.com/Kwai-Kolors/MPS. There, the similarities that mask a prompt's tokens are divided by the
    largest of the batch; here by the prompt's own, which is the same for a batch of one.

    Args:
        source (`str`, *optional*, defaults to `"RE-N-Y/mpsv1"`):
            A folder or a repository on the Hub, with `model.safetensors`, or with ModelScope's
            `MPS_overall_state_dict.pt`, or with the authors' `MPS_overall_checkpoint.pth`, a pickle that is read
            without executing it. A `config.json` may give other sizes than the published ones.
        threshold (`float`, *optional*, defaults to `0.3`):
            How similar to the condition a token must be, relative to the most similar one, to be seen. The authors'
            evaluation takes 0.3, their `forward` and the imscore package 0.01.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Where to run.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Precision of the network; the authors run it in float16. Lower ones make ties and flips in a filter.
    """

    num_prompts = 256  # a third of a megabyte each

    def __init__(
        self,
        source: str = "RE-N-Y/mpsv1",
        threshold: float = 0.3,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(device, dtype)
        folder = loading.find(source, PUBLISHED)
        config = loading.read_config(folder, CONFIG) if (folder / "config.json").is_file() else CONFIG
        files = ("MPS_overall_state_dict.pt", "MPS_overall_checkpoint.pth", "model.safetensors")
        file = next((folder / name for name in files[::-1] if (folder / name).is_file()), folder / files[-1])
        weights = loading.read_module(file, PICKLED) if file.suffix == ".pth" else loading.read(file)
        model = MPSNetwork(config)
        loading.load_into(model, convert(weights), file)
        self.model = model.to(device, dtype).eval().requires_grad_(False)
        self.tokenize = clip_tokenizer(folder, model.clip.config.text_config.max_position_embeddings)
        self.preprocess = TransformersCrop(model.clip.config.vision_config.image_size)
        self.threshold = threshold
        self.scale = model.clip.logit_scale.float().exp()
        with torch.no_grad():
            self.condition = self.model.text(self.tokenize(CONDITION).to(device))[0][0]  # (T, D)

    def encode_prompt(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens `(T, D)`, which of them to see `(T,)`, and the end token of unit length `(D,)`."""
        tokens, end = self.model.text(self.tokenize(prompt).to(self.device))
        similarity = (tokens[0] @ self.condition.T).amax(1)
        return tokens[0], similarity / similarity.max() > self.threshold, F.normalize(end[0].float(), dim=-1)

    def forward(self, pixel_values: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores of shape `(N,)`."""
        columns = zip(*map(self.prompt_features, prompts), strict=True)
        tokens, mask, end = map(torch.stack, columns)
        fused = F.normalize(self.model.fuse(pixel_values, tokens, mask).float(), dim=-1)
        return self.scale * (end * fused).sum(-1)
