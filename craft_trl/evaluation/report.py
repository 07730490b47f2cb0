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


"""The verdict in words, the table in the terminal, and the report that a person reads."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..candidates.pool import CandidatePool, Key
from ..filtering.filter import vetoed_itself
from ..pages import data_uri, render
from ..stages import read_record, read_timings
from .arms import Arm
from .evaluate import Evaluation
from .figure import frontier_svg, unit
from .frontier import in_words
from .provenance import check_comparable, notes
from .statistics import decide


STAGES = ("expand", "generate", "filter", "train", "evaluate")


def verdict(rows: Sequence[dict], model: str) -> dict[str, str]:
    """
    What the numbers say about a model, in one word and one sentence.

    A metric rose or fell if [`decide`] says so, by which a model that is the same as the base is called anything else than
    undecided once in twenty times at most. Held-out judges decide: training rewards that rise while a held-out judge falls
    are the mark of reward hacking, not of a better model. A fall of diversity changes no word, as every choice among images
    costs some, but the sentence says how much.

    Args:
        rows (`Sequence[dict]`):
            Rows of [`compare`].
        model (`str`):
            Name of the model to judge.

    Returns:
        `dict[str, str]`: `word`, one of `better`, `better on training rewards only`, `hacked`, `worse` and `undecided`;
        and `sentence`.
    """
    rows = [row for row in rows if row["model"] == model and row["part"] is None]
    rows = [row | {"change": change} for row, change in zip(rows, decide(rows), strict=True)]
    varied = [row for row in rows if row["role"] == "diversity"]
    rows = [row for row in rows if row["role"] != "diversity"]
    if all(row["delta"] is None for row in rows):
        return {"word": "undecided", "sentence": f"{model} stands alone: there is no other model to compare it with."}
    base = "the base model"
    changed = {role: {"rose": [], "fell": [], "all": []} for role in ("training", "held_out")}
    for row in rows:
        changed[row["role"]]["all"].append(row["metric"])
        if row["change"]:
            changed[row["role"]]["rose" if row["change"] == "better" else "fell"].append(row["metric"])
    training, held_out = changed["training"], changed["held_out"]
    if held_out["fell"]:
        word = "hacked" if training["rose"] else "worse"
    elif held_out["rose"]:
        word = "better" if not training["fell"] else "undecided"
    elif training["fell"]:
        word = "worse"
    else:
        word = "better on training rewards only" if training["rose"] else "undecided"
    counts = " and ".join(
        f"{len(kind['rose'])} of {len(kind['all'])} {label}"
        for kind, label in ((training, "training rewards"), (held_out, "held-out judges"))
        if kind["all"]
    )
    fallen = training["fell"] + held_out["fell"]
    tail = f"; worse: {', '.join(fallen)}" if fallen else "; none is worse"
    if narrowed := [row for row in varied if row["change"] == "worse"]:
        names = ", ".join(f"{row['metric']} {row['delta'] / (row['mean'] - row['delta']):.0%}" for row in narrowed)
        tail += f". The images of one prompt differ less: {names}"
    opening = {
        "better": f"{model} is better than {base}",
        "better on training rewards only": f"{model} is better than {base} by the rewards it was trained on only",
        "hacked": f"{model} games its rewards: they rise while held-out judges say it got worse",
        "worse": f"{model} is worse than {base}",
        "undecided": f"{model} cannot be told from {base}",
    }[word]
    return {"word": word, "sentence": f"{opening}: {counts} improved beyond chance{tail}."}


def format_table(rows: Sequence[dict]) -> str:
    """
    The comparison over all prompts as text for the terminal, with what must be said of a scorer below it. Rows of
    different settings are a [`UsageError`].
    """
    check_comparable(rows)
    rows = [row for row in rows if row["part"] is None]
    models = list(dict.fromkeys(row["model"] for row in rows))
    base = {row["metric"]: row for row in rows if row["model"] == models[0]}
    lines = [["model", "metric", "", models[0], "mean", "difference", "95 % interval", "win rate"]]
    if len(models) == 1:
        lines = [["model", "metric", "", "mean", "median"]]
        for row in rows:
            numbers = f"{row['mean']:.4f}", f"{row['median']:.4f}"
            lines.append([row["model"], row["metric"], row["role"].replace("_", "-"), *numbers])
    for row, change in zip(rows, decide(rows), strict=True):
        if row["model"] != models[0]:
            lines.append(
                [
                    row["model"],
                    row["metric"],
                    row["role"].replace("_", "-"),
                    f"{base[row['metric']]['mean']:.4f}",
                    f"{row['mean']:.4f}",
                    f"{row['delta']:+.4f} {change}".rstrip(),
                    f"[{row['ci_low']:+.4f}, {row['ci_high']:+.4f}]",
                    f"{row['win_rate']:.1%}",
                ]
            )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ) + "".join(f"\n{note}" for note in notes(rows))


def write_report(
    evaluation: Evaluation,
    rows: Sequence[dict],
    scores: Mapping[str, Mapping[str, np.ndarray]],
    path: Path,
    frontier: Mapping | None = None,
) -> dict[str, str]:
    """
    Write the self-contained HTML report.

    Args:
        evaluation ([`Evaluation`]):
            What was evaluated.
        rows (`Sequence[dict]`):
            Rows of `results.json`.
        scores (`Mapping[str, Mapping[str, np.ndarray]]`):
            Per model and metric the scores of shape `(P, S)`.
        path (`Path`):
            File to write.
        frontier (`Mapping`, *optional*):
            What [`Frontier.results`] returns, if it was asked for.

    Returns:
        `dict[str, str]`: the verdict on the last model.
    """
    config = evaluation.config
    arms = {arm.name: arm for arm in evaluation.arms()}
    # The last model, or the base on expanded prompts, or, where there is nothing else, the base itself.
    base, model = next(iter(arms)), list(config.model_specs if len(config.model_specs) > 1 else arms)[-1]
    said = verdict(rows, model)
    rows = [row | {"change": change} for row, change in zip(rows, decide(rows), strict=True)]
    judge = next((name for name, role in evaluation.roles.items() if role == "held_out"), next(iter(evaluation.roles)))
    page = render(
        "report.html",
        verdict=said,
        base=base,
        model=model,
        models=[name for name in arms if name != base],
        rows=[row for row in rows if row["part"] is None],
        parts=[row for row in rows if row["part"] is not None and row["model"] == model],
        # Of a model from earlier results there are scores here, no images.
        pairs=[]
        if model == base or arms[model].spec.kind == "results"
        else _pairs(evaluation, arms[base], arms[model], scores, judge, rows),
        judge=judge,
        notes=notes(rows),
        settings=_flat(evaluation.settings()),
        run=_run(Path(config.run_dir), Path(arms[model].spec.source)) if config.run_dir else None,
        num_prompts=len(evaluation.prompts),
        num_images=config.num_images_per_prompt,
        frontier=frontier_section(frontier, list(evaluation.models)) if frontier else None,
    )
    path.write_text(page, encoding="utf-8")
    return said


def frontier_section(results: Mapping, models: Sequence[str]) -> dict:
    """What a report shows of a frontier: the figure, a sentence for each model, and tables, that of the verdict's score first."""
    full = {kind: results["points"][0][kind] for kind in results["variety"]}
    kept = {(row["name"], row["score"], row["variety"]): row for row in results["kept"]}
    tables = []
    for score in results["scores"]:
        rows = [
            {
                "name": point["name"],
                "way": point["way"],
                "gain": point[score],
                "kinds": [
                    (point[kind] / (full[kind] or 1.0), kept.get((point["name"], score, kind))) for kind in full
                ],
            }
            for point in results["points"]
            if point["way"] != "base"
        ]
        tables.append({"score": score, "title": unit(score), "rows": rows})
    return {
        "svg": frontier_svg(results),
        "said": in_words(results, models),
        "kinds": [kind.removeprefix("diversity_") for kind in full],
        "images": results["images"],
        "tables": tables,
    }


