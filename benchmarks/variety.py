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
How much variety a gain in reward costs without any training: the best of k images of the base model.

    PYTHONPATH=. python benchmarks/variety.py --output-dir runs/variety --json variety.json

The base model of the tiny recipes draws `--images` images of every prompt of an evaluation. For each k they are split at random
into sets of k, the best image of each set by the sum of the standardised training rewards is taken, and pairs of such
choices for the same prompt are compared: what they gain over all images, and how much they differ, by the same distances
as in the evaluation. The same for images of which the inspector says that they show no defect, and that they show
all that was asked for as well. Selection changes no image, so a trained model's variety can be held against it. It is no bound: an
expanded prompt may cost less. Killed, it goes on where it was.

And whether a trained model is less varied than the images that it learned from:

    PYTHONPATH=. python benchmarks/variety.py --run runs/tiny_full --num-prompts 200 --output-dir runs/variety_run

For the prompts of the kept groups, the images that the filter kept are compared with two images each of the base model, of
the base model with an expanded prompt, and of the trained model.
"""

import argparse
import io
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from datasets import load_from_disk
from measuring import heading, machine
from PIL import Image

from craft_trl.candidates.pool import CandidatePool
from craft_trl.evaluation.config import EvaluationConfig
from craft_trl.evaluation.diversity import diversity, pixel_distance
from craft_trl.evaluation.evaluate import Evaluation
from craft_trl.rewards import parse_rewards


TINY = Path(__file__).parents[1] / "recipes" / "tiny"
REWARDS = [f"{name}={TINY}/rewards/{folder}" for name, folder in (("hpsv2", "hps"), ("pickscore", "pick"), ("aesthetic", "aesthetic"))]  # fmt: skip
JUDGES = [f"imagereward={TINY}/evaluators/imagereward"]
JUDGES += [f"{name}={TINY}/inspector.py:{name}" for name in ("alignment", "all_atoms", "quality", "defects")]
SPLITS = 50  # random splits into sets that are averaged


def evaluation_of(args: argparse.Namespace, models: list[str], prompts: Path, **settings) -> Evaluation:
    """As the recipes evaluate, on other noise."""
    config = EvaluationConfig(
        models=models,
        prompts=str(prompts),
        num_prompts=args.num_prompts,
        scheduler="DPMSolverMultistepScheduler",
        num_inference_steps=10,
        guidance_scale=args.guidance_scale,
        height=64,
        width=64,
        seed=6_000_000_000,  # not the images of the evaluation
        num_bootstrap=1,
        output_dir=str(args.output_dir),
        **settings,
    )
    return Evaluation(config)


def images_and_scores(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Scores by judge of shape `(P, S)`, unit features `(P, S, D)` and pixels from 0 to 1 `(P, S, H * W * 3)`."""
    judges = {"rewards": REWARDS, "held_out_rewards": JUDGES, "num_images_per_prompt": args.images}
    evaluation = evaluation_of(args, [f"base={TINY}/pipeline"], args.prompts, **judges)
    _, scores = evaluation.run("cpu")
    arm = evaluation.arms()[0]
    pool = CandidatePool(arm.folder, list(evaluation.specs))
    embedder = parse_rewards(REWARDS[:1])[0].load("cpu")
    features, pixels = [], []
    for start in range(0, len(arm.keys), 64):
        images = [Image.open(io.BytesIO(png)).convert("RGB") for png in pool.images(arm.keys[start : start + 64])]
        features.append(embedder.image_features(images).numpy())
        pixels.append(np.stack([np.asarray(image, dtype=np.float32).ravel() / 255 for image in images]))
    by_prompt = (len(evaluation.prompts), args.images, -1)
    return scores["base"], np.concatenate(features).reshape(by_prompt), np.concatenate(pixels).reshape(by_prompt)


def best_of(k: int, scores: dict[str, np.ndarray], features: np.ndarray, pixels: np.ndarray) -> dict[str, float]:
    """Gain by judge, and distance of two choices, when the best of `k` images by the training rewards is kept."""
    total = sum(
        (scores[name] - scores[name].mean()) / scores[name].std() for name in ("hpsv2", "pickscore", "aesthetic")
    )
    prompts, images = total.shape
    rows, generator, found = np.arange(prompts), np.random.default_rng(0), []
    for _ in range(SPLITS):
        order = generator.permuted(np.tile(np.arange(images), (prompts, 1)), axis=1)
        sets = [order[:, :k], order[:, k : 2 * k]]
        first, second = (part[rows, total[rows[:, None], part].argmax(1)] for part in sets)
        gains = {
            name: (values[rows, first] + values[rows, second]).mean() / 2 - values.mean()
            for name, values in scores.items()
            if not name.startswith("diversity")
        }
        found.append(gains | distances(features, pixels, rows, first, second))
    return {name: float(np.mean([figures[name] for figures in found])) for name in found[0]}


def only(
    kept: np.ndarray, scores: dict[str, np.ndarray], features: np.ndarray, pixels: np.ndarray
) -> dict[str, float]:
    """The same for images where `kept` of shape `(P, S)` holds, and for all images of the prompts that have two of them."""
    groups = [np.flatnonzero(row) for row in kept]
    rows = [i for i, group in enumerate(groups) if len(group) > 1]
    figures = {}
    for what, choose in (("", lambda i: groups[i]), ("all_", lambda i: np.arange(kept.shape[1]))):
        pairs = [np.array([(i, a, b) for a in choose(i) for b in choose(i) if a < b]) for i in rows]
        per_prompt = [distances(features, pixels, *p.T) for p in pairs]
        figures |= {what + name: float(np.mean([d[name] for d in per_prompt])) for name in per_prompt[0]}
    gain = [scores["hpsv2"][i, groups[i]].mean() - scores["hpsv2"][i].mean() for i in rows]
    return {"prompts": len(rows), "share": float(kept.mean()), "hpsv2": float(np.mean(gain)), **figures}


