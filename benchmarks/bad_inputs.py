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
Bad inputs over all commands: is each answered by the right value or by one line, with nothing lost?

    PYTHONPATH=. python benchmarks/bad_inputs.py --count 1000 --seed 0
    PYTHONPATH=. python benchmarks/bad_inputs.py --only pool:17 --seed 0      # one of them again, with all it says

Each input is made from the seed, its kind and its number alone, in a copy of a small finished run, and given to
`craft_trl.cli.main.main` in a forked child. What comes of it is one of: `done` (exit code 0), `one line` (exit code 1 or 2, one
line on stderr, and every file of the run as it was, or set aside), or a fault. Faults are printed with what was put in.
"""

import argparse
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml


TINY = Path(__file__).parents[1] / "recipes" / "tiny"
SMALL = {
    "candidates": {
        "num_prompts": 6, "batch_size": 4, "num_inference_steps": 1, "filter_level": "image", "target_groups": None,
        "rewards": ["aesthetic=./rewards/aesthetic"],
    },
    "craft": {"max_steps": 1, "global_batch_size": 2, "per_device_train_batch_size": 2, "save_strategy": "no"},
    "evaluate": {
        "num_prompts": 2, "batch_size": 4, "num_inference_steps": 1, "num_bootstrap": 20,
        "rewards": ["aesthetic=./rewards/aesthetic"], "held_out_rewards": ["quality=./inspector.py:quality"],
    },
    "bakeoff": {"num_prompts": 2, "num_test_prompts": 2, "max_steps": 1, "seeds": [0]},
}  # fmt: skip
VALUES = [
    None, "", " ", "x", "a b", "é\u2028ü", "a" * 5000, "-1", -1, 0, 1, 3, 2**63, 10**30, 0.5, math.nan, math.inf, True, False, [],
    [None], [1, "a"], [""], ["x", "x"], {}, {"a": 1}, "nowhere/at/all", "/proc/nowhere", "..", "org/name", "./", "%s %d", "{prompt}",
    "a\0b", "x=y", "x=./nowhere", "=", ":", "http://", "http://127.0.0.1:9", "null", "<b>", "--help", "1e400", "../" * 40,
]  # fmt: skip
WORDS = [
    "--nothing", "--config", "--output_dir", "--", "-", "", "x", "--num_prompts", "-1", "0", "nan", "1e99", "--seed", "--prompts",
    "nowhere.txt", "--rewards", "aesthetic", "aesthetic=", "--models", "a=b", "--train_recipe", "evaluate.yaml", "--height", "7",
    "--output_dir=", "--candidates.num_prompts", "--evaluate.", "--.x", "--train.output_dir", "é", "--num_processes", "=", "--gpu", "h1",
    "--num_machines", "2", "--price", "--veto", "--only", "kept", "--no_smoke", "--smoke", "maybe", "--batch_size=0",
]  # fmt: skip
BYTES = [
    b"",
    b"\n",
    b"\0",
    b"\xff\xfe",
    b"{",
    b"[]",
    b"null",
    b"1",
    b'"a"',
    b"{}\n{}\n",
    b"\xef\xbb\xbf{}",
    b"a: [",
    b"- a\n- b\n",
]

Kind = Callable[[random.Random, Path], list[str]]


def recipes(folder: Path) -> Path:
    """The tiny recipes, small enough to run in seconds."""
    (folder / "recipes").mkdir(parents=True)
    for name in ("pipeline", "rewards", "evaluators", "prompts", "inspector.py"):
        (folder / "recipes" / name).symlink_to(TINY / name)
    for name, changes in SMALL.items():
        content = yaml.safe_load((TINY / f"{name}.yaml").read_text())
        content = {k: v for k, v in content.items() if not k.startswith(("guard_", "save_")) or name != "craft"}
        if name == "craft":
            del content["held_out_rewards"]
        write_recipe(folder, name, {k: v for k, v in {**content, **changes}.items() if v is not None})
    return folder


def read_recipe(folder: Path, name: str) -> dict:
    return yaml.safe_load((folder / "recipes" / f"{name}.yaml").read_text())


def write_recipe(folder: Path, name: str, content: object) -> None:
    (folder / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))


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
    rows = [json.loads(line) for line in (folder / "runs/tiny/prompts/groups.jsonl").read_text().splitlines()]
    keys = [{"prompt": row["prompt"], "expanded_prompt": row["prompt"], "seed": row["seeds"][0]} for row in rows]
    (folder / "veto.jsonl").write_text("".join(json.dumps(key) + "\n" for key in keys))
    if rng.random() < 0.1:
        (folder / "veto.jsonl").unlink()
    else:
        damage_lines(rng, folder / "veto.jsonl")
    return [rng.choice(["filter", "sheet"]), "--config", "recipes/candidates.yaml", "--veto", "veto.jsonl"]


def damage_lines(rng: random.Random, path: Path) -> None:
    """Cut, change or replace lines of a `.jsonl` file."""
    lines = path.read_bytes().splitlines(keepends=True)
    number = rng.randrange(len(lines))
    row = json.loads(lines[number])
    how = rng.randrange(6)
    if how == 0:
        lines[number] = lines[number][: rng.randrange(len(lines[number]))]
    elif how == 1:
        lines[number] = rng.choice(BYTES) + b"\n"
    elif how == 2:
        lines = [rng.choice(BYTES)]
    elif how == 3:
        lines.append(lines[number])
    else:
        key = rng.choice(list(row))
        row[key] = rng.choice([value for value in VALUES if value != "a" * 5000])
        if how == 5:
            del row[key]
        lines[number] = json.dumps(row).encode() + b"\n"
    path.write_bytes(b"".join(lines))


def damage(rng: random.Random, path: Path) -> None:
    """Cut, change, replace or remove a file."""
    data = path.read_bytes()
    position = rng.randrange(max(1, len(data)))
    flipped = (
        data[:position] + bytes([data[position] ^ 1 << rng.randrange(8)]) + data[position + 1 :] if data else b"x"
    )
    how = rng.randrange(6)
    if how < 4:
        path.write_bytes([data[:position], flipped, rng.choice(BYTES), data + b"x"][how])
    else:
        path.unlink()
        if how == 5:
            path.mkdir()


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
        "image": [None, {"bytes": None, "path": "nowhere.png"}, *({"bytes": b, "path": None} for b in (b"", b"x", png[:99], png[:-9]))],
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


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (recipe_text, recipe_value, numbers, options, groups, vetoes, pool, records, dataset, rewards, models)
    + (prompts, pipelines, train_value)
}


def contents(folder: Path) -> Counter[str]:
    """Hashes of what a command may not lose. Seconds are added to the timings, and a record says when a stage is done."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    kept = [path for path in files if path.name not in ("timings.json", "stage.json", "claims.lock", ".pool.lock")]
    return Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in kept)


