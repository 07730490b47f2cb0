# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = [
#     "transformers==4.57.0",
#     "huggingface_hub>=0.34,<1",
#     "trl>=0.24,<0.25",
#     "datasets>=3,<5",
#     "accelerate",
#     "deepspeed",
#     "fire",
#     "matplotlib",
#     "numpy",
#     "omegaconf",
#     "packaging",
#     "pandas",
#     "peft",
#     "pillow",
#     "prettytable",
#     "pyyaml",
#     "requests",
#     "safetensors",
#     "tensorboard",
#     "torch",
#     "torchvision",
#     "tqdm",
# ]
# ///
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
HPSv3++ (https://huggingface.co/papers/2606.14657), a Qwen3-VL-8B that scores images, served from an environment of its own.

There is no package of it. Its repository has no licence, so that nothing of it is copied here: clone it yourself, with its weights,
17.6 GB.

```bash
git clone https://github.com/PlantPotatoOnMoon/HPSv3-PlusPlus ~/HPSv3-PlusPlus
hf download Junjun2333/HPSv3-PlusPlus hpsv3++.pth --local-dir ~/HPSv3-PlusPlus/checkpoints
HPSV3PP=~/HPSv3-PlusPlus uv run examples/rewards/serve_hpsv3pp.py --port 8002
```

A recipe names it as `hpsv3pp=http://127.0.0.1:8002`. The score is the mean that the model predicts, at `iter_step` 0, as its authors
advise for scoring; HPSV3PP_ITER_STEP sets another, from 0 to 1. The weights are a pickle, which PyTorch 2.6 and later read without
executing it. The fingerprint of the server is that of this file: it does not know the weights.

Checked in November 2026: the class, its arguments and the two numbers it returns, against the repository at 7bdbebc, and that uv 0.13.9 finds
versions for the packages above (Python 3.11). Not checked: that all of it installs on a machine with a GPU, the weights, and the
scores. There is no parity test.
"""

import os
import runpy
import sys
from pathlib import Path


BATCH = int(os.environ.get("HPSV3_BATCH", "8"))  # images at a time; fewer take less memory


class HPSv3PlusPlus:
    """Scores of images under prompts, a number each."""

    def __init__(self):
        repository = Path(os.environ.get("HPSV3PP", "")).expanduser().resolve()
        config, weights = repository / "hpsv3/config/train_stage2.yaml", repository / "checkpoints/hpsv3++.pth"
        for file in (config, weights):
            if not file.is_file():
                sys.exit(f"There is no {file}: set HPSV3PP to a clone of HPSv3-PlusPlus with its weights, see above.")
        sys.path.insert(0, str(repository))
        os.chdir(repository)  # its configuration names other files by relative paths
        import torch
        from hpsv3.inference import HPSv3RewardInferencer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.iter_step = float(os.environ.get("HPSV3PP_ITER_STEP", "0"))
        self.inferencer = HPSv3RewardInferencer(str(config), str(weights), device=device)

    def __call__(self, images, prompts):
        scores = []
        for start in range(0, len(images), BATCH):
            part = [image.convert("RGB") for image in images[start : start + BATCH]]
            rewards = self.inferencer.reward(
                prompts=prompts[start : start + BATCH], image_paths=part, iter_step=self.iter_step
            )
            scores += [float(mean) for mean, _ in rewards]
        return scores


if __name__ == "__main__":
    # `craft serve-reward` needs craft_trl, whose packages do not fit here. This is its server alone: in a checkout, or beside this.
    here = Path(__file__).resolve()
    places = [here.parents[2] / "craft_trl" / "rewards" / "server.py", here.with_name("server.py")]
    server = next((place for place in places if place.is_file()), None)
    if server is None:
        sys.exit("server.py is missing: copy craft_trl/rewards/server.py beside this file.")
    sys.argv = [str(server), f"{here}:HPSv3PlusPlus", *sys.argv[1:]]
    runpy.run_path(str(server), run_name="__main__")
