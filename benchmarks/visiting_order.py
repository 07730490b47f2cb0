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
What it would save to draw all originals first and then to go on with the groups whose originals scored worst.

    PYTHONPATH=. python benchmarks/visiting_order.py
    PYTHONPATH=. python benchmarks/visiting_order.py --run runs/tiny

A group passes if every variant beats its original, so an unlucky original helps, and its score is known first. But a prompt
that the model is bad at has a low score as well, and there the variants' are as low: the score tells of luck only as far as
scores vary within a prompt. The first command simulates that share as a parameter: groups of an original and variants,
Gaussian rewards correlated by 0.4, the part of a prompt and the part of an image alike, through the library's own filter. The
second estimates the share from the pool of a run, and replays both orders on it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from craft_trl.candidates.groups import load_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.candidates.rejection import passes
from craft_trl.crf import composite_reward_filter
from craft_trl.planning.odds import CORRELATION
from craft_trl.stages import read_record


MEASURED = (0.30, 0.29, 0.71), (0.14, 0.12, 0.33)  # of recipes/tiny, and of tiny_flow with group_seeds: same


def simulate(
    within: Sequence[float], shift: float, groups: int, variants: int, rewards: int, rng: np.random.Generator
) -> dict:
    """
    A pool in which scores have variance 1, of which `within` is of an image and the rest of its prompt.

    Args:
        within (`Sequence[float]`):
            Share of the variance within a prompt, of each reward or of all.
        shift (`float`):
            How much better a variant is on average, in standard deviations within a prompt.
        groups, variants, rewards (`int`):
            How many.
        rng (`np.random.Generator`):
            Chance.
    """

    def draw(*shape: int) -> np.ndarray:
        common = rng.standard_normal((*shape, 1))
        return np.sqrt(CORRELATION) * common + np.sqrt(1 - CORRELATION) * rng.standard_normal((*shape, rewards))

    prompts, images = draw(groups, 1), draw(groups, 1 + variants)
    images[:, 1:] += shift
    within = np.array(within)
    values = np.sqrt(1 - within) * prompts + np.sqrt(within) * images
    scores = {str(i): values[:, :, i] for i in range(rewards)}
    wins = composite_reward_filter(scores, filter_level="image")[:, 1:]
    return {
        "original": values[:, 0],
        # The first variant is always drawn, another one as long as all so far have passed.
        "variants": 1 + np.logical_and.accumulate(wins, axis=1)[:, :-1].sum(axis=1),
        "kept": composite_reward_filter(scores).any(axis=1),
        "prompt": prompts.mean(axis=(1, 2)),
    }


def order(original: np.ndarray) -> np.ndarray:
    """
    Groups by the sum of their original's z-scores, the smallest first. By the largest of them, which is the hardest to beat,
    1.80 becomes 1.83 where prompts do not differ, and 1.35 becomes 1.29 at the shares of the tiny SDXL.
    """
    return np.argsort(((original - original.mean(axis=0)) / original.std(axis=0)).sum(axis=1), kind="stable")