def run(argv: list[str], folder: Path, seconds: float = 120) -> tuple[int | None, str]:
    """Exit code and stderr of a command in a forked child, `None` if it took too long."""
    log = folder.parent / "stderr"
    pid = os.fork()
    if not pid:
        os.chdir(folder)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(descriptor, 2)
        try:
            from craft_trl.cli.main import main

            code = main(argv)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None, log.read_text(errors="replace")


def classify(code: int | None, said: str, before: Counter[str], after: Counter[str]) -> str:
    """`done`, `one line`, or what is wrong."""
    lines = [
        line for line in re.split(r"[\r\n]+", said) if line.strip() and not re.search(r"\d+%\||it/s\]|s/it\]", line)
    ]
    if code is None:
        return "fault: it did not end"
    if "Traceback" in said:
        return "fault: a traceback"
    if code == 0:
        return "done"
    if code not in (1, 2):
        return f"fault: exit code {code}"
    if len(lines) != 1 or not lines[0].startswith("craft: ") or len(lines[0]) > 1000:
        return f"fault: {len(lines)} lines"
    return "fault: files are lost" if before - after else "one line"


def check(kind: str, number: int, seed: int, base: Path) -> tuple[str, list[str], str]:
    """Make an input and give it to its command: what came of it, the command, and what it said."""
    rng = random.Random(f"{seed} {kind} {number}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        shutil.copytree(base, folder, symlinks=True)
        argv = KINDS[kind](rng, folder)
        before = contents(folder)
        code, said = run(argv, folder)
        return classify(code, said, before, contents(folder)), argv, said


def prepare(base: Path) -> None:
    """A finished run to spoil."""
    recipes(base)
    code, said = run(["run", "recipes"], base, 600)
    if code != 0:
        raise SystemExit(f"The run to spoil could not be made:\n{said}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS)
    )
    parser.add_argument("--only", help="one input, as KIND:NUMBER")
    given = parser.parse_args()

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with threads cannot be forked safely
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # Imported once, for all children.
    import craft_trl.evaluation.report  # noqa: F401
    import craft_trl.hub.release  # noqa: F401
    import craft_trl.scripts.bakeoff  # noqa: F401
    import craft_trl.scripts.run  # noqa: F401
    import craft_trl.trainer.craft_trainer  # noqa: F401
    import craft_trl.trainer.guard  # noqa: F401

    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary) / "run"
        prepare(base)
        if given.only:
            kind, _, number = given.only.partition(":")
            result, argv, said = check(kind, int(number), given.seed, base)
            print(f"{result}\ncraft {' '.join(map(repr, argv))}\n{said}")
            return 0 if "fault" not in result else 1
        table: dict[str, Counter[str]] = {}
        start, faults = time.monotonic(), 0
        for index in range(given.count):
            kind, number = given.kinds[index % len(given.kinds)], index // len(given.kinds)
            result, argv, said = check(kind, number, given.seed, base)
            table.setdefault(f"{kind}, craft {argv[0]}", Counter())[result.partition(":")[0]] += 1
            if "fault" in result:
                faults += 1
                last = [line for line in said.strip().splitlines() if line.strip()][-1:]
                print(
                    f"--only {kind}:{number} --seed {given.seed}  {result}: craft {' '.join(argv)[:200]}: {' '.join(last)[:300]}",
                    flush=True,
                )
    for name, counts in sorted(table.items()):
        print(
            f"{name:<32}"
            + "".join(f"  {what} {counts[what]}" for what in ("done", "one line", "fault") if counts[what])
        )
    print(f"{given.count} inputs in {time.monotonic() - start:.0f} s, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
