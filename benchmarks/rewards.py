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
Speed, memory and precision of the three rewards that CRAFT filters with, beside the `hpsv2` package.

    PYTHONPATH=. python benchmarks/rewards.py --minutes 3 --json rewards.json

Random weights, so nothing is downloaded: at full size on a GPU, at a reduced one on a CPU (`--size` says otherwise).
Images are decoded pictures of 1024 px, eight to a prompt; prompts are encoded anew in every round. All cases take turns
in one process until the time is up, so that whatever else the machine does hits them alike; the table shows medians.
`hpsv2.score` is the one of `pip install --no-deps hpsv2x==1.2.0 clint args`, given the same weights in the file that it
reads on each call; without the package its rows are empty.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from measuring import ceiling, heading, machine, save, take_turns
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from craft_trl.quiet import quiet_logs
from craft_trl.rewards import hpsv2 as our_hpsv2
from craft_trl.rewards import score, weights
from craft_trl.rewards.aesthetic import Aesthetic, LinearHead
from craft_trl.rewards.hpsv2 import HPSv2
from craft_trl.rewards.mps_network import CONFIG as CLIP_H
from craft_trl.rewards.pickscore import PickScore
from craft_trl.rewards.preprocessing import prepare


# At reduced size every tower has a quarter of the width and a quarter of the layers; tokens and pixels are the real ones. The tiny
# size is for trying the whole thing.
SIZES = {
    "full": {"text": (1024, 24, 16), "vision": (1280, 32, 16), "large": (1024, 24, 16), "dim": 1024},
    "small": {"text": (256, 6, 4), "vision": (320, 8, 4), "large": (256, 6, 4), "dim": 256},
    "tiny": {"text": (64, 2, 1), "vision": (80, 2, 1), "large": (64, 2, 1), "dim": 64},
}
IMAGES_PER_PROMPT = 8
PACKAGES = ("torch", "torchvision", "transformers", "open_clip_torch", "pillow")


