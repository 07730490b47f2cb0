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
Compare models on held-out prompts.

# On one device
```bash
craft evaluate --config recipes/tiny/evaluate.yaml
```

# On GPUs of this machine, each with a share of the images
```bash
craft evaluate --config recipes/tiny/evaluate.yaml --num_processes 8
accelerate launch -m craft_trl.scripts.evaluate --config recipes/tiny/evaluate.yaml
```

# In tasks, on this machine or on many
```bash
craft evaluate --config recipes/tiny/evaluate.yaml --executor local --tasks 8 --workers 2
```
"""

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..candidates.executors import check_reached
from ..errors import UsageError
from ..evaluation.config import EvaluateArguments, EvaluationConfig
from ..families.checks import check_model
from ..parser import CraftParser
from ..stages import RECORD, Stage, check_writable, fingerprint, stopwatch, write_atomically
from .launch import run_script, say


if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation


def check(config: EvaluationConfig) -> None:
    """Find what is wrong before any work is done."""
    config.load_prompts()
    if config.images_dir is not None and not Path(config.images_dir).is_dir():
        raise UsageError(f"images_dir: there is no folder {config.images_dir}.")
    for spec in config.model_specs.values():
        if spec.kind == "pipeline":
            check_model(*spec.whole, config)
    check_writable(Path(config.output_dir))


def check_all(config: EvaluationConfig) -> None:
    """Find what is wrong, also what it takes the libraries to see."""
    check(config)
    from ..evaluation.evaluate import Evaluation

    Evaluation(config).check_models()


def main(config: EvaluationConfig, args: EvaluateArguments | None = None, tasks: Iterable[int] | None = None) -> None:
    """
    Write `results.json`, `scores.parquet` and `report.html`, and print the table and the verdict; or do `tasks`, one after another.
    """
    args = args or EvaluateArguments()
    started = int(os.environ.get("WORLD_SIZE", 1))
    if args.given and args.num_processes != started:
        raise UsageError(
            f"num_processes is {args.num_processes}, but the script was started as {started}: `craft evaluate` starts so many."
        )
    if args.in_tasks and started > 1:
        raise UsageError("The work is done in tasks, but several processes were started: start one.")
    check(config)
    if args.task is not None:
        for task in [args.task] if tasks is None else tasks:
            draw_task(config, replace(args, task=task))
        return
    # Here, after what is wrong has been found.
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ..devices import check_shared, on_main_process, process_state
    from ..evaluation.alternatives import price
    from ..evaluation.evaluate import Evaluation
    from ..evaluation.figure import frontier_svg
    from ..evaluation.frontier import in_words
    from ..evaluation.provenance import bill_in_words
    from ..evaluation.report import format_table, write_report

    state = process_state()
    evaluation = Evaluation(config)
    evaluation.check_models()
    folder = Path(config.output_dir)
    stage = make_stage(evaluation)
    results, report = folder / "results.json", folder / "report.html"
    finished = on_main_process(lambda: stage.finished)
    if not finished:
        if message := on_main_process(stage.begin):
            say(f"[evaluate] {message}")
        on_main_process(lambda: link_images(config))
        check_shared(folder)
        if (args.executor or args.shared_dir) and not draw_in_tasks(evaluation, args, stage):
            return
        with stopwatch(stage, write=state.is_main_process) as watch:
            one_by_one = judges_one_by_one(evaluation)
            if one_by_one:
                say("[evaluate] the GPU does not hold a model and all judges: images first, then one judge at a time")
            if config.frontier:
                say(f"[evaluate] {price(evaluation)}")
            rows, scores = evaluation.run(state.device, one_by_one)
        if state.is_main_process:
            frontier = evaluation.frontier and evaluation.frontier.results(config.num_bootstrap)
            pq.write_table(pa.Table.from_pylist(per_image(evaluation, scores)), folder / "scores.parquet")
            write_atomically(results, json.dumps(rows, indent=1) + "\n")
            if frontier is not None:
                write_atomically(folder / "frontier.json", json.dumps(frontier, indent=1) + "\n")
                write_atomically(folder / "frontier.svg", frontier_svg(frontier))
            # After the stopwatch has written its seconds, which the report shows.
            said = write_report(evaluation, rows, scores, report, frontier)
            stage.finish(verdict=said, **({"asked": evaluation.bills} if evaluation.bills else {}))
            for name, bill in evaluation.bills.items():
                say(f"[evaluate] {bill_in_words(name, bill)}")
        say(f"[evaluate] {len(evaluation.prompts)} prompts in {folder} ({watch.seconds:.0f} s)")
    else:
        say(f"[evaluate] done before, in {folder}")
    if state.is_main_process:
        say(format_table(json.loads(results.read_text(encoding="utf-8"))))
        if config.frontier:
            frontier = json.loads((folder / "frontier.json").read_text(encoding="utf-8"))
            say("\n" + "\n".join(in_words(frontier, list(evaluation.models))))
        say(f"\nVerdict: {stage.record['summary']['verdict']['sentence']}\nReport: {report}")


def link_images(config: EvaluationConfig) -> None:
    """Make `images/` of the output folder a link to the folder of another evaluation, if one is named."""
    if config.images_dir is None:
        return
    link, there = Path(config.output_dir) / "images", Path(config.images_dir)
    if link.exists() and not link.samefile(there):
        raise UsageError(f"images_dir is {there}, but {link} is there already: leave it out, or move {link} away.")
    if not link.exists():
        link.unlink(missing_ok=True)  # a link to a folder that is gone
        # Relative, so that a run may be moved as a whole.
        link.symlink_to(os.path.relpath(there.resolve(), link.parent.resolve()), target_is_directory=True)


def make_stage(evaluation: "Evaluation") -> Stage:
    """
    The stage. Images lie under the hash of what they depend on: with another model to compare, the others' are not drawn again.
    """
    return Stage("evaluate", evaluation.config.output_dir, evaluation.settings(), cache="images")


def draw_in_tasks(evaluation: "Evaluation", args: EvaluateArguments, stage: Stage) -> bool:
    """Fetch what tasks have made, and have them make the rest if there is an executor; whether they are done."""
    from ..candidates.shared import SharedFolder, fetch

    config = evaluation.config
    models = {f"the model {name},": spec.source for name, spec in evaluation.models.items() if spec.kind != "results"}
    if args.executor is not None:
        args.check_installed()
        from .engines import make_options

        make_options(args)
    judges = {f"the source of {name},": spec.source for name, spec in evaluation.specs.items()}
    check_reached(args.executor, prompts=config.prompts, vae_name_or_path=config.vae_name_or_path, **models, **judges)
    images = Path(config.output_dir) / "images"
    folder = SharedFolder(args.shared_dir or str(images))
    if args.shared_dir is not None:
        folder.check_writable()
    arms = [arm for arm in (*evaluation.arms(), *evaluation.frontier_arms()) if arm.spec.kind != "results"]

    def left() -> set[int]:
        for arm in arms if args.shared_dir is not None else ():
            fetch(folder / arm.folder.name, arm.folder)
        return evaluation.tasks_left(args.tasks or 1)

    if args.executor is None:
        return left() is not None  # fetched: the rest is made here
    made = fingerprint([stage.fingerprint, config.batch_size])
    from .engines import launch_tasks

    return launch_tasks(args, "evaluate", (config, args), folder, made, left)


def draw_task(config: EvaluationConfig, args: EvaluateArguments) -> None:
    """Do one of the tasks: draw and judge its share of the images, in the pools that all of them fill."""
    from ..candidates.shared import SharedFolder, check_record
    from ..devices import default_device, release_memory
    from ..evaluation.evaluate import Evaluation

    release_memory()  # what the task before has left
    evaluation = Evaluation(config, (args.task, args.tasks), args.shared_dir)
    evaluation.check_models()
    stage, here = make_stage(evaluation), SharedFolder(config.output_dir)
    if not check_record(here, stage):
        here.write(RECORD, stage.content().encode())
    evaluation.run(default_device(), judges_one_by_one(evaluation, args.workers))
    say(f"[evaluate] task {args.task} of {args.tasks} is done")


def judges_one_by_one(evaluation: "Evaluation", workers: int | None = None) -> bool:
    """Whether the judges are loaded after drawing and one at a time, since this process's device does not hold more."""
    from ..planning.placement import offloads

    base, specs = next(iter(evaluation.models.values())), list(evaluation.specs.values())
    return offloads(evaluation.config, base.source, None, specs, workers or evaluation.state.num_processes)


def per_image(evaluation: "Evaluation", scores: dict) -> list[dict]:
    """A row for every image with all its scores, and the diversity of its prompt's images."""
    rows = []
    for arm in evaluation.arms():
        for number, (prompt, text, seed) in enumerate(arm.keys):
            position = divmod(number, evaluation.config.num_images_per_prompt)
            metrics = {name: float(values[position]) for name, values in scores[arm.name].items()}
            rows.append({"model": arm.name, "prompt": prompt, "text": text, "seed": seed, **metrics})
    return rows


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([EvaluationConfig, EvaluateArguments], prog=prog, launched="craft_trl.scripts.evaluate")


if __name__ == "__main__":
    raise SystemExit(run_script(main, make_parser))
