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
How soon the command line answers: seconds of CPU of every `craft STAGE --help`, of mistakes that no model is needed for, and of
filtering a small pool, each a process of its own; and which of the large libraries it has imported.

```bash
python benchmarks/startup.py
```
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median


ROOT = Path(__file__).parents[1]
RUN = ROOT / "tests" / "data" / "run_before_rooms"
LIBRARIES = ("torch", "transformers", "diffusers", "datasets", "accelerate", "peft")
COMMANDS = ("run", "expand", "generate", "filter", "train", "dpo", "scored", "transitions", "spo", "evaluate")
COMMANDS += ("sheet", "export", "plan", "fetch", "score", "import", "bakeoff", "push", "serve-reward", "env")
# Runs a command, and says at its end what has been imported.
PROGRAM = f"""
import atexit, sys
atexit.register(lambda: print("imported", *(name for name in {LIBRARIES} if name in sys.modules), file=sys.__stderr__))
from craft_trl.cli.main import main
sys.argv[0] = "craft"
sys.exit(main())
"""


def cases(folder: Path) -> dict[str, list[str]]:
    """Command lines by name."""
    shutil.copytree(RUN / "run", folder / "run")
    shutil.rmtree(folder / "run" / "dataset")
    candidates, craft, evaluate = (str(RUN / f"{name}.yaml") for name in ("candidates", "craft", "evaluate"))
    return {
        **{f"craft {command} --help": [command, "--help"] for command in COMMANDS},
        "craft generate, a key misspelt": ["generate", "--config", candidates, "--num_prompt", "3"],
        "craft expand, no such prompts": ["expand", "--config", candidates, "--prompts", "none.txt"],
        "craft filter, no pool": ["filter", "--config", candidates, "--output_dir", "none"],
        "craft evaluate, no such model": ["evaluate", "--config", evaluate, "--models", "base=none"],
        "craft evaluate, too many prompts": ["evaluate", "--config", evaluate, "--num_prompts", "99999"],
        "craft plan, no such GPU": ["plan", str(RUN), "--gpu", "h9"],
        "craft run, no such folder": ["run", "none"],
        "craft train, no such dataset": ["train", "--config", craft, "--dataset_name", "none"],
        "craft filter, a pool of 36 images": ["filter", "--config", candidates, "--output_dir", "run"],
    }


def measure(argv: Sequence[str], folder: Path) -> tuple[float, int, list[str]]:
    """Seconds of CPU of a command, its exit code, and the large libraries that it has imported."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *argv],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    imported = next(line for line in process.stderr.splitlines() if line.startswith("imported"))
    return seconds, process.returncode, imported.split()[1:]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run; the median counts")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/startup.json"))
    options = parser.parse_args(argv)
    rows = []
    for round_ in range(options.rounds + 1):  # the first one reads the libraries from the disk
        with tempfile.TemporaryDirectory() as folder:
            for name, command in cases(Path(folder)).items():
                seconds, code, imported = measure(command, Path(folder))
                if round_ == 0:
                    rows.append({"case": name, "seconds": [], "exit_code": code, "imported": imported})
                else:
                    next(row for row in rows if row["case"] == name)["seconds"].append(round(seconds, 3))
    head = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}, torch {version('torch')}"
    print(f"{head}; median of {options.rounds}\n")
    print("| command | seconds of CPU | imports of the large libraries |\n|---|---|---|")
    for row in rows:
        print(f"| {row['case']} | {median(row['seconds']):.2f} | {', '.join(row['imported']) or 'none'} |")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