def tower(width: int, layers: int, heads: int) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def write_weights(folder: Path, size: dict) -> dict[str, Path]:
    """Random weights of the three rewards as they are published, in float16."""
    torch.manual_seed(0)
    folders = {name: folder / name for name in ("hpsv2", "pickscore", "aesthetic")}
    for path in folders.values():
        path.mkdir()
    vision_width, vision_layers, vision_heads = size["vision"]
    text_width, text_layers, text_heads = size["text"]
    config = {
        "embed_dim": size["dim"],
        "vision_cfg": {"image_size": 224, "layers": vision_layers, "width": vision_width, "patch_size": 14},
        "text_cfg": {"width": text_width, "heads": text_heads, "layers": text_layers},
    }
    config["vision_cfg"]["head_width"] = vision_width // vision_heads
    (folder / "benchmark.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "benchmark.json")
    our_hpsv2.ARCHITECTURE = "benchmark"
    with quiet_logs():
        model = open_clip.create_model("benchmark", load_weights=False)
    checkpoint = {"state_dict": half(model.state_dict())}
    torch.save(checkpoint, folders["hpsv2"] / weights.HPSV2["v2.1"].files[0])
    del model, checkpoint
    clip = {
        "projection_dim": size["dim"],
        "text_config": CLIP_H["text_config"] | tower(*size["text"]) | {"projection_dim": size["dim"]},
        "vision_config": CLIP_H["vision_config"] | tower(*size["vision"]) | {"projection_dim": size["dim"]},
    }
    CLIPModel(CLIPConfig(**clip)).half().save_pretrained(folders["pickscore"])
    large = CLIPVisionConfig(**tower(*size["large"]), image_size=224, patch_size=14, projection_dim=768)
    CLIPVisionModelWithProjection(large).half().save_pretrained(folders["aesthetic"])
    save_file(LinearHead(768).state_dict(), folders["aesthetic"] / "aesthetic_head.safetensors")
    return folders


def half(state_dict: dict) -> dict:
    return {key: value.half() if value.is_floating_point() else value for key, value in state_dict.items()}


def load(folders: dict[str, Path], device: str, dtype: torch.dtype) -> dict:
    classes = {"hpsv2": HPSv2, "pickscore": PickScore, "aesthetic": Aesthetic}
    return {name: classes[name](str(folder), device=device, dtype=dtype) for name, folder in folders.items()}


def load_reference(folders: dict[str, Path], device: str):
    """`hpsv2.score(images, prompt)`, or `None` where the package is not installed."""
    try:
        warnings.simplefilter("ignore")
        import hpsv2.img_score as reference
        from hpsv2.src.open_clip import CLIP, image_transform
    except ImportError as error:
        print(f"hpsv2 is not measured: {error}")
        return None
    with open(folders["hpsv2"].parent / "benchmark.json") as stream:
        model = CLIP(**json.load(stream), output_dict=True).to(device)
    # What `initialize_model` would make, which would first download LAION's weights.
    reference.model_dict |= {"model": model, "preprocess_val": image_transform(224, False, resize_longest_max=True)}
    checkpoint = folders["hpsv2"] / weights.HPSV2["v2.1"].files[0]
    return lambda images, prompt: reference.score(images, prompt, cp=checkpoint, hps_version="v2.1")


def pictures(number: int, side: int) -> list[Image.Image]:
    """Noise at several scales."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(number):
        layers = [generator.integers(0, 256, (side // k, side // k, 3), dtype=np.uint8) for k in (4, 32, 128)]
        resized = [np.asarray(Image.fromarray(layer).resize((side, side))) for layer in layers]
        images.append(Image.fromarray(np.mean(resized, axis=0).astype(np.uint8)))
    return images


def flips(exact: dict[str, np.ndarray], rough: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference of scores, and how many "variant beats original" decisions it turns, in percent."""

    def beats(scores):
        groups = {name: values.reshape(-1, IMAGES_PER_PROMPT) for name, values in scores.items()}
        won = {name: group[:, 1:] > group[:, :1] for name, group in groups.items()}
        return won | {"all three": np.logical_and.reduce(list(won.values()))}

    turned = {name: 100 * float((won != beats(rough)[name]).mean()) for name, won in beats(exact).items()}
    difference = {name: float(np.abs(exact[name] - rough[name]).max()) for name in exact}
    spread = {name: float(np.std(exact[name])) for name in exact}
    return {"turned_percent": turned, "largest_difference": difference, "standard_deviation": spread}


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure what the arguments say, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="time budget of the measurement")
    parser.add_argument("--size", choices=SIZES, help="of the networks; full on a GPU, small on a CPU")
    parser.add_argument("--images", type=int, help="images in a round; 256 on a GPU, 16 on a CPU")
    parser.add_argument("--side", type=int, default=1024, help="pixels of a side of an image")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, number = (
        args.size or {"cuda": "full", "cpu": "small"}[device],
        args.images or {"cuda": 256, "cpu": 16}[device],
    )
    if number % IMAGES_PER_PROMPT:
        parser.error(f"--images must be a multiple of {IMAGES_PER_PROMPT}, got {number}")
    images = pictures(number, args.side)
    prompts = [f"a picture, number {i // IMAGES_PER_PROMPT}, of a fox" for i in range(number)]
    result = {
        "machine": machine(device, PACKAGES),
        "size": size,
        "images": number,
        "side": args.side,
        "minutes": args.minutes,
    }
    deadline = time.monotonic() + 60 * args.minutes
    with contextlib.ExitStack() as stack:
        folders = write_weights(Path(stack.enter_context(tempfile.TemporaryDirectory())), SIZES[size])
        exact = load(folders, device, torch.float32)
        rewards = {"float32": exact}
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        scores = score(exact, images, prompts)
        parameters = sum(p.numel() * p.element_size() for r in exact.values() for p in r.model.parameters())
        result["float32_gigabytes"] = {"weights": parameters / 1e9}
        if device == "cuda":
            result["float32_gigabytes"]["peak"] = torch.cuda.max_memory_allocated() / 1e9
        rewards["bfloat16"] = load(folders, device, torch.bfloat16)
        result["bfloat16_against_float32"] = flips(scores, score(rewards["bfloat16"], images, prompts))
        reference = load_reference(folders, device)
        if reference is not None:
            theirs = np.array(reference(images[:8], prompts[0]))
            result["hpsv2_differs_by"] = float(np.abs(theirs - scores["hpsv2"][:8]).max())
        result["gigaflop_per_image"] = {name: gigaflop(reward, images[0]) for name, reward in exact.items()}

        def ours(dtype, names):
            def run():
                chosen = {name: rewards[dtype][name] for name in names}
                for reward in chosen.values():
                    reward.prompts.clear()
                score(chosen, images, prompts)
                return number

            return run

        def preprocessing():
            for _ in prepare(images, list({reward.preprocess for reward in exact.values()}), 64):
                pass
            return number

        def network(dtype):
            kinds = {reward.preprocess for reward in exact.values()}
            ((_, ready),) = prepare(images[:64], list(kinds), 64)

            def run():
                for reward in rewards[dtype].values():
                    reward.score_pixels(ready[reward.preprocess], prompts[:64])
                return len(images[:64])

            return run

        cases = {"preprocessing of the three, no network": preprocessing}
        for dtype in rewards:
            cases |= {f"{name}, {dtype}": ours(dtype, [name]) for name in folders}
            cases[f"three together, {dtype}"] = ours(dtype, list(folders))
            cases[f"networks of the three alone, {dtype}"] = network(dtype)
        if reference is not None:
            few = images if device == "cuda" else images[:8]
            cases["hpsv2.score(list)"] = lambda: len(reference(few, prompts[0]))
            cases["hpsv2.score(one)"] = lambda: len(reference(images[0], prompts[0]))
        rates = take_turns(cases, device, deadline)
        result["rounds"] = min(map(len, rates.values()))
        result["images_per_second"] = {
            name: {"median": statistics.median(values), "best": max(values)} for name, values in rates.items()
        }
        result["ceiling_tflops"] = {name: ceiling(device, getattr(torch, name)) for name in ("float32", "bfloat16")}
    result["finished"] = True
    save(result, args.json)
    report(result)
    return result


