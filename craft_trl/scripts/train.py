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
Fine-tune a text-to-image model on a filtered dataset.

# Full training, on the GPUs of this machine
```bash
accelerate launch --config_file accelerate_configs/zero2.yaml -m craft_trl.scripts.train \
    --config recipes/sdxl/craft.yaml
```

# The same through the `craft` command
```bash
craft train --config recipes/sdxl/craft.yaml --accelerate_config zero2
```

# LoRA
```bash
craft train --config recipes/sdxl/craft.yaml --use_peft --lora_r 64 --output_dir runs/sdxl/lora
```
"""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..families import get_family
from ..families.checks import check_model, model_files
from ..families.strength import check_average
from ..families.uses import check_guidance, check_steps
from ..parser import CraftParser
from ..sources import WHAT_MAKES_DATASETS, looks_like_hub_id, model_hash
from ..stages import Stage, read_record, stopwatch
from ..trainer.arguments import LaunchArguments, TrainArguments, training_parser
from .launch import check_launch, run_script, say


if TYPE_CHECKING:
    from datasets import Dataset

    from ..trainer.craft_config import CraftConfig
    from ..trainer.diffusion_config import DiffusionConfig
    from ..trainer.diffusion_trainer import DiffusionTrainer


# Training arguments that do not change what is learnt: where it is written, how it is told, how it is spread out.
COSMETIC = {
    "accelerator_config", "activation_checkpointing", "activation_checkpointing_kwargs", "dataloader_num_workers",
    "channels_last", "compile_blocks", "dataloader_persistent_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_backend",
    "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_timeout", "deepspeed", "disable_tqdm", "do_train",
    "eval_strategy", "fsdp", "fsdp_config", "gradient_accumulation_steps", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "log_level", "logging_first_step", "logging_steps", "logging_strategy",
    "output_dir", "per_device_eval_batch_size", "per_device_train_batch_size", "project", "push_to_hub", "report_to",
    "resume_from_checkpoint", "run_name", "save_only_model", "save_steps", "save_strategy", "save_total_limit",
    "torch_compile", "torch_compile_backend", "torch_compile_mode", "trackio_space_id", "train_distilled", "use_cpu",
    "validation_guidance_scale", "validation_num_inference_steps", "validation_prompts", "validation_steps",
}  # fmt: skip


def learning_settings(args: "CraftConfig") -> dict:
    """Training arguments that change what is learnt and are not at their default."""
    # Not by comparing with a fresh configuration: making one resets accelerate's distributed state.
    settings = {}
    for field_ in dataclasses.fields(args):
        value = args.to_dict().get(field_.name)
        default = field_.default if field_.default is not dataclasses.MISSING else field_.default_factory()
        if field_.name not in COSMETIC and not field_.name.startswith("hub_") and value not in (default, None, [], {}):
            settings[field_.name] = value
    always = ("max_steps", "global_batch_size", "learning_rate", "seed", "bf16", "fp16")
    return {**settings, **{name: getattr(args, name) for name in always}}


def settings_of(train_args: TrainArguments, training_args: "DiffusionConfig", dataset: "Dataset") -> dict:
    """What decides what is learnt, but for the loss."""
    settings = {
        "model": model_hash(train_args.model_name_or_path, train_args.model_revision),
        "dataset": dataset._fingerprint,
        "training": learning_settings(training_args),
    }
    if train_args.average_with:
        settings["average_with"] = [model_hash(model) for model in train_args.average_with]
    if train_args.held_out_rewards:
        settings["guard"] = train_args.guard_settings()
    if train_args.use_peft:
        rank = train_args.lora_r
        settings["lora"] = [rank, train_args.lora_alpha or rank, sorted(lora_targets(train_args))]
    return settings


def lora_targets(train_args: TrainArguments) -> list[str]:
    """Modules that get an adapter."""
    from ..trainer.denoiser import pipeline_class_of  # here: it imports PyTorch

    if train_args.lora_target_modules:
        return train_args.lora_target_modules
    return get_family(pipeline_class_of(train_args.model_name_or_path, train_args.model_revision)).lora_target_modules


def load_training_data(args: TrainArguments) -> "Dataset":
    """Training split of a folder or a Hub dataset."""
    from ..filtering.collection import load_split

    return load_split(args.dataset_name, args.dataset_train_split, "dataset_train_split", args.dataset_config)


def check(
    train_args: TrainArguments,
    launch_args: LaunchArguments | None = None,
    training_args: "DiffusionConfig | None" = None,
    on_one_machine: str | None = None,
) -> None:
    """Find what is wrong before any work is done. `on_one_machine` is the command that trains, if it cannot on several."""
    check_sources(train_args, training_args)
    if train_args.held_out_rewards:
        train_args.load_guard_prompts()
    if launch_args is not None and "RANK" not in os.environ:  # else it was launched already
        check_launch(launch_args, on_one_machine)
    if training_args is not None:
        from ..trainer.training_options import check_available

        check_available(training_args)
    if train_args.lora_target_modules and not is_single_file(train_args):
        from ..trainer.denoiser import check_adapter, lora_config

        config = lora_config(train_args.lora_target_modules, train_args.lora_r, train_args.lora_alpha)
        check_adapter(train_args.model_name_or_path, train_args.model_revision, config)


def is_single_file(train_args: TrainArguments) -> bool:
    return Path(train_args.model_name_or_path).suffix == ".safetensors"


def check_sources(train_args: TrainArguments, training_args: "DiffusionConfig | None" = None) -> None:
    """Raise a [`UsageError`] unless the model is there and can be trained as it is asked for."""
    if train_args.use_peft and is_single_file(train_args) and not train_args.lora_target_modules:
        raise UsageError("lora_target_modules is missing: a single file does not name its defaults.")
    model = train_args.model_name_or_path, train_args.model_revision
    check_model(*model, train=training_args or True)
    if train_args.average_with:
        if check_average("average_with", train_args.average_with) != model_hash(*model):
            raise UsageError(
                f"average_with: {train_args.average_with[0]} was trained from another model than {model[0]}, and between models of "
                "different origin there is none."
            )
        others = [Path(model).resolve() for model in train_args.average_with]
        if training_args is not None and Path(training_args.output_dir).resolve() in others:
            raise UsageError(f"average_with: {training_args.output_dir} is what this training writes.")
    if train_args.held_out_rewards:
        files = model_files(*model)
        check_guidance(files, "guard_guidance_scale", train_args.guard_guidance_scale)
        check_steps(files, "guard_num_inference_steps", train_args.guard_num_inference_steps)


def check_dataset(name: str) -> None:
    """Raise a [`UsageError`] unless this is a folder or could be a dataset on the Hub."""
    if not Path(name).is_dir() and not looks_like_hub_id(name):
        raise UsageError(f"Dataset {name}: there is no such folder. {WHAT_MAKES_DATASETS}")


def check_origin(dataset: Path, model: str, training_args: "DiffusionConfig") -> None:
    """
    Raise a [`UsageError`] if the pool beside a dataset was drawn by another model, or by the model in another way than it is
    trained in: CRAFT trains on its own images.
    """
    record = read_record(dataset.parent / "pool")
    if record is None or record["stage"] != "generate":  # images of others, see `craft import`
        return
    if record["settings"]["model"] != model:
        raise UsageError(
            f"The images of {dataset} were drawn by another model: train the model_name_or_path that `craft generate` "
            "had, or generate again."
        )
    check_agreement(record["settings"]["sampling"], training_args)


def check_agreement(sampling: dict, training_args: "DiffusionConfig") -> None:
    """Raise a [`UsageError`] unless a denoiser is trained with the inputs that it drew with, see [`SamplingConfig.sampling`]."""
    for option, trained in (
        ("guidance_scale", training_args.train_guidance_scale),
        ("max_sequence_length", training_args.max_sequence_length),
    ):
        drawn = sampling.get(option)
        if drawn != trained and (option != "guidance_scale" or trained is not None):
            name = "train_guidance_scale" if option == "guidance_scale" else option
            raise UsageError(f"{name} is {trained}, and the images are drawn with {option} {drawn}: make them agree.")


def describe_signs(training_args: "DiffusionConfig", dataset: "Dataset") -> str | None:
    """What is to be said where images below the mean of their group are to be pushed away from, and there are none."""
    how = getattr(training_args, "negative_advantages", "zero")
    if how == "zero" or "advantage" not in dataset.column_names:
        return None
    if any(advantage is not None and advantage < 0 for advantage in dataset.with_format(None)["advantage"]):
        return None
    return (
        f"negative_advantages is {how}, but no advantage in the dataset is below 0: train_images: kept_groups or all of `craft "
        "filter` keeps worse images too."
    )


def check_same(everywhere: list[dict]) -> None:
    """Raise a [`UsageError`] unless all processes, which may be on several machines, have the same settings."""
    for number, settings in enumerate(everywhere):
        if unlike := [key for key in everywhere[0] if settings.get(key) != everywhere[0][key]]:
            raise UsageError(
                f"Process {number} has another {' and '.join(unlike)} than process 0: copy model, dataset and recipe to every machine."
            )


def check_checkpoint(folder: Path, settings: dict) -> None:
    """Raise a [`UsageError`] unless a folder is a complete checkpoint of a run with these settings."""
    from ..trainer.checkpoints import check_training_state, is_complete

    if not is_complete(folder):
        raise UsageError(f"resume_from_checkpoint {folder}: it is not a complete checkpoint.")
    check_training_state(folder)
    difference = Stage("train", folder.parent, settings).difference()
    if difference is not None:
        raise UsageError(f"resume_from_checkpoint {folder} is of another run: {difference}.")


def main(
    train_args: TrainArguments,
    training_args: "DiffusionConfig",
    launch_args: LaunchArguments | None = None,
    trainer_class: "type[DiffusionTrainer] | None" = None,
) -> None:
    """Train, with [`CraftTrainer`] unless told otherwise, and write the whole pipeline to `output_dir`."""
    check(train_args, launch_args, training_args)
    check_dataset(train_args.dataset_name)
    # Here, after what is wrong has been found: these are most of what a training imports.
    from accelerate.utils.memory import clear_device_cache
    from transformers import ProgressCallback

    from ..devices import check_shared, on_all_processes, on_main_process
    from ..filtering.images import TrainingImages
    from ..trainer.callbacks import LossProgressCallback
    from ..trainer.checkpoints import has_training_state, last_complete_checkpoint
    from ..trainer.craft_trainer import CraftTrainer
    from ..trainer.denoiser import lora_config
    from ..trainer.guard import Guard

    trainer_class = trainer_class or CraftTrainer
    dataset = load_training_data(train_args)
    if message := describe_signs(training_args, dataset):
        say(f"[train] {message}")
    settings = settings_of(train_args, training_args, dataset)
    peft_config = None
    if train_args.use_peft:
        peft_config = lora_config(lora_targets(train_args), train_args.lora_r, train_args.lora_alpha)
    if trainer_class is not CraftTrainer:
        settings["trainer"] = trainer_class._name
    check_origin(Path(train_args.dataset_name), settings["model"], training_args)
    everywhere = on_all_processes(lambda: settings)
    on_main_process(lambda: check_same(everywhere))
    if training_args.resume_from_checkpoint:
        check_checkpoint(Path(training_args.resume_from_checkpoint), settings)
    stage = Stage("train", training_args.output_dir, settings)
    done = on_main_process(lambda: stage.record["summary"] if stage.finished else None)
    if done is not None:
        say(f"[train] done before: {describe(done)} in {stage.folder}")
        return
    if message := on_main_process(stage.begin):
        say(f"[train] {message}")
    check_shared(stage.folder)
    if training_args.fell_back_to_fp16:
        say("[train] this GPU only emulates bfloat16: training in float16 (fp16).")

    trainer = trainer_class(
        train_args.model_name_or_path,
        training_args,
        dataset,
        revision=train_args.model_revision,
        peft_config=peft_config,
    )
    trainer.average_with = train_args.average_with
    trainer.remove_callback(ProgressCallback)
    if not training_args.disable_tqdm:
        trainer.add_callback(LossProgressCallback)
    guard = None
    if train_args.held_out_rewards:
        pictured = trainer_class.pictured(dataset) if hasattr(trainer_class, "pictured") else dataset
        images = TrainingImages(pictured, "chosen" if "chosen" in pictured.column_names else "image")
        guard = Guard(train_args, trainer, images)
        trainer.add_callback(guard)
    checkpoint = training_args.resume_from_checkpoint or on_main_process(
        lambda: last_complete_checkpoint(training_args.output_dir)
    )
    if checkpoint and not has_training_state(Path(checkpoint)):
        say(f"[train] {checkpoint} has no state of optimizer and schedule (save_only_model): training starts again.")
        checkpoint = None
    if checkpoint:
        say(f"[train] goes on from {checkpoint}")
    with stopwatch(stage, write=trainer.is_world_process_zero()) as watch:
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model()
    summary = {"steps": result.global_step, "images": len(dataset), "loss": round(result.training_loss, 6)}
    for name in ("passes", "passes_without_gradient"):  # of images through the denoiser, those before a resumption too
        summary[name] = int(sum(entry.get(name, 0) for entry in trainer.state.log_history))
    if train_args.average_with:
        summary["averaged_with"] = train_args.average_with
    if guard is not None:
        summary |= guard.summary()
        say(guard.describe_cost())
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(stage.folder / "trainer_state.json"))
        trainer.encoded.unlink()
        for unpacked in stage.folder.glob("source-*"):
            shutil.rmtree(unpacked)
        stage.finish(**summary)
        if guard is not None:
            guard.remove_weights()
    say(f"[train] {describe(summary)} in {stage.folder} ({watch.seconds:.0f} s)")
    # A process that tears down its process group while another still uses it can abort.
    trainer.accelerator.wait_for_everyone()
    trainer.end()
    # Its callbacks know the trainer that knows them: without this, the next stage would find the model in its memory.
    del trainer, guard
    clear_device_cache(garbage_collection=True)


def describe(summary: dict) -> str:
    text = f"{summary['steps']} steps on {summary['images']} images, mean loss {summary['loss']:.4f}"
    if "exported_step" in summary:
        stopped = "stopped by the guard, " if summary["stopped_by_guard"] else ""
        text += f", {stopped}step {summary['exported_step'] or summary['steps']} saved"
    if "averaged_with" in summary:
        text += f", the mean with {' and '.join(summary['averaged_with'])} saved"
    return text


@dataclasses.dataclass
class CheckedArguments(TrainArguments):
    """
    [`TrainArguments`] of a training that begins now, so that its model and its dataset must be there. It is found here, since
    the trainer's configuration, which is made after it, imports most of transformers (5.24).
    """

    def __post_init__(self):
        super().__post_init__()
        check_sources(self)
        check_dataset(self.dataset_name)


def make_parser(prog: str | None = None, arguments: type[TrainArguments] = TrainArguments) -> CraftParser:
    from ..trainer.craft_config import CraftConfig

    return training_parser(CraftConfig, prog, arguments=arguments)


if __name__ == "__main__":
    raise SystemExit(run_script(main, lambda: make_parser(arguments=CheckedArguments)))
