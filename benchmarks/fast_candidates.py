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
What cheaper candidates cost: in agreement of the kept groups, and in what the trained model gains.

    PYTHONPATH=. python benchmarks/fast_candidates.py --settings full trailing14 --output-dir runs/fast --json fast_candidates.json
    PYTHONPATH=. python benchmarks/fast_candidates.py --recipe tiny_flow --output-dir runs/fast_flow

A tiny recipe's own stages, with another sampler of the candidates in each setting and nothing else: a pool and a dataset of each, a
training of each with each of `--seeds`, and one evaluation of all models by judges that took no part in the filter, on the prompts of
`tiny-parti`, which no setting of the recipes was chosen on. The evaluation draws all models alike, as the recipe says.

Calls of the denoiser are counted, for one image. Seconds are measured in turns within this process, as shares of the first setting's.
The agreement is the share of groups, or of images where the recipe filters images, that both keep among those that either keeps
(Jaccard), beside what two sets of these sizes have by chance. `--candidate-seeds` are samples of prompts and noise that the
candidates are drawn from: which groups a filter keeps is chance too.
A setting's effect is that of its models over the base model, the mean of all seeds; the difference of two settings has a 95 % interval
over prompts, samples of candidates and trainings. `--agreement` names settings of which only the agreement is looked at.

Killed, it goes on where it was, as `craft` does. No two processes run at the same time.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from datasets import load_from_disk
from measuring import heading, machine

from craft_trl import ImageGenerator, SamplingConfig
from craft_trl.bakeoff.comparison import two_way_bootstrap, two_way_p
from craft_trl.candidates.groups import load_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.evaluation.statistics import holm
from craft_trl.families.family import guided_steps


RECIPES = Path(__file__).parents[1] / "recipes"
SOLVER = "DPMSolverMultistepScheduler"
# By recipe. The first setting is what the others are held against.
SETTINGS = {
    "tiny": {
        "full": {"scheduler": "DDIMScheduler", "num_inference_steps": 50},  # as recipes/sdxl/candidates.yaml
        "fast": {"scheduler": SOLVER, "num_inference_steps": 20, "guidance_cutoff": 0.45},
        "solver20": {"scheduler": SOLVER, "num_inference_steps": 20},
        "solver15": {"scheduler": SOLVER, "num_inference_steps": 15},
        # as recipes/sdxl/candidates_fast.yaml
        "trailing14": {"scheduler": SOLVER, "num_inference_steps": 14, "timestep_spacing": "trailing"},
        "faster": {"scheduler": SOLVER, "num_inference_steps": 10, "timestep_spacing": "trailing"},
    },
    "tiny_flow": {
        "full": {"scheduler": "FlowMatchEulerDiscreteScheduler", "num_inference_steps": 40},  # as recipes/sd35_medium
        "solver14": {"scheduler": SOLVER, "num_inference_steps": 14},
        "faster": {"scheduler": SOLVER, "num_inference_steps": 10},  # as recipes/tiny_flow
    },
}
JUDGES = ["hpsv2", "pickscore", "aesthetic", "imagereward", "alignment", "quality", "defects"]
HELD_OUT, LOWER_IS_BETTER = JUDGES[3:], {"defects"}


