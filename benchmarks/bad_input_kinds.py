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
The kinds of bad inputs of `bad_inputs.py`: a function each, which spoils the copy of a run in a folder and returns the command
line that is to be given then. All it does follows from its random generator.
"""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.spoiling import ANSWERS, BYTES, TINY, VALUES, damage, damage_lines, read_recipe, serve, write_recipe


WORDS = [
    "--nothing", "--config", "--output_dir", "--", "-", "", "x", "--num_prompts", "-1", "0", "nan", "1e99", "--seed", "--prompts",
    "nowhere.txt", "--rewards", "aesthetic", "aesthetic=", "--models", "a=b", "--train_recipe", "evaluate.yaml", "--height", "7",
    "--output_dir=", "--candidates.num_prompts", "--evaluate.", "--.x", "--train.output_dir", "é", "--num_processes", "=", "--gpu", "h1",
    "--num_machines", "2", "--price", "--veto", "--only", "kept", "--no_smoke", "--smoke", "maybe", "--batch_size=0",
]  # fmt: skip
Kind = Callable[[random.Random, Path], list[str]]


def command_of(rng: random.Random, recipe: str) -> list[str]:
    """A command that reads a recipe."""
    commands = {
        "candidates": ["expand", "generate", "filter", "sheet"],
        "craft": ["train"],
        "evaluate": ["evaluate"],
        "bakeoff": ["bakeoff"],
    }
    command = rng.choice([*commands[recipe], *(["plan", "run"] if recipe != "bakeoff" else [])])
    if command in ("plan", "run"):
        return [command, "recipes"]
    return [command, *([] if command == "bakeoff" else ["--config"]), f"recipes/{recipe}.yaml"]


def recipe_text(rng: random.Random, folder: Path) -> list[str]:
    """A recipe that is no YAML, or no recipe."""
    recipe = rng.choice(["candidates", "evaluate", "bakeoff", "craft"])
    path = folder / "recipes" / f"{recipe}.yaml"
    data = path.read_bytes()
    cut = rng.randrange(len(data))
    path.write_bytes(
        rng.choice([rng.choice(BYTES), data[:cut], data[:cut] + rng.choice(BYTES) + data[cut:], data + data])
    )
    if rng.random() < 0.2:
        path.unlink()
        rng.choice([path.mkdir, lambda: path.symlink_to("nowhere")])()
    return command_of(rng, recipe)


def recipe_value(rng: random.Random, folder: Path) -> list[str]:
    """A recipe with a wrong value, an unknown key or without a key. Those of the trainer are of the kind `train_value`."""
    recipe = rng.choice(["candidates", "candidates", "evaluate", "bakeoff"])
    return _value(rng, folder, recipe)


def train_value(rng: random.Random, folder: Path) -> list[str]:
    """The same of the training."""
    return _value(rng, folder, "craft")


def _value(rng: random.Random, folder: Path, recipe: str) -> list[str]:
    from craft_trl.scripts import bakeoff, evaluate, expand, train

    script = {"candidates": expand, "evaluate": evaluate, "bakeoff": bakeoff, "craft": train}[recipe]
    content = read_recipe(folder, recipe)
    known = [key for key in script.make_parser().hints if not key.startswith(("expander", "hub_", "push_"))]
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice(
            [rng.choice(list(content)), rng.choice(known), rng.choice(["x", "", "Prompts", "config", "env"])]
        )
        content[key] = rng.choice(VALUES)
        if rng.random() < 0.15:
            del content[key]
    write_recipe(folder, recipe, content)
    return command_of(rng, recipe)


def numbers(rng: random.Random, folder: Path) -> list[str]:
    """A number out of its range on the command line."""
    from craft_trl.scripts import evaluate, expand, plan, serve_reward, sheet

    command, script = rng.choice(
        [("expand", expand), ("evaluate", evaluate), ("plan", plan), ("sheet", sheet), ("serve-reward", serve_reward)]
    )
    known = [key for key, hint in script.make_parser().hints.items() if "int" in str(hint) or "float" in str(hint)]
    recipe = {"expand": "candidates", "sheet": "candidates", "evaluate": "evaluate"}.get(command)
    value = rng.choice(["-1", "nan", "inf", "-inf", "1e400", str(10**30), str(2**63), "1e3", "0x10", "", "1_0", "٣"])
    head = {"plan": ["plan", "recipes"], "serve-reward": ["serve-reward", "nothing"]}.get(command)
    return [*(head or [command, "--config", f"recipes/{recipe}.yaml"]), f"--{rng.choice(known)}", value]


def options(rng: random.Random, folder: Path) -> list[str]:
    """A command line of words that do not go together."""
    from craft_trl.cli.main import STAGES, TOOLS

    command = rng.choice(["run", "plan", *STAGES, *TOOLS, "bakeoff", "push", "serve-reward", "env", "x", ""])
    argv = [command]
    if rng.random() < 0.7 and command not in ("", "x"):
        argv = command_of(rng, rng.choice(["candidates", "evaluate"]))
    words = [rng.choice(WORDS) for _ in range(rng.randrange(1, 4))]
    return argv + [word for word in words if word != "--help"]


def groups(rng: random.Random, folder: Path) -> list[str]:
    """Damaged groups."""
    damage_lines(rng, folder / "runs/tiny/prompts/groups.jsonl")
    return [rng.choice(["generate", "filter", "sheet"]), "--config", "recipes/candidates.yaml"]


def vetoes(rng: random.Random, folder: Path) -> list[str]:
    """A file of vetoes that are none."""
    _about_images(rng, folder / "veto.jsonl", [{}])
    return [rng.choice(["filter", "sheet"]), "--config", "recipes/candidates.yaml", "--veto", "veto.jsonl"]


def votes(rng: random.Random, folder: Path) -> list[str]:
    """A file of votes that are none, or that say two things of an image or a prompt; or a reward made of votes that are not given."""
    words = [{"vote": rng.choice(["keep", "veto", "best", "Best", "", None, 2, ["keep"]])} for _ in range(3)]
    _about_images(rng, folder / "votes.jsonl", words)
    given = ["--votes", "votes.jsonl"] if rng.random() < 0.9 else []
    given += rng.choice(
        [[], ["--filter_rewards", "human"], ["--reward_weights", "human=2"], ["--veto", "votes.jsonl"]]
    )
    return [rng.choice(["filter", "sheet"]), "--config", "recipes/candidates.yaml", *given]


def _about_images(rng: random.Random, path: Path, columns: list[dict]) -> None:
    """Write lines about the original of each group, with one of `columns` in each, and damage some; or none at all."""
    lines = (path.parent / "runs/tiny/prompts/groups.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in rng.choices(lines, k=len(lines))]
    keys = [{"prompt": row["prompt"], "expanded_prompt": row["prompt"], "seed": row["seeds"][0]} for row in rows]
    path.write_text("".join(json.dumps(key | rng.choice(columns)) + "\n" for key in keys))
    if rng.random() < 0.1:
        path.unlink()
    elif columns == [{}] or rng.random() < 0.5:  # vetoes of what is in the pool are right: only damage spoils them
        damage_lines(rng, path)


def pool(rng: random.Random, folder: Path) -> list[str]:
    """A pool with damaged shards."""
    shards = sorted((folder / "runs/tiny/pool").glob("shard-*"))
    for shard in rng.sample(shards, rng.choice([1, 1, 2])):
        if rng.random() < 0.2:
            shard.rename(shard.with_name(f"shard-{rng.choice(['x', '1', 'a-b-c'])}.parquet"))
        else:
            damage(rng, shard)
    commands = [[name, "--config", "recipes/candidates.yaml"] for name in ("generate", "filter", "sheet")]
    return rng.choice([*commands, ["push", "runs/tiny", "--repo_id", "org/name", "--dry_run", "--what", "dataset"]])


def records(rng: random.Random, folder: Path) -> list[str]:
    """A damaged record of a stage."""
    stage, name = rng.choice(
        [("prompts", "expand"), ("pool", "generate"), ("pool", "filter"), ("dataset", "filter"), ("model", "train")]
        + [("evaluation", "evaluate"), ("pool", "sheet"), ("dataset", "push"), ("model", "push")]
    )
    path = rng.choice([folder / "runs/tiny" / stage / "stage.json", folder / "runs/tiny/timings.json"])
    content = json.loads(path.read_text())
    if rng.random() < 0.5:
        damage(rng, path)
    else:
        key = rng.choice(list(content))
        content[key] = rng.choice([*VALUES, "DELETE"])
        path.write_text(json.dumps({k: v for k, v in content.items() if v != "DELETE"}))
    if name == "push":
        what = {"dataset": "dataset", "model": "model"}[stage]
        return ["push", "runs/tiny", "--repo_id", "org/name", "--dry_run", "--what", what]
    recipe = {"train": "craft", "evaluate": "evaluate"}.get(name, "candidates")
    return [name, "--config", f"recipes/{recipe}.yaml"]


def dataset(rng: random.Random, folder: Path) -> list[str]:
    """A training set that cannot be trained on."""
    import datasets
    from datasets import load_from_disk

    path = folder / "runs/tiny/dataset"
    if rng.random() < 0.4:
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "stage.json")
        damage(rng, rng.choice(files))
        return ["train", "--config", "recipes/craft.yaml", "--output_dir", "other"]
    rows = load_from_disk(str(path))["train"].cast_column("image", datasets.Image(decode=False))
    name = rng.choice(["image", "prompt", "advantage"])
    values = rows[name][:]
    png = values[0]["bytes"] if name == "image" else b""
    bad = {
        "image": [None, *({"bytes": b, "path": None} for b in (b"", b"x", png[:99], png[:-9]))],
        "prompt": [None, "", " "],
        "advantage": [None, math.nan, math.inf],
    }[name]  # fmt: skip
    rows = rows.remove_columns(name)
    if rng.random() < 0.7:
        values[rng.randrange(len(values))] = rng.choice(bad)
        rows = rows.add_column(name, values)
        rows = rows.cast_column("image", datasets.Image()) if name == "image" else rows
    elif rng.random() < 0.8:
        rows = rows.add_column(name, [rng.choice(["a", 1, 1.5, [1], ["a"], True])] * len(values))
    rows.save_to_disk(str(folder / "rows"))
    return ["train", "--config", "recipes/craft.yaml", "--dataset_name", "rows", "--output_dir", "other"]


def rewards(rng: random.Random, folder: Path) -> list[str]:
    """A reward that there is not, or that returns something else than a number for each image."""
    returned = rng.choice(
        ["[0.0]", "None", "['a'] * n", "[float('nan')] * n", "[[1, 2]] * n", "1.0", "{}", "'ab'", "[None] * n"]
    )
    (folder / "odd.py").write_text(f"def f(images, prompts):\n    n = len(images)\n    return {returned}\nx = 3\n")
    (folder / "bad.py").write_text(rng.choice(["def f(:", "import nothing_at_all", "1 / 0", ""]))
    spec = rng.choice(
        ["x=./odd.py:f"] * 6 + ["x=./odd.py:x", "x=./odd.py:g", "x=./bad.py:f", "x=./odd.py", "x=odd:f", "aesthetic=.", "x", "=x"]
        + ["aesthetic=./recipes/pipeline", "hpsv2=./recipes/rewards/aesthetic", "a b=./odd.py:f", "x=http://", "x=://", "x=y:z", ""]
    )  # fmt: skip
    option = rng.choice(["--rewards", "--held_out_rewards"])
    return ["evaluate", "--config", "recipes/evaluate.yaml", option, spec, "--output_dir", "other"]


def models(rng: random.Random, folder: Path) -> list[str]:
    """Models of a comparison that are not there or do not fit."""
    shutil.copytree(folder / "runs/tiny/evaluation", folder / "earlier")
    if rng.random() < 0.5:
        damage(rng, folder / "earlier" / rng.choice(["results.json", "scores.parquet"]))
    parts = [
        "base",
        "craft",
        "x",
        "",
        "a b",
        "=",
        "unet:",
        "lora:",
        "results:",
        "vae:",
        "runs/tiny/model",
        "earlier",
        "nowhere",
        "org",
    ]
    given = ["base=recipes/pipeline"] * rng.choice([0, 1, 1, 1])
    for _ in range(rng.choice([1, 1, 2])):
        name, kind = (
            rng.choice(["craft=", "base=", "x=", "", "a b="]),
            rng.choice(["", "unet:", "lora:", "results:", "vae:"]),
        )
        given.append(
            name + kind + rng.choice([*parts, "runs/tiny/model/unet", "recipes/evaluate.yaml", "recipes/pipeline"])
        )
    return ["evaluate", "--config", "recipes/evaluate.yaml", "--models", *given, "--output_dir", "other"]


def prompts(rng: random.Random, folder: Path) -> list[str]:
    """A file of prompts that cannot be read."""
    ending = rng.choice([".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet", ".TXT", ".doc", ""])
    text = rng.choice(
        ["a fox\na car\n", "prompt\na fox\n", "prompt;style\na;b\n", '{"prompt": "a fox"}\n', '{"prompt": 1}\n']
    )
    data = rng.choice(
        [text.encode(), rng.choice(BYTES), text.encode() + rng.choice(BYTES), b"\xef\xbb\xbf" + text.encode()]
    )
    (folder / f"p{ending}").write_bytes(data)
    return [
        "expand",
        "--config",
        "recipes/candidates.yaml",
        "--prompts",
        f"p{ending}",
        "--num_prompts",
        "1",
        "--output_dir",
        "other",
    ]


def pipelines(rng: random.Random, folder: Path) -> list[str]:
    """A model whose folder is damaged."""
    shutil.copytree(TINY / "pipeline", folder / "pipeline")
    files = sorted(file for file in (folder / "pipeline").rglob("*") if file.is_file())
    damage(rng, rng.choice(files))
    name, recipe = rng.choice([("expand", "candidates"), ("generate", "candidates"), ("train", "craft")])
    if name == "generate":
        shutil.copytree(folder / "runs/tiny/prompts", folder / "other/prompts")
    return [name, "--config", f"recipes/{recipe}.yaml", "--model_name_or_path", "pipeline", "--output_dir", "other"]


def servers(rng: random.Random, folder: Path) -> list[str]:
    """A server on loopback that answers wrongly: of a reward, or of a language model."""
    status, body = rng.choice([200, 200, 200, 200, 204, 301, 400, 401, 404, 422, 500]), rng.choice(ANSWERS)
    port = serve(status, body, rng.choice([len(body), len(body), len(body), len(body) + 9, 0, "x", -1]))
    address = f"http://127.0.0.1:{port}"
    if rng.random() < 0.5:
        write_recipe(
            folder, "candidates", {k: v for k, v in read_recipe(folder, "candidates").items() if k != "templates"}
        )
        given = [
            "--expander",
            "endpoint",
            "--expander_model",
            "m",
            "--expander_base_url",
            f"{address}/v1",
            "--expander_timeout",
            "2",
        ]
        given += ["--expander_max_retries", "0", "--expander_max_attempts", "1", "--output_dir", "other"]
        return ["expand", "--config", "recipes/candidates.yaml", *given]
    return [
        "evaluate",
        "--config",
        "recipes/evaluate.yaml",
        "--held_out_rewards",
        f"x={address}",
        "--output_dir",
        "other",
    ]


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        recipe_text,
        recipe_value,
        numbers,
        options,
        groups,
        vetoes,
        votes,
        pool,
        records,
        dataset,
        rewards,
        models,
    )
    + (prompts, servers, pipelines, train_value)
}
