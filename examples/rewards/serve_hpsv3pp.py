# /// script
# requires-python = "==3.11.*"
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
#     "torch==2.14.1",
#     "torchvision==0.29.1",
#     "tqdm",
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

A score depends on how capable the model seems that drew the image. The package infers that from all images of a batch
at once, so that the score of an image would depend on those beside it; here it is inferred from each image alone, which is what
the package does with a batch of one.

Its requirements.txt leaves out tensorboard, which it imports. `exclude-newer` and the pins above keep uv at the versions that
were found to work together.

Checked on 2026-11-29 with Python 3.11 and uv 0.13.9, on a CPU: uv finds versions for the packages above, `uv run` installed them,
all but torch and its libraries, which another environment had at these versions, and this file served scores of the repository at
7bdbebc itself, with transformers 4.57.0, trl 0.24.0, torch 2.14.1 and torchvision 0.29.1. Its model was a Qwen3-VL of 0.32 million
random weights in place of the 8B: a number for each image, the same alone and in a batch up to rounding. `test_the_packages` in
tests/examples/test_reward_files.py does it again. Not checked: a GPU, the weights of HPSv3++, and the scores. There is no parity test.
"""

import os
import runpy
import sys
import tempfile
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
        with tempfile.TemporaryDirectory() as folder:
            if device == "cpu":
                # transformers 4.57.0 takes bfloat16 without a GPU only where a CPU is asked for.
                text, config = config.read_text(), Path(folder, config.name)
                config.write_text(f"{text}\nuse_cpu: true\n")
            self.inferencer = HPSv3RewardInferencer(str(config), str(weights), device=device)
        # Without it the capability that a score depends on is that of the whole batch (HPSv3-PlusPlus 7bdbebc).
        self.inferencer.model.per_image_cap = True

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