def gigaflop(reward, image: Image.Image) -> float:
    """Of one image, its prompt already encoded."""
    pixels = reward.preprocess(image)[None]
    reward.score_pixels(pixels, ["a fox"])
    with FlopCounterMode(display=False) as counter:
        reward.score_pixels(pixels, ["a fox"])
    return counter.get_total_flops() / 1e9


def report(result: dict) -> None:
    print(f"\n{heading(result['machine'])}")
    print(f"{result['size']} size, {result['images']} images of {result['side']} px, {result['rounds']} rounds\n")
    rates = result["images_per_second"]
    peer = rates.get("hpsv2.score(list)", {}).get("median")
    print(f"{'images per second':<42}{'median':>10}{'best':>10}{'hpsv2.score(list)':>20}")
    for name, rate in rates.items():
        times = f"{rate['median'] / peer:.1f} x" if peer else ""
        print(f"{name:<42}{rate['median']:>10.2f}{rate['best']:>10.2f}{times:>20}")
    total = sum(result["gigaflop_per_image"].values())
    print(
        f"\n{total:.0f} GFLOP an image: " + ", ".join(f"{n} {g:.1f}" for n, g in result["gigaflop_per_image"].items())
    )
    for dtype, tflops in result["ceiling_tflops"].items():
        reached = total * rates[f"networks of the three alone, {dtype}"]["median"] / 1000
        print(f"{dtype}: the networks reach {reached:.3g} of {tflops:.3g} TFLOP/s that a matrix product has here")
    memory = ", ".join(f"{name} {gigabytes:.2f} GB" for name, gigabytes in result["float32_gigabytes"].items())
    print(f"float32 memory of the three: {memory}")
    if "hpsv2_differs_by" in result:
        print(f"largest difference from hpsv2.score on the same images: {result['hpsv2_differs_by']:.1e}")
    precision = result["bfloat16_against_float32"]
    print("bfloat16 against float32, random weights (scores that hardly differ between images turn most easily):")
    for name, turned in precision["turned_percent"].items():
        difference = precision["largest_difference"].get(name)  # none of the three together
        spread = precision["standard_deviation"].get(name)
        more = (
            ""
            if difference is None
            else f", scores differ by {difference:.2e} at most, their own spread is {spread:.2e}"
        )
        print(f"  {name:<10} {turned:5.1f} % of filter decisions turn{more}")


if __name__ == "__main__":
    main()
