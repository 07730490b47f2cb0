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
Speed of making candidates, beside a loop over diffusers' pipeline; and how much early rejection saves.

    PYTHONPATH=. python benchmarks/generate.py --minutes 5 --json generate.json

SDXL's architecture with random weights, so nothing is downloaded: at full size on a GPU, at a reduced one on a CPU
(`--size` says otherwise). Rewards are injected: drawn from a normal distribution in which the rewards of an image
correlate by 0.4 and nothing else does, so that the filter has the yields of exchangeable images.

Three parts. Counts need no network: the loop of `craft generate` on thousands of groups, images asked of the denoiser
against brute force, and whether the kept set is the same. Rates: the cases take turns in one process until the time is up,
so that whatever else the machine does hits them alike; the table shows medians. End to end: `generate_candidates` with
scoring, PNG and parquet against the time of its denoiser and VAE calls alone.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from architectures import ARCHITECTURES
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from measuring import ceiling, heading, machine, save, take_turns, timed
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from craft_trl.candidates.config import SamplingConfig
from craft_trl.candidates.drawing import generate_candidates
from craft_trl.candidates.generation import ImageGenerator
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.crf import composite_reward_filter


PACKAGES = ("torch", "diffusers", "transformers", "pyarrow", "pillow")
REWARDS = ["hpsv2", "pickscore", "aesthetic"]
CORRELATION = 0.4
# Widths of UNet, VAE and text encoders, head dimension 64; depths are the real ones at full size only.
SIZES = {
    "full": {
        "unet": {}, "vae": (128, 256, 512, 512),
        "text": ((768, 3072, 12, 12, "quick_gelu"), (1280, 5120, 32, 20, "gelu")), "pixels": 1024,
    },
    "small": {
        "unet": {
            "block_out_channels": (32, 64, 128), "transformer_layers_per_block": (1, 1, 2), "layers_per_block": 1,
            "norm_num_groups": 8, "attention_head_dim": (1, 1, 2), "cross_attention_dim": 192, "sample_size": 16,
            "projection_class_embeddings_input_dim": 6 * 256 + 128,
        },
        "vae": (16, 32, 32, 32), "text": ((64, 128, 2, 1, "quick_gelu"), (128, 256, 2, 2, "gelu")), "pixels": 128,
    },
}  # fmt: skip


