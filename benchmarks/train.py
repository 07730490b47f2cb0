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
Speed and memory of training, side by side with the loops of diffusers' training scripts.

    PYTHONPATH=. python benchmarks/train.py --model sdxl --minutes 25 --json train.json     # on a GPU
    PYTHONPATH=. python benchmarks/train.py --model sd35_medium --micro_batch 4
    PYTHONPATH=. python benchmarks/train.py --model flux2_klein_lora
    PYTHONPATH=. python benchmarks/train.py --memory sd35_medium flux2_klein               # computed, needs no GPU
    PYTHONPATH=. python benchmarks/train.py --model tiny --steps 2 --micro_batch 2         # tries the whole thing on a CPU

Ours is `CraftTrainer.train()` as a user runs it, data loading, clipping and logging included. The script's loop is
written here from its source and its documented arguments: float32 weights under bfloat16 autocast, or bfloat16 weights under a
float32 adapter, AdamW, cached latents and text embeddings, with activation checkpointing, at batch 1 (as documented) and at the
largest batch of `--script_batches` that fits. All train the same random weights and take turns, each built anew for every turn,
so that they share the card's clock and no memory. Zeros would flatter a GPU, and so nothing here is zero.
"""

import argparse
import functools
import gc
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from architectures import (
    ARCHITECTURES,
    MEMORY_ONLY,
    family_of,
    make_batch,
    make_denoiser,
    make_source,
    predict,
    put_adapter_on,
)
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from diffusers.optimization import get_scheduler
from measuring import ceiling, machine, save
from memory import PROFILES, print_memory
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from craft_trl import CraftConfig, CraftTrainer, noise_process
from craft_trl.trainer.denoiser import load_denoiser, lora_config
from craft_trl.trainer.precision import compute_in_bfloat16


# A name with _lora behind it is an adapter of rank 64 on that model, with activation checkpointing.
CONTENDERS = ["ours", "compiled", "autocast", "checkpointing", "no_checkpointing", "documented"]
MODELS = [f"{name}{adapter}" for name in ARCHITECTURES if name not in MEMORY_ONLY for adapter in ("", "_lora")]
TFLOP = {"sdxl": 20.231}
PACKAGES = ("torch", "diffusers", "transformers", "accelerate")


def split(model: str) -> tuple[str, bool]:
    """Architecture, and whether an adapter on it is trained."""
    return model.removesuffix("_lora"), model.endswith("_lora")


def count_tflop(model: str) -> float:
    """Operations of a forward and backward pass for one sample, counted on the device `meta`."""
    if model not in TFLOP:
        name, lora = split(model)
        with torch.device("meta"):
            denoiser, batch = make_denoiser(name), make_batch(name, 1)
            if lora:
                put_adapter_on(denoiser, name, torch.float32)
        with FlopCounterMode(display=False) as counter:
            predict(name, denoiser, batch).sum().backward()
        TFLOP[model] = counter.get_total_flops() / 1e12
    return TFLOP[model]


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Measure what the arguments say, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="sdxl", help="architecture, `_lora` for an adapter on it")
    parser.add_argument(
        "--memory", nargs="*", choices=[*PROFILES], help="print what is computed for recipes, and exit"
    )
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of a turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each contender")
    parser.add_argument("--global_batch", type=int, default=32, help="samples per optimizer step")
    parser.add_argument("--micro_batch", type=int, default=4, help="micro-batch of ours")
    parser.add_argument(
        "--script_batches", type=int, nargs="+", default=[16, 8, 4], help="batches to try, largest first"
    )
    parser.add_argument(
        "--contenders",
        choices=CONTENDERS,
        nargs="+",
        default=[name for name in CONTENDERS if name != "compiled"],
        help="who takes turns, in this order: ours, with compiled blocks, under autocast; the script with activation "
        "checkpointing, without, and with its documented arguments",
    )
    parser.add_argument("--compile_blocks", action="store_true", help="add the contender compiled")
    parser.add_argument(
        "--cosines", action=argparse.BooleanOptionalAction, default=True, help="compare gradients with float32 ones"
    )
    parser.add_argument("--sources", type=Path, help="folder that keeps the random models, for other runs")
    parser.add_argument("--channels_last", action="store_true", help="use channels_last in ours")
    parser.add_argument("--minutes", type=float, default=25, help="time budget: no turn begins after it")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args(argv)
    if options.memory is not None:
        for name in options.memory or PROFILES:
            print_memory(name)
        return None
    if options.compile_blocks:
        options.contenders = ["ours", "compiled", *(name for name in options.contenders if name != "ours")]
    return compare(options)


# Speed


def compare(options: argparse.Namespace) -> dict:
    """Let the contenders take turns, and print what came out. What there is so far is in the file after every turn."""
    end = time.monotonic() + 60 * options.minutes
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    turns: dict[str, list[dict]] = {}
    result = {
        "model": options.model,
        "machine": machine(device.type, PACKAGES),
        "ceiling_tflops": ceiling(device.type, torch.bfloat16),
        "tflop_per_sample": count_tflop(options.model),
        "turns": turns,
        "gradient_cosine": {},
        "options": {key: str(value) for key, value in vars(options).items()},
        "finished": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        name, _ = split(options.model)
        source = make_source(name, (options.sources or Path(folder)) / name, device)
        contenders = make_contenders(options, source, device, Path(folder) / "out")
        turns |= {name: [] for name in contenders}
        for turn in range(options.rounds):
            for name, run in contenders.items():
                failed = turn > 0 and not turns[name]  # it did not fit
                if time.monotonic() > end or failed:
                    continue
                try:
                    turns[name].append(measure(run, device))
                    print(
                        f"round {turn + 1}, {name}: {turns[name][-1]['samples_per_second']:.3f} samples/s", flush=True
                    )
                    save(result, options.json)
                except torch.OutOfMemoryError:
                    print(f"round {turn + 1}, {name}: does not fit", flush=True)
        for mode in ("module", "autocast") if options.cosines else ():
            result["gradient_cosine"][mode] = gradient_cosine(options.model, source, mode, device)
    result["finished"] = True
    save(result, options.json)
    report(result)
    return result


def make_contenders(
    options: argparse.Namespace, source: str, device: torch.device, output_dir: Path
) -> dict[str, Callable[[], dict]]:
    """Who takes turns, by name: ours and the script, in several ways."""
    dataset = make_dataset(ARCHITECTURES[split(options.model)[0]]["size"])
    ours = functools.partial(run_ours, source, dataset, options, output_dir)
    script = functools.partial(run_script, options.model, source, options.steps, device)
    known: dict[str, dict[str, Callable[[], dict]]] = {
        "ours": {f"craft_trl, micro-batch {options.micro_batch}": ours},
        "compiled": {"craft_trl, compiled blocks": functools.partial(ours, compile_blocks=True)},
        "autocast": {"craft_trl, autocast": functools.partial(ours, bf16_mode="autocast")},
        "documented": {
            "diffusers script as documented: batch 1 x 4, checkpointing": functools.partial(
                script, batch_size=1, accumulation=4, checkpointing=True
            )
        },
    }
    for kind, checkpointing in (("checkpointing", True), ("no_checkpointing", False)):
        what = "checkpointing" if checkpointing else "no checkpointing"
        known[kind] = {
            f"diffusers script, {what}, batch {batch}": functools.partial(
                script, batch_size=batch, accumulation=1, checkpointing=checkpointing
            )
            for batch in options.script_batches
        }
    return {name: run for kind in options.contenders for name, run in known[kind].items()}


def summary(result: dict) -> list[dict]:
    """A row for each contender that had a turn."""
    rows = []
    for name, turns in result["turns"].items():
        if turns:
            rate = statistics.median(turn["samples_per_second"] for turn in turns)
            rows.append(
                {
                    "contender": name,
                    "samples/s": rate,
                    "TFLOP/s": rate * result["tflop_per_sample"],
                    "of the ceiling": rate * result["tflop_per_sample"] / result["ceiling_tflops"],
                    "peak GiB": max(turn["peak_gib"] for turn in turns),
                    "first step s": max(turn["first_step_seconds"] for turn in turns),
                    "minutes for 25,600": 25_600 / rate / 60,
                }
            )
    return rows


def report(result: dict) -> None:
    """Print what came out."""
    print(
        f"\nCeiling, a bfloat16 matrix product of this run: {result['ceiling_tflops']:.2f} TFLOP/s. "
        f"{result['tflop_per_sample']:.3f} TFLOP per sample.\n"
    )
    print("| contender | samples/s | TFLOP/s | of the ceiling | peak GiB | first step s | minutes for 25,600 |")
    print("|---|---|---|---|---|---|---|")
    for row in summary(result):
        name, rate, tflops, share, peak, first, minutes = row.values()
        print(f"| {name} | {rate:.3f} | {tflops:.2f} | {share:.1%} | {peak:.1f} | {first:.1f} | {minutes:.1f} |")
    if result["gradient_cosine"]:
        print("\nCosine between the gradient of one sample and its float32 gradient: ", end="")
        print(", ".join(f"{mode} {value:.6f}" for mode, value in result["gradient_cosine"].items()))


def measure(run: Callable[[], dict], device: torch.device) -> dict:
    """A turn of a contender, from an empty card, with the most memory that it held."""
    # Each makes an `Accelerator` of its own, which shares a global state.
    AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    result = run()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {**result, "peak_gib": peak / 2**30}


class Clock(TrainerCallback):
    """Time at the start and after every optimizer step, when the device is done."""

    def __init__(self):
        self.times: list[float] = []

    def tick(self, *args, **kwargs) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.times.append(time.perf_counter())

    on_train_begin = on_step_end = tick

    def result(self, samples_per_step: int) -> dict:
        # The first step compiles, chooses algorithms and fills caches.
        first, *steps = (later - earlier for earlier, later in itertools.pairwise(self.times))
        return {
            "samples_per_second": samples_per_step / statistics.median(steps),
            "first_step_seconds": first,
            "step_seconds": steps,
        }


def run_ours(source: str, dataset: Dataset, options: argparse.Namespace, output_dir: Path, **settings) -> dict:
    """Training as a user runs it."""
    name, lora = split(options.model)
    peft_config = lora_config(family_of(name).lora_target_modules, rank=64) if lora else None
    args = CraftConfig(
        output_dir=str(output_dir),
        max_steps=options.steps + 1,
        global_batch_size=options.global_batch,
        per_device_train_batch_size=options.micro_batch,
        channels_last=options.channels_last,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to="none",
        bf16=True,
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_num_workers=2,
        activation_checkpointing=lora,  # as in the recipes
        **settings,
    )
    clock = Clock()
    CraftTrainer(source, args, dataset, peft_config=peft_config, callbacks=[clock]).train()
    return clock.result(options.global_batch)


def run_script(
    model: str, source: str, steps: int, device: torch.device, batch_size: int, accumulation: int, checkpointing: bool
) -> dict:
    """So many steps of the script's loop, and one before them."""
    clock, made = Clock(), script_steps(model, source, device, batch_size, accumulation, checkpointing)
    next(made)  # loads the model
    clock.tick()
    for _ in itertools.islice(made, steps + 1):
        clock.tick()
    return clock.result(batch_size * accumulation)


