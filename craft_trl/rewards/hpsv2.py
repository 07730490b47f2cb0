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

"""HPSv2 and HPSv2.1: Human Preference Score v2 (https://huggingface.co/papers/2306.09341)."""

import open_clip
import torch

from ..errors import UsageError
from ..quiet import quiet_logs
from . import loading
from .preprocessing import Letterbox
from .reward_model import EmbeddingReward
from .weights import HPSV2


ARCHITECTURE = "ViT-H-14"  # of open_clip, with its plain GELU


class HPSv2(EmbeddingReward):
    """
    Cosine between image and prompt in an open_clip ViT-H-14 fine-tuned on human preferences.

    Larger is better. The score is a cosine, as `hpsv2.score` returns it: about 0.2 to 0.35; papers print it times 100.
    Only images of the same prompt can be compared, and scores of v2.0 and v2.1 never. Source:
    https://github.com/tgxs002/HPSv2, whose `hpsv2.score` takes v2.0 unless told otherwise.

    Args:
        source (`str`, *optional*, defaults to `"xswu/HPSv2"`):
            A folder or a repository on the Hub, with the published checkpoint, or in open_clip's layout
            (`open_clip_config.json` and `open_clip_model.safetensors`). Defaults to the published weights, pinned.
        version (`"v2.0"` or `"v2.1"`, *optional*, defaults to `"v2.1"`):
            Which published checkpoint. Of no effect in open_clip's layout.
        antialias (`bool`, *optional*, defaults to `True`):
            How the float image is resized to the model's size. `True` is what the reference code gives under
            torchvision >= 0.17; `False` is what it gave when the published tables were made.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Where to run.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Precision of the network. Lower ones make ties and flips in a filter.
    """

    def __init__(
        self,
        source: str = "xswu/HPSv2",
        version: str = "v2.1",
        antialias: bool = True,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(device, dtype)
        if version not in HPSV2:
            raise UsageError(f"HPSv2 version must be one of {', '.join(HPSV2)}, got {version!r}.")
        published = HPSV2[version]
        folder = loading.find(source, published)
        if (folder / "open_clip_config.json").is_file():
            name, file = f"local-dir:{folder}", folder / "open_clip_model.safetensors"
        else:
            name, file = ARCHITECTURE, folder / published.files[0]
        weights = loading.read(file)
        # Not through open_clip's own loader: it would first download LAION's weights, as the reference does.
        with loading.explain(f"{folder} does not describe an open_clip model"), quiet_logs():
            model = open_clip.create_model(name, load_weights=False)
            self.tokenizer = open_clip.get_tokenizer(name)
        loading.load_into(model, weights.get("state_dict", weights), file)
        self.model = model.to(device, dtype).eval().requires_grad_(False)
        settings = open_clip.get_model_preprocess_cfg(model)
        self.preprocess = Letterbox(
            model.visual.image_size[0], antialias, tuple(settings["mean"]), tuple(settings["std"])
        )

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(pixel_values)

    def encode_text(self, prompt: str) -> torch.Tensor:
        return self.model.encode_text(self.tokenizer([prompt]).to(self.device))
