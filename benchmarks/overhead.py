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
What stands around the networks: seconds of CPU of a training step and of a batch of candidates beside those of their networks alone.

    PYTHONPATH=. python benchmarks/overhead.py --part train --precision fp32 bf16
    PYTHONPATH=. python benchmarks/overhead.py --part train --micro_batch 4 --accumulation 8
    PYTHONPATH=. python benchmarks/overhead.py --part launch
    PYTHONPATH=. python benchmarks/overhead.py --part generate

Training: `CraftTrainer.train()` in its own loop on the tiny SDXL. After each of its optimizer steps the others take a step too, so
that whatever else the machine does hits all alike: forward pass, backward pass, clipping, optimizer and nothing else, on a copy of
the same network and batches of the same size that lie ready; and the loop of diffusers' `train_text_to_image_sdxl.py`. In
bfloat16 the bare loop computes in a bfloat16 network and steps float32 master weights, with as few operations as there can be.

Candidates: `generate_candidates` as `craft generate` runs it, with the recipe's settings and judges, and within it the seconds of the
denoiser's and the VAE's forward passes.

Seconds are those that the process has used, on one thread: what others do hardly counts, and no thread waits for another in a
busy loop. Every figure is a median over rounds, with the quartiles beside it.
"""

import argparse
import copy
import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from architectures import ARCHITECTURES, TINY, make_batch, predict
from diffusers import UNet2DConditionModel
from measuring import Parts, heading, machine, save
from train import make_dataset, script_steps
from transformers import TrainerCallback

from craft_trl import CraftConfig, CraftTrainer
from craft_trl.candidates import storing
from craft_trl.candidates.config import SamplingConfig
from craft_trl.candidates.drawing import generate_candidates
from craft_trl.candidates.generation import ImageGenerator
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.rewards import RewardSpec
from craft_trl.trainer.denoiser import keep_mode
from craft_trl.trainer.precision import in_bfloat16, modules_of


PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "trl")
OURS, ALONE, SCRIPT = "craft_trl", "forward, backward, clipping, optimizer alone", "loop of diffusers' script"


# Training


def bare_steps(network: torch.nn.Module, optimizer: type, batches: Sequence[dict], bfloat16: bool) -> Iterator[None]:
    """
    An optimizer step at a time: what nobody can leave out.

    Args:
        network (`nn.Module`):
            Network in float32; it is changed.
        optimizer (`type`):
            Makes the optimizer, from parameters.
        batches (`Sequence[dict]`):
            The micro-batches of a step.
        bfloat16 (`bool`):
            Whether to compute in bfloat16.
    """
    masters = list(network.parameters())
    if bfloat16:
        masters = [p.detach().clone() for p in masters]
        network.to(torch.bfloat16)
        batches = [
            {k: v.bfloat16() if v.is_floating_point() and k != "noise" else v for k, v in b.items()} for b in batches
        ]
    weights, optimizer = list(network.parameters()), optimizer(masters)
    while True:
        for number, batch in enumerate(batches):
            prediction = predict("tiny", network, batch)
            (F.mse_loss(prediction.float(), batch["noise"]) / len(batches)).backward()
            if bfloat16:
                gradients = [p.grad for p in weights]
                if number == 0:
                    for master, gradient in zip(masters, gradients, strict=True):
                        master.grad = gradient.float()
                else:
                    torch._foreach_add_([p.grad for p in masters], gradients)
                network.zero_grad()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if bfloat16:
            with torch.no_grad():
                torch._foreach_copy_(weights, masters)
        yield


class Turns(TrainerCallback):
    """Lets the others take a step after each of the Trainer's, and counts the seconds of all."""

    def __init__(self, others: Callable[[], Mapping[str, Iterator]], parts: Parts):
        self.make_others, self.parts = others, parts
        self.seconds: dict[str, list[float]] = defaultdict(list)
        # accelerate's state is one for the process: the script's and the Trainer's say different things.
        self.states: dict[str, dict] = {}
        self.began: float | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        shared = GradientState._shared_state
        mine = dict(shared)
        self.others = self.make_others()
        for name, steps in self.others.items():
            next(steps)  # loads what it needs; the first step of all is not counted
            self.states[name] = dict(shared)
            shared.clear()
            shared.update(mine)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.parts.begin("optimizer")

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.parts.end()

    def on_step_end(self, args, state, control, **kwargs):
        if self.began is not None:
            self.seconds[OURS].append(time.process_time() - self.began)
        self.parts.end_round()
        shared = GradientState._shared_state
        mine = dict(shared)
        for name, steps in self.others.items():
            shared.clear()
            shared.update(self.states[name])
            start = time.process_time()
            next(steps)
            if self.began is not None:
                self.seconds[name].append(time.process_time() - start)
        shared.clear()
        shared.update(mine)
        self.parts.skip()
        self.began = time.process_time()