def script_steps(
    model: str,
    source: str,
    device: torch.device,
    batch_size: int,
    accumulation: int = 1,
    checkpointing: bool = False,
    mixed_precision: str = "bf16",
) -> Iterator[None]:
    """
    The loop of `train_text_to_image_sdxl.py`, `train_dreambooth_sd3.py` or `train_dreambooth_lora_flux2_klein.py` (diffusers
    0.42), as their sources have it, an optimizer step at a time: float32 weights under autocast, or bfloat16 weights under an
    adapter; `torch.optim.AdamW`; everything encoded before, as the last of them can; noise drawn on the device; the loss read
    for the progress bar at every micro-batch, and gathered before by the first. Its batches lie in memory, which flatters it.
    What comes first is no step: all is loaded.
    """
    accelerator = Accelerator(
        mixed_precision=mixed_precision, gradient_accumulation_steps=accumulation, cpu=device.type == "cpu"
    )
    name, lora = split(model)
    family = family_of(name)
    denoiser = load_denoiser(source)
    if lora:
        put_adapter_on(denoiser, name)
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
    process = noise_process(json.loads((Path(source) / "scheduler" / "scheduler_config.json").read_text()))
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=1e-2)
    lr_scheduler = get_scheduler("constant", optimizer=optimizer)
    denoiser, optimizer, lr_scheduler = accelerator.prepare(denoiser, optimizer, lr_scheduler)
    denoiser.train()
    batches = [make_batch(name, batch_size) for _ in range(4)]
    train_loss = 0.0
    yield
    for batch in itertools.cycle(batches):
        with accelerator.accumulate(denoiser):
            batch = {key: value.to(device) for key, value in batch.items()}
            noise = torch.randn_like(batch["latents"])
            if family.noise == "flow":
                timesteps = 1000 * torch.rand(batch_size, device=device)
            else:
                timesteps = torch.randint(0, 1000, (batch_size,), device=device)
            noisy = process.add(batch["latents"], noise, timesteps)
            prediction = predict(name, denoiser, {**batch, "latents": noisy, "timesteps": timesteps})
            target = process.target(batch["latents"], noise, timesteps)
            loss = F.mse_loss(prediction.float(), target.float(), reduction="mean")
            gathered = loss if family.noise == "flow" else accelerator.gather(loss.repeat(batch_size)).mean()
            train_loss += gathered.item() / accumulation
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            yield


