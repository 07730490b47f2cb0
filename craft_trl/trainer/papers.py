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

"""What the card of a model says of the method that it was trained by, for trainers that have several."""

from typing import NamedTuple


class Paper(NamedTuple):
    """A method's name, and the title, year and arXiv id of its paper."""

    method: str
    title: str
    year: int
    id: str

    def card(self) -> dict[str, str]:
        """What TRL's cards want of a paper."""
        lines = {
            "title": f"{{{{{self.title}}}}}",
            "year": self.year,
            "eprint": f"{{{self.id}}}",
            "archivePrefix": "{arXiv}",
        }
        fields = "".join(f"    {name:<13} = {value},\n" for name, value in lines.items())
        key = self.method.lower().removeprefix("diffusion-").removeprefix("diffusion")
        return {"title": self.title, "id": self.id, "citation": f"@misc{{{key}{self.year},\n{fields}}}"}


# By `loss_type`, and by options beside it.
PAPERS = {
    "plackett_luce": Paper(
        "Diffusion-LPO", "Towards Better Optimization For Listwise Preference in Diffusion Models", 2025, "2510.01540"
    ),
    "group": Paper(
        "DGPO", "Reinforcing Diffusion Models by Direct Group Preference Optimization", 2025, "2510.08425"
    ),
    "regression": Paper(
        "LAIR", "Beyond Pairwise Preferences: Listwise Reward-Aware Alignment for Diffusion Models", 2026, "2605.26491"
    ),
    "safeguard_mu": Paper(
        "Diffusion-SDPO", "Diffusion-SDPO: Safeguarded Direct Preference Optimization for Diffusion Models", 2025, "2511.03317"
    ),
    "smoothing": Paper(
        "SmPO",
        "Smoothed Preference Optimization via ReNoise Inversion for Aligning Diffusion Models with Varied Human Preferences",
        2025,
        "2506.02698",
    ),
    "inversion_steps": Paper(
        "InPO",
        "InPO: Inversion Preference Optimization with Reparametrized DDIM for Efficient Diffusion Model Alignment",
        2025,
        "2503.18454",
    ),
    "nft": Paper(
        "DiffusionNFT", "DiffusionNFT: Online Diffusion Reinforcement with Forward Process", 2025, "2509.16117"
    ),
    "awm": Paper(
        "AWM", "Advantage Weighted Matching: Aligning RL with Pretraining in Diffusion Models", 2025, "2509.25050"
    ),
    "tgo": Paper("TGO", "Threshold-Guided Optimization for Visual Generative Models", 2026, "2605.04653"),
}  # fmt: skip
