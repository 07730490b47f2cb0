# /// script
# requires-python = "==3.11.*"
# dependencies = [
#     "hpsv3==1.0.0",
#     "transformers==4.45.2",
#     "trl==0.12.2",
#     "accelerate>=1.1,<1.2",
#     "peft>=0.13,<0.14",
#     "matplotlib",
#     "pandas",
#     "pillow",
#     "tensorboard",
#     "torch==2.14.1",
#     "torchvision==0.29.1",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-29T00:00:00Z"
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
HPSv3 (https://huggingface.co/papers/2508.03789), a Qwen2-VL-7B that scores images, served from an environment of its own: it
wants transformers 4.45, and craft_trl 5.

```bash
uv run examples/rewards/serve_hpsv3.py --port 8001
```

A recipe names it as `hpsv3=http://127.0.0.1:8001`. The weights, 16.5 GB of MizzenAI/HPSv3 beside Qwen/Qwen2-VL-7B-Instruct, are downloaded when it
starts, without a pinned commit: we know of none. The score is the mean that the model predicts, of any size, in words 0 to 10; the
authors report 8.20 for SDXL. Code MIT, weights Apache-2.0.

The wheel hpsv3 1.0.0 imports matplotlib and tensorboard, and declares neither. `exclude-newer` and the pins above keep uv at the
versions that were found to work together.

Checked on 2026-11-29 with Python 3.11 and uv 0.13.9, on a CPU: uv finds versions for the packages above, `uv run` installed them,
all but torch and its libraries, which another environment had at these versions, and this file served scores of hpsv3 1.0.0 itself,
with transformers 4.45.2, trl 0.12.2, torch 2.14.1 and torchvision 0.29.1. Its model was a Qwen2-VL of 0.17 million random weights in
place of the 7B: a number for each image, the same alone and in a batch up to rounding. `test_the_packages` in
tests/examples/test_reward_files.py does it again. Not checked: a GPU, the weights of HPSv3, and the scores. There is no parity test.

Without a GPU it runs in float32, in which the weights of the 7B are 33 GB: hpsv3 1.0.0 fails there in bfloat16.
"""

import os
import runpy
import sys
from pathlib import Path


BATCH = int(os.environ.get("HPSV3_BATCH", "8"))  # images at a time; fewer take less memory


class HPSv3:
    """Scores of images under prompts, a number each."""

    def __init__(self):
        import torch
        from hpsv3 import HPSv3RewardInferencer

        self.torch = torch
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.inferencer = HPSv3RewardInferencer(device=device)
        if device == "cpu":
            # hpsv3 1.0.0: bfloat16 meets a head in float32 under an autocast that is CUDA's alone.
            self.inferencer.model.float()

    def __call__(self, images, prompts):
        scores = []
        for start in range(0, len(images), BATCH):
            part = [image.convert("RGB") for image in images[start : start + BATCH]]
            with self.torch.inference_mode():
                # By name: 1.0.0 takes the images first, later commits the prompts.
                rewards = self.inferencer.reward(image_paths=part, prompts=prompts[start : start + BATCH])
            scores += [float(mean) for mean, _ in rewards]
        return scores


if __name__ == "__main__":
    # `craft serve-reward` needs craft_trl, whose packages do not fit here. This is its server alone: in a checkout, or beside this.
    here = Path(__file__).resolve()
    places = [here.parents[2] / "craft_trl" / "rewards" / "server.py", here.with_name("server.py")]
    server = next((place for place in places if place.is_file()), None)
    if server is None:
        sys.exit("server.py is missing: copy craft_trl/rewards/server.py beside this file.")
    sys.argv = [str(server), f"{here}:HPSv3", *sys.argv[1:]]
    runpy.run_path(str(server), run_name="__main__")