def gradient_cosine(model: str, source: str, mode: str, device: torch.device) -> float:
    """Cosine between the gradients of one sample in bfloat16 and in float32."""
    torch.manual_seed(1)
    name, lora = split(model)
    denoiser = load_denoiser(source).to(device)
    if lora:
        put_adapter_on(denoiser, name, torch.float32)
    batch = {key: value.to(device) for key, value in make_batch(name, 1).items()}
    if family_of(name).noise == "flow":  # not one that FLUX.2 rounds to the precision that it computes in
        batch["timesteps"].fill_(500)
    with torch.backends.cudnn.flags(
        enabled=True, allow_tf32=False
    ):  # which is the default of convolutions, and no float32
        F.mse_loss(predict(name, denoiser, batch), batch["noise"]).backward()
    reached = [parameter for parameter in denoiser.parameters() if parameter.grad is not None]
    reference = [parameter.grad for parameter in reached]
    denoiser.zero_grad()
    if mode == "module":
        compute_in_bfloat16(denoiser)
    with torch.autocast(device.type, torch.bfloat16, enabled=mode == "autocast"):
        prediction = predict(name, denoiser, batch)
    F.mse_loss(prediction.float(), batch["noise"]).backward()
    dot = aa = bb = 0.0
    for a, parameter in zip(reference, reached, strict=True):
        a, b = a.double(), parameter.grad.double()
        dot, aa, bb = dot + (a * b).sum().item(), aa + (a * a).sum().item(), bb + (b * b).sum().item()
    return dot / math.sqrt(aa * bb)


def make_dataset(size: int) -> Dataset:
    """Rows of noise, all with a positive advantage: no sample is left out."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    rows = {
        "image": [Image.fromarray(array) for array in pixels],
        "prompt": [f"a fox {i}" for i in range(len(pixels))],
        "advantage": np.linspace(0.5, 1.5, len(pixels)),
    }
    features = Features({"image": ImageFeature(), "prompt": Value("string"), "advantage": Value("float32")})
    return Dataset.from_dict(rows, features=features)


if __name__ == "__main__":
    main()