def distances(
    features: np.ndarray, pixels: np.ndarray, rows: np.ndarray, a: np.ndarray, b: np.ndarray
) -> dict[str, float]:
    cosines = (features[rows, a] * features[rows, b]).sum(-1)
    rms = np.sqrt(np.square(pixels[rows, a] - pixels[rows, b]).mean(-1))
    return {"diversity_hpsv2": float(np.mean(1 - cosines)), "diversity_pixels": float(rms.mean())}


def against_its_data(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Mean tiny-hps and distances of what was kept in a run, and of its models, on the prompts of two or more kept images."""
    kept = defaultdict(list)
    for row in load_from_disk(args.run / "dataset")["train"]:
        kept[row["prompt"]].append(row)
    kept = {prompt: rows for prompt, rows in kept.items() if len(rows) > 1}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    prompts = args.output_dir / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in kept))
    models = [f"base={TINY}/pipeline", f"trained={args.run}/model"]
    template = ["{prompt}, high quality, sharp"]
    evaluation = evaluation_of(args, models, prompts, rewards=REWARDS[:1], templates=template, num_images_per_prompt=2)
    _, scores = evaluation.run("cpu")
    figures = {name: {metric: float(values.mean()) for metric, values in by.items()} for name, by in scores.items()}
    return figures | {"kept images": of_kept([kept[prompt] for prompt in evaluation.prompts])}


def of_kept(groups: list[list[dict]]) -> dict[str, float]:
    """The same figures of images in groups of any size, a mean over groups; a row has `image` and `hpsv2`."""
    embedder = parse_rewards(REWARDS[:1])[0].load("cpu")
    found = defaultdict(list)
    for group in groups:
        images = [row["image"].convert("RGB") for row in group]
        found["hpsv2"].append(np.mean([row["hpsv2"] for row in group]))
        found["diversity_hpsv2"].append(diversity(embedder.image_features(images).numpy()[None]).item())
        found["diversity_pixels"].append(pixel_distance(images))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, help="folder of a finished run: hold its model against what it learned from"
    )
    parser.add_argument("--prompts", type=Path, help="default: the test prompts of the tiny recipes")
    parser.add_argument("--num-prompts", type=int, help="default: all")
    parser.add_argument("--images", type=int, help="of each prompt; default 8")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="default 2, as in the recipes")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the images and scores")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    if args.run:
        if args.prompts or args.images is not None:
            parser.error("--run has prompts and images of its own: remove --prompts and --images")
        missing = [folder for folder in ("dataset", "model") if not (args.run / folder).is_dir()]
        if missing:
            parser.error(f"--run {args.run} has no folder {missing[0]}: a run has one when `craft run` has ended")
        result = {"machine": machine("cpu", ("torch", "diffusers", "transformers")), "figures": against_its_data(args)}
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n{heading(result['machine'])}\n{'':<16}{'tiny-hps x 100':>14}{'features':>10}{'pixels':>8}")
        for name, row in result["figures"].items():
            print(
                f"{name:<16}{100 * row['hpsv2']:>14.2f}{row['diversity_hpsv2']:>10.3f}{row['diversity_pixels']:>8.3f}"
            )
        return
    args.prompts = args.prompts or TINY / "prompts" / "tiny-hpd-test.jsonl"
    args.images = 8 if args.images is None else args.images
    if args.images < 2:
        parser.error(f"--images must be at least 2, got {args.images}")
    scores, features, pixels = images_and_scores(args)
    sound = scores["defects"] == 0
    result = {
        "machine": machine("cpu", ("torch", "diffusers", "transformers")),
        "prompts": len(features),
        "images_per_prompt": args.images,
        "guidance_scale": args.guidance_scale,
        "best_of": {k: best_of(k, scores, features, pixels) for k in range(1, args.images // 2 + 1)},
        "without_defect": only(sound, scores, features, pixels),
        "without_defect_and_as_asked": only(sound & (scores["all_atoms"] == 1), scores, features, pixels),
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"\n{heading(result['machine'])}\n{len(features)} prompts x {args.images} images, guidance {args.guidance_scale}"
    )
    print(
        f"{'':<16}{'tiny-hps x 100':>14}{'imagereward':>13}{'alignment':>11}{'defects':>9}{'features':>10}{'pixels':>8}"
    )
    for k, row in result["best_of"].items():
        print(
            f"{'any image' if k == 1 else f'best of {k}':<16}{100 * row['hpsv2']:>+14.2f}{row['imagereward']:>+13.3f}"
            f"{row['alignment']:>+11.3f}{row['defects']:>+9.3f}{row['diversity_hpsv2']:>10.3f}{row['diversity_pixels']:>8.3f}"
        )
    for name in ("without_defect", "without_defect_and_as_asked"):
        row = result[name]
        print(
            f"{name.replace('_', ' ')} ({row['share']:.0%} of the images; {row['prompts']} prompts have two): tiny-hps "
            f"x 100 {100 * row['hpsv2']:+.2f}, features {row['all_diversity_hpsv2']:.3f} -> {row['diversity_hpsv2']:.3f}, pixels "
            f"{row['all_diversity_pixels']:.3f} -> {row['diversity_pixels']:.3f}"
        )


if __name__ == "__main__":
    main()