@dataclass(frozen=True)
class Runs:
    """
    The runs of a recipe's settings.

    Args:
        recipe (`Path`):
            Folder of the recipes.
        folder (`Path`):
            Where pools, datasets and models go.
    """

    recipe: Path
    folder: Path

    def craft(self, command: str, recipe: str, **options: object) -> None:
        """Run a stage by a recipe of the folder."""
        argv = [sys.executable, "-m", "craft_trl.cli.main", command, "--config", str(self.recipe / recipe)]
        for name, value in options.items():
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        subprocess.run(argv, check=True)

    def settings(self, name: str) -> dict:
        """The sampler of a setting."""
        return SETTINGS[self.recipe.name][name]

    def calls(self, name: str) -> int:
        """Of the denoiser for one image: two in a step that is guided."""
        steps = self.settings(name)["num_inference_steps"]
        return steps + guided_steps(steps, self.settings(name).get("guidance_cutoff"))

    def make(self, name: str, sample: int, num_prompts: int) -> None:
        """The pool and the dataset of a setting."""
        options = {"num_prompts": num_prompts, "seed": sample, "output_dir": self.folder / place(name, sample)}
        options |= self.settings(name)
        for command in ("expand", "generate", "filter"):
            self.craft(command, "candidates.yaml", **options)

    def train(self, name: str, sample: int, seeds: list[int]) -> list[str]:
        """The models of a setting, as the evaluation names them."""
        here = self.folder / place(name, sample)
        for seed in seeds:
            options = {"dataset_name": here / "dataset", "output_dir": here / f"model-{seed}", "seed": seed}
            self.craft("train", "craft.yaml", **options, held_out_rewards="none", guard_rewards="none")
        return [f"{place(name, sample)}-{seed}={here}/model-{seed}" for seed in seeds]

    def kept_images(self, name: str, sample: int) -> set[tuple]:
        """What the filter of a setting kept: groups where it keeps whole ones, else images."""
        rows = load_from_disk(str(self.folder / place(name, sample) / "dataset"))["train"]
        columns = ("prompt",) if self.filters_groups else ("prompt", "expanded_prompt")
        return set(zip(*(rows[column] for column in columns), strict=True))

    @property
    def filters_groups(self) -> bool:
        return self.candidates.get("filter_level", "group") == "group"

    @property
    def candidates(self) -> dict:
        """The recipe of the candidates."""
        return yaml.safe_load((self.recipe / "candidates.yaml").read_text())

    def shares_of_time(self, names: list[str], rounds: int, size: int = 16) -> dict[str, float]:
        """CPU seconds of a batch of each setting as shares of the first one's, the medians of rounds in which all take turns."""
        common = {
            name: self.candidates[name]
            for name in ("guidance_scale", "height", "width", "max_sequence_length")
            if name in self.candidates
        }
        generators = {
            name: ImageGenerator(
                str(self.recipe / "pipeline"), SamplingConfig(**common, batch_size=size, **self.settings(name))
            )
            for name in names
        }
        spent: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds + 1):
            for name, generator in generators.items():
                start = time.process_time()
                generator(["a red heart and a blue ball"] * size, range(size))
                if number:  # the first encodes the prompt
                    spent[name].append(time.process_time() - start)
        return {name: float(np.median(values) / np.median(spent[names[0]])) for name, values in spent.items()}

    def agreement(self, name: str, reference: str, sample: int) -> dict:
        """Images of a setting's pool, and how what its filter kept agrees with another's of the same sample."""
        here = self.folder / place(name, sample)
        groups = load_groups(here / "prompts" / "groups.jsonl")
        could = len(groups) if self.filters_groups else sum(len(group.keys) - 1 for group in groups)
        mine, other = self.kept_images(name, sample), self.kept_images(reference, sample)
        common = len(mine) * len(other) / could
        images = len(CandidatePool(here / "pool", JUDGES[:3], verify=False))
        return {
            "calls": self.calls(name),
            "images": images,
            "evaluations": images * self.calls(name),
            "of": could,
            "kept": len(mine),
            "jaccard": len(mine & other) / len(mine | other),
            "by_chance": common / (len(mine) + len(other) - common),
        }


def place(name: str, sample: int) -> str:
    """Of a setting and a sample of candidates: a folder, and the beginning of its models' names."""
    return f"{name}-c{sample}"


def effects(folder: Path, names: list[str], samples: list[int], seeds: list[int]) -> list[dict]:
    """A row for each judge and setting: its models over the base model, and over the first setting's models."""
    table = pq.read_table(folder / "evaluation" / "scores.parquet").to_pylist()
    scores = {
        model: {
            judge: np.array([row[judge] for row in table if row["model"] == model], dtype=float) for judge in JUDGES
        }
        for model in dict.fromkeys(row["model"] for row in table)
    }
    replicates = [(sample, seed) for sample in samples for seed in seeds]

    def of(name: str, judge: str) -> np.ndarray:
        return np.stack([scores[f"{place(name, sample)}-{seed}"][judge] for sample, seed in replicates])  # (K, P)

    rows = []
    for name in names:
        for judge in JUDGES:
            base = scores["base"][judge]
            gains = of(name, judge) - base
            gain = two_way_bootstrap(gains)
            row = {"setting": name, "judge": judge, "base": float(base.mean()), "gain": gain["delta"]}
            row |= {"gain_low": gain["ci_low"], "gain_high": gain["ci_high"], "gains": gains.mean(axis=1).tolist()}
            if name != names[0]:
                difference = of(name, judge) - of(names[0], judge)
                other = two_way_bootstrap(difference)
                row |= {"difference": other["delta"], "low": other["ci_low"], "high": other["ci_high"]}
                spread = float(difference.mean(axis=1).var(ddof=1)) if len(difference) > 1 else 0.0
                row["p_value"] = two_way_p(difference, spread, max(1, len(difference) - 1))
            rows.append(row)
    return rows


