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
The whole of CRAFT on models and rewards of full size with random weights, on a CPU: does everything go through, and in how
much time and memory?

    PYTHONPATH=. python benchmarks/full_size.py --folder /tmp/full_size --json full_size.json
    PYTHONPATH=. python benchmarks/full_size.py --folder /tmp/full_size --only sd15

Stable Diffusion 1.5 is trained whole. Of SDXL a LoRA is trained, and the pipeline is exported as a single file, which is read
back. Both draw at 256 px in few steps for few prompts; HPSv2.1 is read from a file as it is published, PickScore and the
aesthetic score are of their published architectures. The judgement of random weights means nothing: it is the way there
that is run, at its real sizes.

The folder gets 24 GB at most, of which the models and rewards stay and are used again; what a killed run has built counts.
Every stage is a process of its own, whose time and largest memory are printed; `craft run` then has to find all of them done.
It takes less than 20 GB of memory of its own, and half an hour on two idle cores. The pages of the files that a process maps
count as its memory too, and the system drops them where it needs the room: both figures are printed.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path


FAMILIES = ("sd15", "sdxl")
MARKER = "full_size.json"  # a folder with it is this script's
STAGES = {
    "expand": "candidates",
    "generate": "candidates",
    "filter": "candidates",
    "train": "craft",
    "evaluate": "evaluate",
}
NEEDED = {"sd15": 18, "sdxl": 20}  # GB of memory that must be free
PROMPTS = ("a red fox in the snow", "a portrait of an old fisherman", "a glass of water", "three balloons over a lake")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder, or one of an earlier call")
    parser.add_argument("--only", choices=FAMILIES, help="one of the two models")
    parser.add_argument("--aesthetic_head", type=Path, help="LAION's head, the file of the published weights")
    parser.add_argument("--minutes", type=float, default=30, help="time budget: what is at work then is ended")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--build", choices=("rewards", *FAMILIES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.absolute()
    if options.build:
        build(options.build, folder, options.aesthetic_head)
        return 0
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        parser.error(f"{folder} holds files that are not this script's: name another folder")
    families = [options.only] if options.only else list(FAMILIES)
    free = available_gigabytes()
    if free is not None and free < max(NEEDED[name] for name in families):
        parser.error(f"{free:.0f} GB of memory are free, {max(NEEDED[n] for n in families)} are needed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("Made by benchmarks/full_size.py.\n")

    deadline, rows = time.monotonic() + 60 * options.minutes, []
    for family, name, argv in plan(families, folder, options.aesthetic_head):
        row = measure(argv, folder, deadline)
        rows.append({"model": family, "stage": name, **row})
        print(
            f"[full_size] {family}, {name}: {row['seconds']:.0f} s, {row['gigabytes']:.1f} GB, exit code {row['code']}",
            flush=True,
        )
        if row["code"]:
            break
    report(rows)
    packages = ("torch", "diffusers", "transformers", "trl", "accelerate", "open_clip_torch")
    result = {
        "rows": rows,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in packages},
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return rows[-1]["code"]


def plan(families: list[str], folder: Path, head: Path | None) -> list[tuple[str, str, list[str] | Callable]]:
    """What is run in this order: the model, the stage, and its command or function."""
    script = [str(Path(__file__).absolute()), "--folder", str(folder)]
    with_head = ["--aesthetic_head", str(head.absolute())] if head else []
    steps: list = [("rewards", "build", [*script, "--build", "rewards", *with_head])]
    for family in families:
        run, craft = folder / "runs" / family, ["-m", "craft_trl.cli.main"]
        recipes = folder / "recipes" / family
        steps.append((family, "build", [*script, "--build", family]))
        steps.append((family, "clear", lambda family=family: clear(folder, family)))
        steps += [
            (family, stage, [*craft, stage, "--config", str(recipes / f"{recipe}.yaml")])
            for stage, recipe in STAGES.items()
        ]
        steps.append((family, "run: all done", [*craft, "run", str(recipes)]))
        if family == "sdxl":
            source = ["--model", str(folder / "models" / family), "--format", "single-file"]
            steps.append((family, "export", [*craft, "export", *source, "--output", str(run / "model.safetensors")]))
        steps.append((family, "clear", lambda family=family: clear(folder, family)))
    return steps


def clear(folder: Path, family: str) -> None:
    """Remove the run of an earlier call, or this one's when it is done, and write the recipes anew."""
    shutil.rmtree(folder / "runs" / family, ignore_errors=True)
    shutil.rmtree(folder / "recipes" / family, ignore_errors=True)
    write_recipes(folder, family)


def measure(work: list[str] | Callable, folder: Path, deadline: float) -> dict:
    """Seconds, largest memory, its own and with the files that it maps, and exit code of a command, which is ended at the deadline."""
    start = time.monotonic()
    if callable(work):
        work()
        return {"seconds": time.monotonic() - start, "own_gigabytes": None, "gigabytes": 0.0, "code": 0}
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    paths = [str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    process, own = os.posix_spawn(sys.executable, [sys.executable, *work], environment), None
    while True:
        done, status, usage = os.wait4(process, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(process, 9)
        own = max(filter(None, (own, own_gigabytes(process))), default=None)
        time.sleep(0.05)
    # Bytes on macOS, kibibytes elsewhere. Of the process that took most, where it had children.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    code = os.waitstatus_to_exitcode(status)
    return {"seconds": time.monotonic() - start, "own_gigabytes": own, "gigabytes": peak / 1e9, "code": code}


def own_gigabytes(process: int) -> float | None:
    """Memory of a process but the pages of files, which the system drops where it needs the room; where the system says it."""
    with suppress(OSError):
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        if "RssAnon" in fields:
            return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024 / 1e9
    return None


def available_gigabytes() -> float | None:
    """Memory that is free, where the system says it."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    (line,) = (line for line in path.read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024 / 1e9


def report(rows: list[dict]) -> None:
    shown = [row for row in rows if row["stage"] != "clear"]
    print("\n| model | stage | seconds | GB of its own at most | with pages of files |\n|---|---|---|---|---|")
    for row in shown:
        how = "" if row["code"] == 0 else f" (exit code {row['code']})"
        own = "" if row["own_gigabytes"] is None else f"{row['own_gigabytes']:.1f}"
        print(f"| {row['model']} | {row['stage']}{how} | {row['seconds']:.0f} | {own} | {row['gigabytes']:.1f} |")
    own = max((row["own_gigabytes"] or 0 for row in shown), default=0)
    most = max(row["gigabytes"] for row in shown)
    print(f"| all | | {sum(row['seconds'] for row in rows):.0f} | {own:.1f} | {most:.1f} |")
    waited = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\nProcessor time {waited.ru_utime + waited.ru_stime:.0f} s.")


# Recipes


def write_recipes(folder: Path, family: str) -> None:
    """The recipes of a run that goes through in minutes."""
    import yaml

    recipes, run, rewards = folder / "recipes" / family, folder / "runs" / family, folder / "rewards"
    recipes.mkdir(parents=True)
    model = str(folder / "models" / family)
    (recipes / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    named = {name: f"{name}={rewards / name}" for name in ("hpsv2", "pickscore", "aesthetic")}
    drawn = {"num_inference_steps": 2, "guidance_scale": 5.0, "height": 256, "width": 256, "batch_size": 2}
    # In float32, which is what a CPU is fast in: 14 GB of SDXL leave room for the smallest reward only.
    scored = list(named.values()) if family == "sd15" else [named["aesthetic"]]
    candidates = {
        "prompts": str(recipes / "prompts.txt"), "num_prompts": 4 if family == "sd15" else 3, "num_variants": 2,
        "templates": ["{prompt}, high quality", "{prompt}, sharp"], "model_name_or_path": model, "rewards": scored,
        "group_seeds": "distinct", "filter_level": "image", "filter_rewards": ["aesthetic"], "output_dir": str(run),
    }  # fmt: skip
    craft = {
        "model_name_or_path": model, "dataset_name": str(run / "dataset"), "output_dir": str(run / "model"),
        "max_steps": 2, "global_batch_size": 2, "per_device_train_batch_size": 1, "negative_advantages": "keep",
        "activation_checkpointing": True, "save_strategy": "no", "report_to": "none",
    }  # fmt: skip
    if family == "sdxl":
        craft |= {"use_peft": True, "max_steps": 1}
    tuned = f"craft={run / 'model'}" if family == "sd15" else f"craft=lora:{run / 'model'}"
    evaluate = {
        "models": [f"base={model}", tuned], "prompts": str(recipes / "prompts.txt"), "num_prompts": 2,
        "rewards": [named["hpsv2"], named["aesthetic"]], "held_out_rewards": [named["pickscore"]],
        "reward_device": "offload", "output_dir": str(run / "evaluation"),
    }  # fmt: skip
    for name, content in (("candidates", candidates | drawn), ("craft", craft), ("evaluate", evaluate | drawn)):
        (recipes / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


# Models and rewards of full size, built in a process of its own: this one stays small.


def build(what: str, folder: Path, head: Path | None) -> None:
    """Build the rewards, or a pipeline, unless they are there."""
    import torch

    torch.manual_seed(0)
    # Random numbers in 16 bits: half the memory, and the files are as large as those that people download.
    torch.set_default_dtype(torch.float16)
    if what == "rewards":
        build_rewards(folder / "rewards", head)
    else:
        build_pipeline(what, folder / "models" / what)


def once(path: Path, make: Callable[[Path], None]) -> None:
    """Make a folder unless it is there. It gets its name when it is whole."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    make(temporary)
    temporary.rename(path)


def build_rewards(folder: Path, head: Path | None) -> None:
    """HPSv2.1 as its published file, PickScore, and CLIP ViT-L/14 with a head."""
    import open_clip
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    from craft_trl.quiet import quiet_logs
    from craft_trl.rewards import hpsv2, loading, weights
    from craft_trl.rewards.aesthetic import LinearHead
    from craft_trl.rewards.mps_network import CONFIG

    def make_hpsv2(path: Path) -> None:
        with quiet_logs():
            model = open_clip.create_model(hpsv2.ARCHITECTURE, load_weights=False, precision="fp16")
        torch.save({"state_dict": model.state_dict()}, path / weights.HPSV2["v2.1"].files[0])

    def make_pickscore(path: Path) -> None:
        config = CLIPConfig(**{key: CONFIG[key] for key in ("projection_dim", "text_config", "vision_config")})
        CLIPModel(config).save_pretrained(path)

    def make_aesthetic(path: Path) -> None:
        config = CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
            patch_size=14, projection_dim=768,
        )  # fmt: skip
        CLIPVisionModelWithProjection(config).save_pretrained(path)
        # Of random weights it is the length of a text that scores differ by, and of this head's two signs one likes longer ones.
        layers = loading.read(head) if head else {name: -value for name, value in LinearHead(768).state_dict().items()}
        save_file(
            {name: value.float().contiguous() for name, value in layers.items()}, path / "aesthetic_head.safetensors"
        )

    for name, make in (("hpsv2", make_hpsv2), ("pickscore", make_pickscore), ("aesthetic", make_aesthetic)):
        once(folder / name, make)


def parts_of(family: str) -> dict[str, tuple[str, Callable]]:
    """Of a pipeline each part's library and what makes it."""
    import diffusers
    from architectures import ARCHITECTURES, make_denoiser
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
    )
    second = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280,
        hidden_act="gelu",
    )  # fmt: skip
    vae = {
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
        "scaling_factor": 0.18215 if family == "sd15" else 0.13025,
        "sample_size": ARCHITECTURES[family]["size"],
    }  # fmt: skip
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    scheduler |= {"steps_offset": 1, "set_alpha_to_one": False}
    parts = {
        "unet": ("diffusers", lambda: make_denoiser(family)),
        "vae": ("diffusers", lambda: diffusers.AutoencoderKL(**vae)),
        "text_encoder": ("transformers", lambda: CLIPTextModel(first)),
        "tokenizer": ("transformers", make_tokenizer),
        "scheduler": ("diffusers", lambda: diffusers.DDIMScheduler(**scheduler)),
    }
    if family == "sdxl":
        parts["text_encoder_2"] = ("transformers", lambda: CLIPTextModelWithProjection(second))
        parts["tokenizer_2"] = ("transformers", make_tokenizer)
    return parts


def build_pipeline(family: str, folder: Path) -> None:
    """A pipeline, part by part: whole it would take twice the memory."""
    if family == "sdxl":
        index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    else:
        index = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
        index |= {"feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": False}
    index["_diffusers_version"] = version("diffusers")
    for name, (library, make) in parts_of(family).items():
        classes = []

        def write(path: Path, make=make, classes=classes) -> None:
            part = make()
            part.save_pretrained(path)
            classes.append(type(part).__name__)
            (path / ".class").write_text(classes[0])

        once(folder / name, write)
        index[name] = [library, (folder / name / ".class").read_text()]
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def make_tokenizer():
    """CLIP's own, from the vocabulary that open_clip carries."""
    import open_clip
    from transformers import CLIPTokenizer

    original = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in original.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=list(original.bpe_ranks), model_max_length=77)


if __name__ == "__main__":
    raise SystemExit(main())