def train(precision: str, options: argparse.Namespace) -> dict:
    """Seconds of a step of all who train in this precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    bfloat16 = precision == "bf16"
    micro, accumulation = options.micro_batch, options.accumulation
    parts = Parts()
    with tempfile.TemporaryDirectory() as folder:
        args = CraftConfig(
            output_dir=folder,
            max_steps=options.rounds + 2,
            global_batch_size=micro * accumulation,
            per_device_train_batch_size=micro,
            learning_rate=1e-5,
            save_strategy="no",
            report_to="none",
            bf16=bfloat16,
            use_cpu=True,
        )

        def others() -> dict[str, Iterator]:
            inner = trainer.optimizer.optimizer
            optimizer = functools.partial(type(inner), **{k: inner.defaults[k] for k in ("lr", "betas", "eps")})
            optimizer = functools.partial(optimizer, fused=inner.defaults["fused"])
            batches = [make_batch("tiny", micro) for _ in range(accumulation)]
            script = (str(TINY), torch.device("cpu"), micro, accumulation, False, "bf16" if bfloat16 else "no")
            return {
                ALONE: bare_steps(network, optimizer, batches, bfloat16),
                SCRIPT: script_steps("tiny", *script),
            }

        turns = Turns(others, parts)
        trainer = CraftTrainer(str(TINY), args, make_dataset(64), callbacks=[turns])
        network = copy.deepcopy(trainer.model)
        for name in ("forward", "train"):  # those of the class, not of the trainer's model
            vars(network).pop(name, None)
        wrap_training(trainer, parts)
        trainer.train()
    return {"seconds": turns.seconds, "parts": parts.median()}


def wrap_training(trainer: CraftTrainer, parts: Parts) -> None:
    """Count the parts of a training step."""
    parts.wrap(trainer.model, "forward", "forward pass of the denoiser")
    parts.wrap(trainer.model, "zero_grad", "zeroing of the gradients")
    for name, part in (
        ("get_batch_samples", "samples and micro-batches"),
        ("compute_loss", "noising, loss and metrics"),
        ("_clip_grad_norm", "clipping"),
        ("_maybe_log_save_evaluate", "logging"),
    ):
        parts.wrap(trainer, name, part)
    parts.wrap(trainer.accelerator, "backward", "backward pass")


def ratios(seconds: Mapping[str, Sequence[float]], name: str) -> np.ndarray:
    """Quartiles of how much longer ours took than another in the same round."""
    return np.percentile(np.array(seconds[OURS]) / np.array(seconds[name]), [25, 50, 75])


# Candidates


def generate(options: argparse.Namespace) -> dict:
    """Seconds of candidates by part, a round for each batch."""
    torch.manual_seed(0)
    config = SamplingConfig(
        scheduler="DPMSolverMultistepScheduler", num_inference_steps=10, guidance_scale=2.0, height=64, width=64,
        batch_size=options.batch_size,
    )  # fmt: skip
    generator, parts = ImageGenerator(str(TINY), config, device="cpu"), Parts()
    names = ("hpsv2=hps", "pickscore=pick", "aesthetic=aesthetic")
    specs = [RewardSpec.parse(name.replace("=", f"={TINY.parent}/rewards/")) for name in names]
    rewards = {spec.name: spec.load() for spec in specs}
    pipeline = generator.pipeline
    parts.wrap(pipeline.unet, "forward", "denoiser")
    parts.wrap(pipeline.vae, "decode", "VAE")
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        parts.wrap(encoder, "forward", "text encoders")
    parts.wrap(generator, "_encode", "tokens, and what is kept of prompts")
    parts.wrap(generator, "_decode_all", "pixels")
    parts.wrap(pipeline.scheduler, "step", "steps of the scheduler")
    parts.wrap(pipeline, "check_inputs", "checks of the pipeline")
    draw = functools.partial(parts.run, "the pipeline's and the generator's own", generator)
    prompts = [f"a fox, number {i}" for i in range(options.rounds * options.batch_size)]
    groups = make_groups(prompts, [[f"{p}, sharp", f"{p}, detailed"] for p in prompts], seed=0)
    batches = 0

    def generate(texts, seeds):
        nonlocal batches
        if batches > 1:  # the first warms up
            parts.end_round()
        elif batches == 1:
            parts.seconds.clear()
            parts.skip()
        batches += 1
        return draw(texts, seeds)

    parts.wrap(storing, "score_batch", "scoring by three judges")
    parts.wrap(CandidatePool, "write", "writing")
    with tempfile.TemporaryDirectory() as folder:
        pool = CandidatePool(Path(folder), list(rewards))
        generate_candidates(pool, groups, generate, rewards, options.batch_size, list(rewards), show_progress=False)
    return {"parts": parts.median(), "batches": batches}


# What a GPU would wait for


def launch(options: argparse.Namespace) -> dict[str, float]:
    """
    Seconds of CPU of what is done around a forward pass of a UNet of SDXL's structure, so narrow that its arithmetic is nothing: on a
    GPU, small micro-batches wait for this.
    """
    torch.manual_seed(0)
    width = 32
    narrow = {
        "block_out_channels": (width,) * 3, "attention_head_dim": (1,) * 3, "cross_attention_dim": width, "norm_num_groups": 8,
        "sample_size": 8, "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + width,
    }  # fmt: skip
    unet = UNet2DConditionModel.from_config({**ARCHITECTURES["sdxl"]["config"], **narrow}).train()
    batch = {
        "latents": torch.randn(1, 4, 8, 8), "timesteps": torch.tensor([500]), "prompt_embeds": torch.randn(1, 7, width),
        "pooled_prompt_embeds": torch.randn(1, width), "time_ids": torch.ones(1, 6),
    }  # fmt: skip
    halves = {k: v.bfloat16() if k not in ("timesteps", "time_ids") else v for k, v in batch.items()}
    half = copy.deepcopy(unet).bfloat16()

    class Nothing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = unet

        def forward(self):
            pass

    def look_up_by_name() -> None:
        copies = {f"module.{name}": p.to(torch.bfloat16) for name, p in unet.named_parameters()}
        torch.func.functional_call(Nothing(), copies)

    def put_in_place() -> None:
        with in_bfloat16(unet):
            pass

    quick = copy.deepcopy(unet)
    keep_mode(quick)
    cases = {
        "forward pass, bfloat16": lambda: predict("tiny", half, halves),
        "copies in their places, by functional_call": look_up_by_name,
        "copies in their places, as now": put_in_place,
        "copies alone": lambda: [p.to(torch.bfloat16) for p in parameters],
        "train() of PyTorch": unet.train,
        "train() as now": quick.train,
        "dtype of diffusers": lambda: unet.dtype,
    }
    parameters = list(unet.parameters())
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, run in cases.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {"parameters": len(parameters), "modules": len(modules_of(unet)), "seconds": medians}


def report(result: dict) -> None:
    """Print what came out."""
    print(heading(result["machine"]))
    for precision, made in result.get("train", {}).items():
        seconds = made["seconds"]
        ours = float(np.median(seconds[OURS]))
        print(
            f"\nTraining in {precision}, {len(seconds[OURS])} rounds\n\n| who | ms of CPU a step | ours takes |\n|---|---|---|"
        )
        for name in (OURS, SCRIPT, ALONE):
            low, middle, high = ratios(seconds, name)
            times = "" if name == OURS else f"{middle:.3f} x ({low:.3f} to {high:.3f})"
            print(f"| {name} | {1000 * float(np.median(seconds[name])):.1f} | {times} |")
        print("\n| part of ours | ms | share |\n|---|---|---|")
        for part, value in sorted(made["parts"].items(), key=lambda item: -item[1]):
            print(f"| {part} | {1000 * value:.2f} | {value / ours:.1%} |")
    if "launch" in result:
        made = result["launch"]
        alone = made["seconds"]["forward pass, bfloat16"]
        print(
            f"\nOf {made['parameters']} parameters in {made['modules']} modules\n\n| what | ms of CPU | of the forward pass |\n|---|---|---|"
        )
        for name, value in made["seconds"].items():
            print(f"| {name} | {1000 * value:.1f} | {value / alone:.0%} |")
    if "generate" in result:
        parts = result["generate"]["parts"]
        networks = parts["denoiser"] + parts["VAE"]
        print(
            f"\nCandidates, {result['generate']['batches']} batches\n\n| part | ms of CPU a batch | of denoiser and VAE |\n|---|---|---|"
        )
        for part, value in sorted(parts.items(), key=lambda item: -item[1]):
            print(f"| {part} | {1000 * value:.2f} | {value / networks:.2%} |")


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure what the arguments say, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--part", choices=["train", "launch", "generate"], nargs="+", default=["train", "launch", "generate"]
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--micro_batch", type=int, default=32, help="samples of a micro-batch")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--batch_size", type=int, default=16, help="images of a batch of candidates")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each who trains, and batches of candidates")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = {"machine": machine("cpu", PACKAGES), "options": {k: str(v) for k, v in vars(options).items()}}
    if "train" in options.part:
        result["train"] = {}
        for precision in options.precision:
            result["train"][precision] = train(precision, options)
            save(result, options.json)
    if "launch" in options.part:
        result["launch"] = launch(options)
    if "generate" in options.part:
        result["generate"] = generate(options)
    report(result)
    save(result, options.json)
    return result


if __name__ == "__main__":
    main()