def _pairs(evaluation: Evaluation, base: Arm, model: Arm, scores, judge: str, rows: Sequence[dict]) -> list[dict]:
    """Before and after: prompts evenly spaced, and those that gained and lost most by a held-out judge."""
    difference = scores[model.name][judge][:, 0] - scores[base.name][judge][:, 0]
    gain = difference if next(row["higher_is_better"] for row in rows if row["metric"] == judge) else -difference
    order = np.argsort(gain, kind="stable")
    n, step = len(order), evaluation.config.num_images_per_prompt
    chosen = {
        "Not chosen: prompts evenly spaced over the list": np.unique(np.linspace(0, n - 1, min(n, 12)).astype(int)),
        f"Chosen: the largest gains by {judge}": [i for i in order[::-1][:6] if gain[i] > 0],
        f"Chosen: the largest losses by {judge}": [i for i in order[:6] if gain[i] < 0],
    }
    pools = {arm.name: CandidatePool(arm.folder, list(evaluation.specs), verify=False) for arm in (base, model)}

    def image(arm: Arm, i: int) -> str:
        return data_uri(next(pools[arm.name].images([arm.keys[i * step]])))

    return [
        {
            "title": title,
            "items": [
                {
                    "prompt": evaluation.prompts[i],
                    "before": image(base, i),
                    "after": image(model, i),
                    "difference": float(difference[i]),
                }
                for i in indices
            ],
        }
        for title, indices in chosen.items()
    ]


