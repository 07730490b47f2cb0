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
from pathlib import Path

from benchmarks.bad_input_kinds import KINDS
from benchmarks.spoiling import RUNNING, recipes


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
        try:
            code, said = run(argv, folder)
        finally:
            for pid in RUNNING:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            RUNNING.clear()
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