def compare(pool: dict) -> dict:
    """
    Images in the order of the list, where a group is one visit, and with the originals first.

    Returns:
        `dict`: images for all groups; for 90 % of those that are kept, in both orders; and for one that is kept where there
        are prompts without end, so that the best share of them can be visited.
    """
    visits = order(pool["original"])
    groups, kept = len(visits), pool["kept"].sum()
    in_order = np.cumsum(1 + pool["variants"])
    sorted_first = groups + np.cumsum(pool["variants"][visits])
    found, found_sorted = np.cumsum(pool["kept"]), np.cumsum(pool["kept"][visits])
    most = int(np.ceil(0.9 * kept))
    enough = slice(np.searchsorted(found_sorted, max(10, kept // 10)), None)  # not the luck of the first few
    price = sorted_first[enough] / found_sorted[enough]
    best = enough.start + int(price.argmin())
    listed = in_order[-1] / kept
    result = {
        "kept": int(kept),
        "images": int(in_order[-1]),
        "images_for_90": int(in_order[np.searchsorted(found, most)]),
        "images_for_90_sorted": int(sorted_first[np.searchsorted(found_sorted, most)]),
        "images_a_group": float(listed),
        "images_a_group_sorted": float(price.min()),
        "gain": float(listed / price.min()),
        "visited": (best + 1) / groups,
    }
    if "prompt" in pool:
        visited = visits[: best + 1]
        result["prompts"] = float(pool["prompt"][visited][pool["kept"][visited]].mean() / pool["prompt"].std())
    return result


def table(args: argparse.Namespace) -> list[dict]:
    """A line for every share and shift, the means over the repeats."""
    rows = []
    for shift in args.shifts:
        for within in args.within:
            rng = np.random.default_rng(args.seed)
            repeats = [
                compare(simulate(within, shift, args.groups, args.variants, args.rewards, rng))
                for _ in range(args.repeats)
            ]
            rows.append({"shift": shift, "within": ", ".join(f"{share:g}" for share in within)})
            rows[-1] |= {name: float(np.mean([repeat[name] for repeat in repeats])) for name in repeats[0]}
    return rows


def estimate(run: Path, seed: int, repeats: int = 1000) -> dict:
    """
    The share of the variance within prompts, by reward, and both orders on a run's own pool.

    The share is `1 - cov(original, first variant) / var(original)`: what of an original's score its variants do not have in
    common with it. Both are drawn in every group, so that early rejection chooses nothing here.
    """
    groups = load_groups(run / "prompts" / "groups.jsonl")
    pool = CandidatePool(run / "pool", list(read_record(run / "pool")["settings"]["rewards"]), verify=False)
    groups = [group for group in groups if all(key in pool for key in group.keys[:2])]
    pairs = np.array([[pool.quality(key) for key in group.keys[:2]] for group in groups], dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(groups), size=(repeats, len(groups)))
    shares = {}
    for i, name in enumerate(pool.rewards):
        low, high = np.quantile([share(pairs[rows, :, i]) for rows in drawn], [0.025, 0.975])
        shares[name] = [share(pairs[:, :, i]), float(low), float(high)]
    replayed = {
        "original": pairs[:, 0],
        "variants": np.array([sum(key in pool for key in group.keys) - 1 for group in groups]),
        "kept": np.array([passes(pool, group, pool.rewards) for group in groups]),
    }
    return {"groups": len(groups), "within": shares, **compare(replayed)}


def share(pairs: np.ndarray) -> float:
    """`1 - cov(original, variant) / var(original)` of pairs of shape `(G, 2)`."""
    covariance = np.cov(pairs.T)
    return float(1 - covariance[0, 1] / covariance[0, 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="Folder of a run whose pool is finished, to estimate the share from.")
    parser.add_argument(
        "--within",
        type=lambda text: tuple(map(float, text.split(","))),
        nargs="+",
        default=[(1.0,), (0.75,), (0.5,), (0.25,), (0.1,), *MEASURED],
        help="Shares within a prompt; 0.3,0.3,0.7 are those of three rewards.",
    )
    parser.add_argument("--shifts", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--variants", type=int, default=8)
    parser.add_argument("--rewards", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="File to write the results to.")
    args = parser.parse_args()
    if args.run is not None:
        result = estimate(args.run, args.seed)
        print(json.dumps(result, indent=1))
    else:
        result = table(args)
        print("| variants better by | share within prompts | kept | images for 90 % of them | originals first | gain with prompts without end | of them visited | their mean score |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|")
        for row in result:
            print(
                f"| {row['shift']:g} | {row['within']} | {row['kept']:.0f} | {row['images_for_90']:,.0f} | "
                f"{row['images_for_90_sorted']:,.0f} | {row['gain']:.2f} x | {row['visited']:.0%} | {row['prompts']:+.2f} |"
            )
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