def make_pipeline(size: dict, device: str, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """SDXL with random weights; its tokenizer is the tiny recipe's, at SDXL's length."""
    torch.manual_seed(0)
    first, second = size["text"]
    tokenizer = CLIPTokenizer.from_pretrained(Path(__file__).parents[1] / "recipes/tiny/pipeline/tokenizer")
    tokenizer.model_max_length = 77

    def text(width: int, intermediate: int, layers: int, heads: int, act: str) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=49408, hidden_size=width, intermediate_size=intermediate, num_hidden_layers=layers,
            num_attention_heads=heads, hidden_act=act, projection_dim=width, bos_token_id=1022, eos_token_id=1023,
        )  # fmt: skip

    with torch.device(device):
        unet = UNet2DConditionModel.from_config(ARCHITECTURES["sdxl"]["config"] | size["unet"]).to(dtype)
        vae = AutoencoderKL(
            block_out_channels=size["vae"], down_block_types=["DownEncoderBlock2D"] * 4, latent_channels=4,
            up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2, norm_num_groups=min(32, size["vae"][0]),
            sample_size=size["pixels"], scaling_factor=0.13025,
        ).to(dtype)  # fmt: skip
        encoders = CLIPTextModel(text(*first)).to(dtype), CLIPTextModelWithProjection(text(*second)).to(dtype)
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    pipeline = StableDiffusionXLPipeline(
        vae=vae, text_encoder=encoders[0].eval(), text_encoder_2=encoders[1].eval(), tokenizer=tokenizer,
        tokenizer_2=tokenizer, unet=unet.eval(), scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def injected(number: int, variants: int, seed: int) -> np.ndarray:
    """Scores of shape `(number, 1 + variants, 3)`, float32."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal((number, 1 + variants, 1))
    own = generator.standard_normal((number, 1 + variants, len(REWARDS)))
    return (CORRELATION**0.5 * common + (1 - CORRELATION) ** 0.5 * own).astype(np.float32)


class Candidates:
    """Groups, a generator that counts, and rewards that look up what was injected for an image."""

    def __init__(self, number: int, variants: int, generate, batch_size: int, seed: int = 0):
        prompts = [f"prompt {i}" for i in range(number)]
        texts = [[f"{prompt}, variant {j}" for j in range(1, variants + 1)] for prompt in prompts]
        self.groups = make_groups(prompts, texts, seed=seed)
        self.scores = injected(number, variants, seed)
        self.place = {key[1]: (i, j) for i, group in enumerate(self.groups) for j, key in enumerate(group.keys)}
        self.generate, self.batch_size, self.batches = generate, batch_size, 0
        self.rewards = {name: self._reward(r) for r, name in enumerate(REWARDS)}

    def _reward(self, r: int):
        return lambda images, prompts: np.array([self.scores[(*image.info["place"], r)] for image in images])

    def __call__(self, prompts, seeds):
        self.batches += 1
        images = self.generate(prompts, seeds)
        for image, prompt in zip(images, prompts, strict=True):
            image.info["place"] = self.place[prompt]
        return images

    def run(self, folder: Path) -> CandidatePool:
        pool = CandidatePool(folder, REWARDS)
        generate_candidates(
            pool, self.groups, self, self.rewards, self.batch_size, REWARDS, draw_ahead=True, show_progress=False
        )
        return pool

    def share(self) -> float:
        """Images that went through the denoiser, copies included, against those of brute force."""
        return self.batches * self.batch_size / self.scores[..., 0].size

    def kept(self, pool: CandidatePool) -> tuple[int, bool]:
        """Groups that pass, and whether they are those of brute force."""
        scores, generated = pool.matrices(self.groups)
        early = composite_reward_filter(scores, generated=generated)
        every = composite_reward_filter({name: self.scores[..., r] for r, name in enumerate(REWARDS)})
        return int(early.any(1).sum()), bool((early == every).all())


def count(groups: int, batch_size: int) -> dict:
    """The loop of `craft generate` with images of one pixel."""
    results = {}
    for variants in (8, 4):
        candidates = Candidates(groups, variants, lambda p, s: [Image.new("L", (1, 1)) for _ in p], batch_size)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            pool = candidates.run(Path(folder))
            seconds = time.perf_counter() - start
        kept, exact = candidates.kept(pool)
        results[f"n={variants}"] = {
            "groups": groups,
            "share_of_brute_force": candidates.share(),
            "images_per_group": len(pool) / groups,
            "kept_groups": kept,
            "kept_set_equals_brute_force": exact,
            "milliseconds_of_the_loop_per_image": 1000 * seconds / len(pool),
        }
    return results


def teraflop_per_image(pipeline: StableDiffusionXLPipeline, steps: int) -> dict:
    """Of one image with guidance, counted on the real modules with one image."""
    side = pipeline.unet.config.sample_size
    counts = {}
    for name, run in networks(pipeline, 1, side).items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        counts[name] = counter.get_total_flops() / 1e12
    return {"denoiser": counts["denoiser"] * steps, "vae": counts["vae"]}


def networks(pipeline: StableDiffusionXLPipeline, batch_size: int, side: int) -> dict:
    """One call of the denoiser for a batch with guidance, and the decoding of one image."""
    unet, vae = pipeline.unet, pipeline.vae
    kwargs = {"device": unet.device, "dtype": unet.dtype}
    rows = 2 * batch_size
    latents = torch.randn(rows, 4, side, side, **kwargs)
    text = torch.randn(rows, 77, unet.config.cross_attention_dim, **kwargs)
    pooled = torch.randn(rows, pipeline.text_encoder_2.config.projection_dim, **kwargs)
    conditioning = {"text_embeds": pooled, "time_ids": torch.ones(rows, 6, **kwargs)}
    return {
        "denoiser": lambda: unet(latents, 500, encoder_hidden_states=text, added_cond_kwargs=conditioning),
        "vae": lambda: vae.decode(latents[:1].to(vae.dtype)),
    }


@torch.no_grad()
def measure(size: dict, args, device: str, dtype: torch.dtype) -> dict:
    pipeline = make_pipeline(size, device, dtype)
    steps, batch = args.steps, args.batch_size
    common = {"num_inference_steps": steps, "guidance_scale": 5.0, "height": size["pixels"], "width": size["pixels"]}
    config = SamplingConfig(**common, batch_size=batch, dtype=str(dtype).removeprefix("torch."))
    prompts = [f"a picture of thing number {i}" for i in range(batch)]
    loop_pipeline = make_pipeline(size, device, torch.float16 if device != "cpu" else dtype)
    generators = {"ImageGenerator": ImageGenerator(pipeline, config, device=device)}
    calls = {}  # of the denoiser for an image, where they are others
    if args.fewer_steps:
        name = f"ImageGenerator, {args.fewer_steps} steps"
        fewer = replace(config, num_inference_steps=args.fewer_steps)
        generators[name], calls[name] = ImageGenerator(pipeline, fewer, device=device), args.fewer_steps
    if args.compiled:
        compiled = replace(config, torch_compile=True)
        generators["ImageGenerator, torch_compile"] = ImageGenerator(
            make_pipeline(size, device, dtype), compiled, device=device
        )
    if device != "cpu":
        variants = {
            "channels_last": lambda p: p.unet.to(memory_format=torch.channels_last),
            "fused QKV": lambda p: p.fuse_qkv_projections(),
            "diffusers' repeated blocks compiled": lambda p: p.unet.compile_repeated_blocks(fullgraph=True),
            "denoiser compiled": lambda p: p.unet.compile(),
            "denoiser and VAE compiled, channels_last": lambda p: (
                p.unet.to(memory_format=torch.channels_last).compile(), p.vae.decoder.compile()
            ),
        }  # fmt: skip
        for name in variants if args.variants else ():
            changed = make_pipeline(size, device, dtype)
            variants[name](changed)
            generators[name] = ImageGenerator(changed, config, device=device)
    seed = iter(range(10**9))

    def loop() -> int:
        for prompt in prompts[:2]:
            loop_pipeline(prompt, generator=torch.Generator().manual_seed(next(seed)), **common)
        return 2

    def ours(generator: ImageGenerator):
        def run() -> int:
            generator([f"{prompt} {next(seed)}" for prompt in prompts], range(batch))
            return batch

        return run

    alone = networks(pipeline, batch, size["pixels"] // 8)

    def networks_alone() -> int:
        for _ in range(steps):
            alone["denoiser"]()
        for _ in range(batch):
            alone["vae"]()
        return batch

    cases = {"diffusers, one prompt at a time": loop, "denoiser and VAE alone": networks_alone}
    cases |= {name: ours(generator) for name, generator in generators.items()}
    turns = take_turns(cases, device, time.monotonic() + args.minutes * 60 * 0.6)
    rounds, rates = min(map(len, turns.values())), {name: statistics.median(values) for name, values in turns.items()}

    # Prompts whose candidates take about a third of the time.
    per_image = 1 / rates["ImageGenerator"]
    groups = int(max(2 * batch, args.minutes * 60 * 0.3 / per_image / 2.5))
    candidates = Candidates(groups, 8, generators["ImageGenerator"], batch)
    with tempfile.TemporaryDirectory() as folder:
        seconds = timed(lambda: candidates.run(Path(folder)), device)
        pool = CandidatePool(Path(folder), REWARDS)
        _, exact = candidates.kept(pool)
    drawn = candidates.batches * batch
    teraflop = teraflop_per_image(pipeline, steps)
    work = {name: teraflop_per_image(pipeline, number) for name, number in calls.items()}
    tops = ceiling(device, dtype)
    image = generators["ImageGenerator"](prompts[:1], [7])[0]
    options = {"generator": torch.Generator().manual_seed(7), **common}
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(pipeline(prompts[0], **options).images[0])).max()
    return {
        "rounds": rounds,
        "images_per_second": rates,
        "teraflop_per_image": teraflop,
        "ceiling_tflops": tops,
        "share_of_ceiling": {
            name: rate * sum(work.get(name, teraflop).values()) / tops for name, rate in rates.items()
        },
        "times_diffusers": {name: rate / rates["diffusers, one prompt at a time"] for name, rate in rates.items()},
        "end_to_end": {
            "groups": groups,
            "images": drawn,
            "seconds": seconds,
            "images_per_second": drawn / seconds,
            "share_of_ceiling": drawn / seconds * sum(teraflop.values()) / tops,
            "overhead_over_denoiser_and_vae": seconds * rates["denoiser and VAE alone"] / drawn - 1,
            "share_of_brute_force": candidates.share(),
            "kept_set_equals_brute_force": exact,
        },
        "largest_difference_from_diffusers_of_255": int(difference),
        "peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
    }


def report(result: dict) -> None:
    about = result["machine"]
    print(f"\n{heading(about)}")
    for name, row in result["counts"].items():
        print(
            f"{name}: {row['share_of_brute_force']:.3f} of the denoiser's work by brute force "
            f"({row['images_per_group']:.2f} images for each of {row['groups']} groups, {row['kept_groups']} kept), kept "
            f"set {'the same' if row['kept_set_equals_brute_force'] else 'ANOTHER ONE'}, "
            f"{row['milliseconds_of_the_loop_per_image']:.2f} ms of the loop an image"
        )
    if "rates" not in result:
        return
    rates = result["rates"]
    print(f"\n{'images per second':<44}{'median':>10}{'of ceiling':>12}{'times diffusers':>17}")
    for name, rate in rates["images_per_second"].items():
        print(
            f"{name:<44}{rate:>10.3f}{rates['share_of_ceiling'][name]:>12.1%}{rates['times_diffusers'][name]:>17.2f}"
        )
    end = rates["end_to_end"]
    print(
        f"\nend to end, n=8: {end['images_per_second']:.3f} images a second, {end['share_of_ceiling']:.1%} of "
        f"{rates['ceiling_tflops']:.3g} TFLOP/s, {end['overhead_over_denoiser_and_vae']:+.1%} over denoiser and VAE, "
        f"{end['share_of_brute_force']:.3f} of brute force, kept set the same: {end['kept_set_equals_brute_force']}"
    )
    print(f"largest difference from diffusers' own image: {rates['largest_difference_from_diffusers_of_255']} of 255")


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure what the arguments say, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="time for the rates and the run end to end")
    parser.add_argument("--size", choices=SIZES, help="defaults to full on a GPU, small on a CPU")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--groups", type=int, default=2000, help="groups of the counts")
    parser.add_argument("--counts_only", action="store_true", help="leave out all that needs the networks")
    parser.add_argument("--variants", action="store_true", help="on a GPU, measure layouts and compilation too")
    parser.add_argument("--fewer_steps", type=int, help="add a case: ours with so many steps")
    parser.add_argument("--compiled", action="store_true", help="add a case: ours with torch_compile")
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = args.size or ("full" if device == "cuda" else "small")
    result = {"machine": machine(device, PACKAGES), "size": size, "steps": args.steps, "batch_size": args.batch_size}
    result["counts"] = count(args.groups, args.batch_size)
    if not args.counts_only:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        result["rates"] = measure(SIZES[size], args, device, dtype)
    report(result)
    result["finished"] = True
    save(result, args.json)
    return result


if __name__ == "__main__":
    main()
