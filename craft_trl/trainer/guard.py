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
The guard against reward hacking: judges that training never saw look at fixed prompts while the model trains.

Every `guard_steps` it draws the same prompts from the same noise as before training, and compares scores prompt by prompt.
It says in plain words what changed, stops when the held-out judges fall while the training rewards rise, and has the best
step saved instead of the last one.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import Image
from tqdm.auto import tqdm
from transformers import TrainerCallback

from ..devices import on_main_process
from ..errors import UsageError
from ..rewards import Reward, parse_rewards, score
from ..stages import write_atomically
from .guard_config import GuardConfig
from .image_statistics import picture_metrics, thumbnail_features
from .sampling import sample
from .verdict import Verdict, judge
from .zero import zero_init_disabled


if TYPE_CHECKING:
    from .diffusion_trainer import DiffusionTrainer

EMBEDDED_AT_ONCE = 64  # training images that are decoded at a time: 3 MB each at 1024 px


class Guard(TrainerCallback):
    """
    The guard at work, as a callback of a trainer.

    `guard/` in the output folder gets `verdict.txt`, the scores as `measurements.json` and a picture of each step. The weights
    of the best step so far are in `best-checkpoint-N` until the end. All processes draw, and the main process scores. It
    loads the rewards for each measurement and drops them again, so that training keeps its memory.

    Args:
        config ([`GuardConfig`]):
            Settings.
        trainer ([`DiffusionTrainer`]):
            The trainer.
        train_images (`Sequence[PIL.Image.Image]`):
            What is trained on, to see whether it is being copied.
    """

    def __init__(self, config: GuardConfig, trainer: "DiffusionTrainer", train_images: Sequence[Image.Image]):
        self.config, self.trainer, self.train_images = config, trainer, train_images
        self.held_out = {spec.name: spec for spec in parse_rewards(config.held_out_rewards)}
        self.training = {spec.name: spec for spec in parse_rewards(config.guard_rewards or [])}
        self.prompts = config.load_guard_prompts()
        self.folder = Path(trainer.args.output_dir) / "guard"
        self.history: dict[int, dict[str, np.ndarray]] = {}
        self.roles: dict[str, str] = {}
        self.lower_is_better: set[str] = set()
        self.verdicts: list[Verdict] = []
        self.seconds, self.seconds_before = 0.0, 0.0  # in this run, and before it was interrupted
        self.train_features: np.ndarray | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic()
        steps = range(self.config.guard_steps, state.max_steps, self.config.guard_steps)
        self.num_measurements = len(steps) + 2  # with the base model's and the last one
        on_main_process(lambda: self._load(state.global_step))
        self.verdicts = on_main_process(lambda: self.verdicts)
        if state.global_step == 0 and on_main_process(lambda: 0 not in self.history):
            self.look(0)
        elif on_main_process(lambda: 0 not in self.history):
            raise UsageError(
                f"{self.folder} has no measurement of the base model, which the guard compares with: start at step 0."
            )
        else:
            self._announce()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.config.guard_steps == 0 or state.global_step == state.max_steps:
            verdict = self.look(state.global_step)
            if verdict.stop and self.config.guard_stop:
                control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.share = self.seconds / max(time.monotonic() - self.started, 1e-9)

    def look(self, step: int) -> Verdict:
        """Measure the model as it would be saved, say what is to be said, and keep its weights if they are the best."""
        start = time.monotonic()
        config, n = self.config, self.config.guard_num_images_per_prompt
        prompts = [prompt for prompt in self.prompts for _ in range(n)]
        with self.trainer.exported_weights():
            images = sample(
                self.trainer,
                prompts,
                config.guard_num_inference_steps,
                config.guard_guidance_scale,
                seeds=range(len(prompts)),
            )
            verdict = on_main_process(lambda: self._measure(step, prompts, images))
            self.verdicts.append(verdict)
            if step and verdict.best == step:
                self._keep_weights(step)
        self.seconds += time.monotonic() - start
        on_main_process(self._write)
        self._announce()
        if step:
            self.trainer.log_metric(
                "guard/held_out_gain", torch.tensor([verdict.gain], device=self.trainer.args.device)
            )
        if self.trainer.is_world_process_zero():
            tqdm.write(f"[guard] {verdict.sentence} ({time.monotonic() - start:.0f} s)")
            if verdict.stop and config.guard_stop:
                tqdm.write(f"[guard] stopping; step {verdict.best} is saved.")
        return verdict

    def summary(self) -> dict:
        """What is worth telling at the end."""
        last = self.verdicts[-1]
        return {
            "exported_step": self.trainer.best_step,
            "stopped_by_guard": last.stop and self.config.guard_stop,
            "guard_seconds": round(self.seconds_before + self.seconds, 1),
        }

    def describe_cost(self) -> str:
        """What the guard cost, in words."""
        images = len(self.prompts) * self.config.guard_num_images_per_prompt
        return (
            f"[guard] looking at {images} images each time took {self.seconds:.0f} s, {self.share:.0%} of the time since training began; "
            f"verdicts in {self.folder / 'verdict.txt'}"
        )

    def _measure(self, step: int, prompts: list[str], images: list[Image.Image]) -> Verdict:
        shape = (len(self.prompts), self.config.guard_num_images_per_prompt)
        with zero_init_disabled():
            specs = {**self.training, **self.held_out}
            rewards = {name: spec.load(self.trainer.args.device) for name, spec in specs.items()}
        values = score(rewards, images, prompts)
        self.lower_is_better = {n for n, reward in rewards.items() if not getattr(reward, "higher_is_better", True)}
        self.roles = dict.fromkeys(self.training, "training") | dict.fromkeys(self.held_out, "held_out")
        scores = {name: np.asarray(value, dtype=np.float64).reshape(shape) for name, value in values.items()}

        embed = self._embedder(rewards)
        if self.train_features is None:
            starts = range(0, len(self.train_images), EMBEDDED_AT_ONCE)  # all of them decoded would be gigabytes
            batches = [embed(self.train_images[i : i + EMBEDDED_AT_ONCE]) for i in starts]
            self.train_features = np.concatenate(batches)
        pictures = picture_metrics(images, embed(images), self.train_features, shape)
        self.roles |= dict.fromkeys(pictures, "image")
        self.history[step] = {**scores, **pictures}
        verdict = judge(self.history, self.roles, self.lower_is_better, self.num_measurements)
        self.folder.mkdir(parents=True, exist_ok=True)
        make_image_grid(images[:: shape[1]][:16], rows=1, cols=min(16, shape[0])).save(
            self.folder / f"step-{step:05d}.png"
        )
        return verdict

    @staticmethod
    def _embedder(rewards: Mapping[str, Reward]):
        for reward in rewards.values():
            if hasattr(reward, "image_features"):
                return lambda images: reward.image_features(images).cpu().numpy()
        return thumbnail_features

    def _keep_weights(self, step: int) -> None:
        """Save the weights of a step, then drop those of the step that was best before. On all processes."""
        target, temporary = self._weights(step), self.folder.parent / "best-checkpoint-unfinished"
        self.trainer.save_model(str(temporary), _internal_call=True)

        def rename() -> None:
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
            self.remove_weights(but=target)

        on_main_process(rename)

    def remove_weights(self, but: Path | None = None) -> None:
        """Remove what was kept of best steps, once the model is saved."""
        for folder in self.folder.parent.glob("best-checkpoint-*"):
            if folder != but:
                shutil.rmtree(folder)

    def _weights(self, step: int) -> Path:
        # Not `checkpoint-...`: under save_total_limit the Trainer (transformers 5.23) takes every folder of such a name for a
        # checkpoint, with or without a number, and removes the oldest.
        return self.folder.parent / f"best-checkpoint-{step}"

    def _write(self) -> None:
        measurements = {
            "seconds": self.seconds_before + self.seconds,
            "roles": self.roles,
            "lower_is_better": sorted(self.lower_is_better),
            "steps": {step: {k: v.tolist() for k, v in scores.items()} for step, scores in self.history.items()},
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }
        write_atomically(self.folder / "measurements.json", json.dumps(measurements) + "\n")
        write_atomically(self.folder / "verdict.txt", "".join(f"{verdict.sentence}\n" for verdict in self.verdicts))

    def _load(self, step: int) -> None:
        """Take up the measurements of a run that was interrupted, as far as it goes on from."""
        path = self.folder / "measurements.json"
        if not path.is_file():
            return
        content = json.loads(path.read_text(encoding="utf-8"))
        self.seconds_before, self.roles = content["seconds"], content["roles"]
        self.lower_is_better = set(content["lower_is_better"])
        for key, scores in content["steps"].items():
            if int(key) <= step:
                self.history[int(key)] = {name: np.array(values) for name, values in scores.items()}
        self.verdicts = [Verdict(**verdict) for verdict in content["verdicts"] if verdict["step"] <= step]

    def _announce(self) -> None:
        """Tell the trainer which weights to save at the end; on all processes."""

        def best() -> int | None:
            steps = [step for step in self.history if step and self._weights(step).is_dir()]
            wanted = self.verdicts[-1].best if self.verdicts else None
            return wanted if wanted in steps else None

        self.trainer.best_step = on_main_process(best)
        self.trainer.best_of = on_main_process(lambda: sum(step > 0 for step in self.history))
        self.trainer.best_weights = self._weights(self.trainer.best_step) if self.trainer.best_step else None
