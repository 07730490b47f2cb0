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
Published weights of the reward models: where they are, pinned.

A pin names a commit of a Hub repository and the SHA-256 of its weight file, both as the Hub's own pages give them.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from ..sources import HubFiles


@dataclass(frozen=True)
class Weights:
    """
    Published weights of a reward model.

    Args:
        repo_id (`str`):
            Repository on the Hub.
        files (`tuple[str, ...]`):
            What is needed of it, the file of the weights first.
        revision (`str`, *optional*):
            Commit. `None` where we know of no full commit hash, so that the newest one is taken.
        sha256 (`str`, *optional*):
            Hash of the first file. `None` where we know of none, so that it is not checked.
    """

    repo_id: str
    files: tuple[str, ...]
    revision: str | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return f"{self.files[0]} of {self.repo_id}@{(self.revision or 'main')[:7]}"

    @property
    def hub_files(self) -> HubFiles:
        return HubFiles(self.repo_id, self.files, self.revision)

    def cached(self) -> Path | None:
        """Where the weights lie in the Hub's cache, if they do."""
        found = [try_to_load_from_cache(self.repo_id, file, revision=self.revision) for file in self.files]
        return Path(found[0]) if all(isinstance(path, str) for path in found) else None


# Of other repositories all that our readers know, and nothing else: those of scorers also hold their test images.
KINDS = ("*.json", "*.txt", "*.safetensors", "*.pt", "*.pth")


HPSV2 = {
    "v2.0": Weights(
        "xswu/HPSv2",
        ("HPS_v2_compressed.pt",),
        "697403c78157020a1ae59d23f111aa58ced35b0a",
        "07cb0d20626232204ca3a6ec53ff5984e7e53212a8a7b0e0ec2bac1bdaf125a1",
    ),
    "v2.1": Weights(
        "xswu/HPSv2",
        ("HPS_v2.1_compressed.pt",),
        "697403c78157020a1ae59d23f111aa58ced35b0a",
        "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
    ),
}
PICKSCORE = Weights(
    "yuvalkirstain/PickScore_v1",
    ("model.safetensors", "config.json"),
    "a4e4367c6dfa7288a00c550414478f865b875800",
    "ef31ef6fc5ff4d9bb90dd232df4e145887ba62c5a03aa2841415f8c25f18d52e",
)
CLIP_L = Weights(
    "openai/clip-vit-large-patch14",
    ("model.safetensors", "config.json"),
    "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
)
# The file `sac+logos+ava1-l14-linearMSE.pth` of christophschuhmann/improved-aesthetic-predictor, under another name.
AESTHETIC_HEAD = Weights(
    "trl-lib/ddpo-aesthetic-predictor",
    ("aesthetic-model.pth",),
    "cf4bd10345610935a80a5d3be9a3133c50f121e4",
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
)
IMAGE_REWARD = Weights(
    "THUDM/ImageReward",
    ("ImageReward.pt",),
    "5736be03b2652728fb87788c9797b0570450ab72",
    "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6",
)
BERT_TOKENIZER = Weights(
    "google-bert/bert-base-uncased",
    ("vocab.txt", "tokenizer.json", "tokenizer_config.json"),
    "86b5e0934494bd15c9632b12f734a8a67f723594",
)
# A copy of the authors' checkpoint as safetensors, made for the imscore package. We know neither its full commit hash
# nor the SHA-256 of its file, so neither is pinned.
MPS = Weights("RE-N-Y/mpsv1", ("model.safetensors",))
# GenEval's detector; we know no full commit hash.
MASK2FORMER = Weights("facebook/mask2former-swin-small-coco-instance", ("model.safetensors", "config.json"))