def _run(run_dir: Path, model: Path) -> dict:
    """What the report shows of the run that made the model; empty parts where the run has none."""
    run: dict = {"candidates": None, "losses": None, "timings": []}
    if (record := read_record(run_dir / "dataset")) and (run_dir / "prompts" / "groups.jsonl").exists():
        run["candidates"] = _candidates(run_dir, record)
    # The model that is judged may be a part of what was trained; one from the Hub was trained in the run's `model/`.
    folders = (model, model.parent) if model.exists() else (run_dir / "model",)
    state = next((file for file in (folder / "trainer_state.json" for folder in folders) if file.exists()), Path())
    if state.is_file():
        content = json.loads(state.read_text(encoding="utf-8"))
        history = [entry for entry in content["log_history"] if "denoising_loss" in entry]
        if len(history) > 1:
            run["losses"] = curve([e["step"] for e in history], [e["denoising_loss"] for e in history])
    timings = read_timings(run_dir)
    run["timings"] = [(name, timings[name]["seconds"]) for name in STAGES if name in timings]
    return run


def _candidates(run_dir: Path, record: dict, shown: int = 6) -> dict:
    """What was kept and dropped and why: counts, and groups of each kind with their pictures."""
    from datasets import load_from_disk

    table = load_from_disk(str(run_dir / "dataset"))["candidates"].remove_columns("image").to_list()
    pool_settings = read_record(run_dir / "pool")["settings"]
    rewards = list(pool_settings["rewards"])
    pool = CandidatePool(run_dir / "pool", rewards, verify=False)
    groups: dict[int, list[dict]] = {}
    for row in table:
        groups.setdefault(row["group_id"], []).append(row)
    kept = [group for group in groups.values() if any(row["keep"] for row in group)]
    dropped = [group for group in groups.values() if not any(row["keep"] for row in group)]

    def describe(group: list[dict]) -> dict:
        images = []
        for row in group:
            key: Key = (row["prompt"], row["expanded_prompt"], row["seed"])
            if key in pool:
                scores = ", ".join(f"{name} {row[name]:.3f}" for name in rewards)
                images.append({**row, "uri": data_uri(next(pool.images([key]))), "scores": scores})
        return {"prompt": group[0]["prompt"], "images": images}

    def spread(groups: list) -> list:
        return [groups[i] for i in np.unique(np.linspace(0, len(groups) - 1, min(len(groups), shown)).astype(int))]

    variants = [row for row in table if row["variant"] > 0 and row["drop_reason"] != "not_generated"]
    original = {group_id: group[0] for group_id, group in groups.items()}
    signs = dict(zip(rewards, pool.signs, strict=True))
    beats = {
        name: np.mean([(row[name] - original[row["group_id"]][name]) * signs[name] > 0 for row in variants])
        if variants
        else 0.0
        for name in rewards
    }
    return {
        "groups": len(groups),
        "images": sum(row["drop_reason"] != "not_generated" for row in table),
        "skipped": sum(row["drop_reason"] == "not_generated" for row in table),
        "kept": sum(row["keep"] for row in table),
        "vetoed": sum(vetoed_itself(row["drop_reason"]) for row in table),
        "kept_groups": len(kept),
        "level": record["settings"]["filter_level"],
        "beats": beats,
        "filter_rewards": record["settings"]["filter_rewards"],
        "examples": [
            {"title": "Kept", "groups": [describe(group) for group in spread(kept)]},
            {"title": "Dropped", "groups": [describe(group) for group in spread(dropped)]},
        ],
    }


def curve(steps: Sequence[float], values: Sequence[float], width: int = 720, height: int = 180) -> str:
    """An SVG line of values over steps, thin, with their running mean over a tenth of them, bold."""
    steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    window = max(1, len(values) // 10)
    smooth = np.array([values[max(0, i - window + 1) : i + 1].mean() for i in range(len(values))])
    low, high = float(values.min()), float(values.max())
    x = 60 + (width - 70) * (steps - steps[0]) / max(steps[-1] - steps[0], 1)
    scale = (height - 40) / ((high - low) or 1.0)

    def line(series: np.ndarray, style: str) -> str:
        points = " ".join(f"{a:.1f},{height - 25 - (b - low) * scale:.1f}" for a, b in zip(x, series, strict=True))
        return f'<polyline points="{points}" class="{style}"/>'

    labels = "".join(
        f'<text x="{a}" y="{b}" text-anchor="{anchor}">{html.escape(text)}</text>'
        for a, b, anchor, text in (
            (55, height - 25, "end", f"{low:.4g}"),
            (55, 20, "end", f"{high:.4g}"),
            (60, height - 8, "start", f"step {steps[0]:.0f}"),
            (width - 10, height - 8, "end", f"{steps[-1]:.0f}"),
        )
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="loss over steps">'
        f"{line(values, 'thin')}{line(smooth, 'bold')}{labels}</svg>"
    )


def _flat(settings: dict, prefix: str = "") -> list[tuple[str, str]]:
    items = []
    for name, value in settings.items():
        if isinstance(value, dict):
            items += _flat(value, f"{prefix}{name}: ")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            items.append((f"{prefix}{name}", text if len(text) < 80 else f"{text[:16]}…"))
    return items
