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

import math
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from diffusers.utils import make_image_grid
from PIL import Image
from transformers import ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..errors import TrainingDivergedError
from ..progress import progress_bar
from .checkpoints import last_complete_checkpoint
from .sampling import sample


if TYPE_CHECKING:
    from .diffusion_trainer import DiffusionTrainer


class LossProgressCallback(ProgressCallback):
    """Shows the latest loss in the progress bar. The Trainer's own prints a dictionary line at every logging step."""

    def on_train_begin(self, args, state, control, **kwargs):
        # The parent's has no description, and in a log file begins with a line of nothing done.
        if state.is_world_process_zero:
            self.training_bar = progress_bar(total=state.max_steps, desc="Training", unit="step")
        self.current_step = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and logs is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)


class DivergenceCallback(TrainerCallback):
    """Stops training that cannot recover, on all processes alike, before it is saved."""

    def __init__(self):
        self.recent_losses: deque[float] = deque(maxlen=10)  # of `denoising_loss`, one per logging step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        loss = logs["loss"]
        if "denoising_loss" in logs:  # a method without one is only held to numbers
            self.recent_losses.append(logs["denoising_loss"])
        recent = sum(self.recent_losses) / max(1, len(self.recent_losses))
        # Noise and velocity have variance 1: a mean squared error above 1 is worse than predicting nothing.
        if math.isfinite(loss) and (recent < 1 or len(self.recent_losses) < self.recent_losses.maxlen):
            return
        what = f"is {recent:.2f}, worse than predicting nothing" if math.isfinite(loss) else f"is {loss}"
        checkpoint = last_complete_checkpoint(args.output_dir)
        kept = f"The last checkpoint before is {checkpoint}." if checkpoint else "There is no checkpoint before."
        raise TrainingDivergedError(
            f"The loss at step {state.global_step} {what}: training stopped. {kept} Try a lower learning_rate (now "
            f"{args.learning_rate:g}), a longer warmup_steps (now {args.warmup_steps:g}) or a smaller max_grad_norm "
            f"(now {args.max_grad_norm:g})."
        )


class EMACallback(TrainerCallback):
    """Updates the moving average of the weights after every optimizer step."""

    def __init__(self, trainer: "DiffusionTrainer"):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.ema.step(self.trainer.trainable_parameters())


class ValidationCallback(TrainerCallback):
    """
    Draws the validation prompts every `validation_steps`, each from the same noise every time.

    The images go to `validation/step-N.png` in the output folder, side by side in the order of the prompts, and to the
    trackers of `report_to`.
    """

    def __init__(self, trainer: "DiffusionTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.draw(args, 0)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.validation_steps == 0 or state.global_step == state.max_steps:
            self.draw(args, state.global_step)

    def draw(self, args, step: int) -> None:
        prompts = args.validation_prompts
        images = sample(
            self.trainer,
            prompts,
            args.validation_num_inference_steps,
            args.validation_guidance_scale,
            seeds=range(len(prompts)),
        )
        if self.trainer.is_world_process_zero():
            folder = Path(args.output_dir) / "validation"
            folder.mkdir(parents=True, exist_ok=True)
            grid = make_image_grid(images, rows=1, cols=len(images))
            grid.save(folder / f"step-{step:05d}.png")
            log_image(self.trainer.callback_handler.callbacks, "validation", grid, " | ".join(prompts), step)


class ModelFreeTensorBoardCallback(TensorBoardCallback):
    """Logs to TensorBoard without the model's configuration."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # The parent writes `model.config.to_json_string()`, which the configuration of a diffusers model does not have
        # (transformers 5.23).
        super().on_train_begin(args, state, control, **kwargs)


def log_image(callbacks: list[TrainerCallback], name: str, image: Image.Image, caption: str, step: int) -> None:
    """
    Log an image to the trackers that are among the callbacks.

    Args:
        callbacks (`list[TrainerCallback]`):
            Callbacks of a trainer.
        name (`str`):
            Name to log under.
        image (`PIL.Image.Image`):
            The image.
        caption (`str`):
            What trackers that show a text show with it.
        step (`int`):
            Optimizer step.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.tb_writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        elif isinstance(callback, TrackioCallback | WandbCallback):
            tracker = callback._trackio if isinstance(callback, TrackioCallback) else callback._wandb
            tracker.log({name: tracker.Image(image, caption=caption), "train/global_step": step})