def verdict(rows: list[dict]) -> str:
    """Whether a setting's effect is that of the first one, by the held-out judges together."""
    rows = [row for row in rows if row["judge"] in HELD_OUT]
    other = [row["judge"] for row, rejected in zip(rows, holm([r["p_value"] for r in rows]), strict=True) if rejected]
    return f"another effect by {', '.join(other)}" if other else "equal within the interval, by every held-out judge"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=SETTINGS, default="tiny", help="folder of the recipes; default tiny")
    known = list(dict.fromkeys(name for settings in SETTINGS.values() for name in settings))
    parser.add_argument("--settings", nargs="+", choices=known, help="all of the recipe if none are given")
    parser.add_argument("--agreement", nargs="*", default=[], choices=known, help="settings that are not trained on")
    parser.add_argument(
        "--candidate-seeds", nargs="+", type=int, default=[0, 1], help="of the candidates; default 0 1"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the training; default 0 1 2")
    parser.add_argument("--num-prompts", type=int, default=280, help="of the candidates; default 280, the recipe's")
    parser.add_argument("--num-evaluated", type=int, default=200, help="prompts of tiny-parti; default 200, all")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring the time; default 3")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for pools, models and images")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    args.settings = args.settings or list(SETTINGS[args.recipe])
    everything = [*args.settings, *(name for name in args.agreement if name not in args.settings)]
    if unknown := [name for name in everything if name not in SETTINGS[args.recipe]]:
        parser.error(f"{args.recipe} has no setting {unknown[0]}, but {', '.join(SETTINGS[args.recipe])}")
    runs = Runs(RECIPES / args.recipe, args.output_dir.absolute())
    models = [f"base={runs.recipe / 'pipeline'}"]
    samples = args.candidate_seeds
    for sample in samples:
        for name in args.settings:
            runs.make(name, sample, args.num_prompts)
            models += runs.train(name, sample, args.seeds)
    runs.craft(
        "evaluate", "evaluate.yaml", models=models, prompts=RECIPES / "tiny" / "prompts" / "tiny-parti.jsonl",
        num_prompts=args.num_evaluated, run_dir=runs.folder / place(args.settings[0], samples[0]),
        output_dir=runs.folder / "evaluation",
    )  # fmt: skip
    for name in everything[len(args.settings) :]:
        runs.make(name, samples[0], args.num_prompts)
    result = {
        "machine": machine("cpu", ("torch", "diffusers", "transformers")),
        "settings": {name: runs.settings(name) for name in everything},
        "pools": {name: runs.agreement(name, args.settings[0], samples[0]) for name in everything},
        "time": runs.shares_of_time(everything, args.rounds),
        "effects": effects(runs.folder, args.settings, samples, args.seeds),
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    report(result, args.settings)


def report(result: dict, trained: list[str]) -> None:
    print(f"\n{heading(result['machine'])}\n")
    columns = ("calls", "images", "evaluations", "time", "kept", "Jaccard", "by chance")
    print(f"{'':<10}" + "".join(f"{column:>13}" for column in columns))
    for name, pool in result["pools"].items():
        print(
            f"{name:<10}{pool['calls']:>13}{pool['images']:>13}{pool['evaluations']:>13,}{result['time'][name]:>13.3f}"
            f"{pool['kept']:>6} of {pool['of']:<3}{pool['jaccard']:>13.2f}{pool['by_chance']:>13.2f}"
        )
    for name in trained:
        rows = [row for row in result["effects"] if row["setting"] == name]
        print(f"\n{name}" + (f": {verdict(rows)}" if name != trained[0] else ""))
        for row in rows:
            seeds = " ".join(f"{gain:+.3f}" for gain in row["gains"])
            line = f"  {row['judge']:<12}{row['gain']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]  seeds {seeds}"
            if name != trained[0]:
                line += f"  against {trained[0]} {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
            print(line)


if __name__ == "__main__":
    main()
