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
The pictures of the documentation, all made from a finished run; the same run gives the same bytes.

```bash
python docs/pictures.py --run runs/tiny --output docs/source/images
```

`before_after.webp`, `flow.svg` and `loss.svg` are drawn here, from the run's images, scores and losses. `sheet.webp` and
`report.webp` are screenshots of the run's own pages, for which Chromium is needed. Nothing is chosen by how it looks: the
prompts of the strip are evenly spaced, and `flow.svg` has the first kept and the first dropped group that fit in, and the
first test prompt.
"""

import argparse
import base64
import io
import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from craft_trl import CandidatePool
from craft_trl.stages import fingerprint


# The colours of the HTML pages, light and dark.
LIGHT = {
    "ink": "#1c1f24",
    "soft": "#656d78",
    "line": "#d3d8de",
    "paper": "#ffffff",
    "panel": "#f5f7f9",
    "good": "#14794a",
    "bad": "#b3261e",
    "accent": "#2b5fd9",
}
DARK = {
    "ink": "#e8eaed",
    "soft": "#9aa3ae",
    "line": "#3d444d",
    "paper": "#16191d",
    "panel": "#1f242a",
    "good": "#5fd39a",
    "bad": "#ff8a80",
    "accent": "#8ab0ff",
}
FONTS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Candidate:
    """One image of a group, with its scores and what the filter said of it."""

    image: Image.Image | None
    row: dict


class Run:
    """
    What a run folder holds that can be drawn.

    Args:
        folder (`Path`):
            Folder of a finished `craft run`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.results = json.loads((folder / "evaluation" / "results.json").read_text())
        self.scores = pq.read_table(folder / "evaluation" / "scores.parquet").to_pandas()
        self.models = list(dict.fromkeys(self.scores["model"]))
        self.state = json.loads((folder / "model" / "trainer_state.json").read_text())
        self.rewards = list(json.loads((folder / "pool" / "stage.json").read_text())["settings"]["rewards"])
        self.pool = CandidatePool(folder / "pool", self.rewards, verify=False)

    @property
    def prompts(self) -> list[str]:
        """The prompts of the evaluation, in its order."""
        return list(dict.fromkeys(self.scores["prompt"]))

    def evaluated(self, model: str, prompt: str) -> Image.Image:
        """The first image that a model drew of a prompt in the evaluation."""
        settings = self.results[0]["settings"]
        drawn = fingerprint([settings["models"][model], settings["sampling"], settings["rewards"]])[:12]
        pool = CandidatePool(self.folder / "evaluation" / "images" / drawn, list(settings["rewards"]), verify=False)
        (seed, *_) = self.scores[(self.scores["model"] == model) & (self.scores["prompt"] == prompt)]["seed"]
        return _open(next(pool.images([(prompt, prompt, int(seed))])))

    def groups(self) -> list[list[Candidate]]:
        """The candidates, by group."""
        from datasets import load_from_disk

        groups: dict[int, list[Candidate]] = {}
        for row in load_from_disk(str(self.folder / "dataset"))["candidates"].remove_columns("image").to_list():
            key = (row["prompt"], row["expanded_prompt"], row["seed"])
            image = _open(next(self.pool.images([key]))) if key in self.pool else None
            groups.setdefault(row["group_id"], []).append(Candidate(image, row))
        return list(groups.values())


def before_after(run: Run, num_prompts: int = 8, size: int = 192) -> Image.Image:
    """A strip: above what the base model drew of evenly spaced prompts, below what the tuned one drew of them."""
    prompts = [run.prompts[i] for i in evenly_spaced(len(run.prompts), num_prompts)]
    # Pillow brings this font, so that the words look the same everywhere.
    font, leading, gap, label, edge = ImageFont.load_default(26), 31, 14, 40, 26
    texts = [_wrap(prompt, font, size) for prompt in prompts]
    said = _wrap(
        f"Not chosen: {len(prompts)} of {len(run.prompts)} test prompts, evenly spaced. Above the base model, below the "
        "tuned one, from the same noise.",
        font,
        len(prompts) * (size + gap) - gap,
    )
    below = edge + 2 * (size + gap)
    foot = below + max(map(len, texts)) * leading + 22
    width, height = 2 * edge + label + len(prompts) * (size + gap) - gap, foot + len(said) * leading + edge - 6
    picture = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle((0, 0, width - 1, height - 1), 20, fill=LIGHT["paper"], outline=LIGHT["line"], width=2)
    for j, (name, model) in enumerate([("base", run.models[0]), ("tuned", run.models[-1])]):
        top = edge + j * (size + gap)
        text = Image.new("RGBA", (size, label), (0, 0, 0, 0))
        ImageDraw.Draw(text).text((size // 2, 0), name, LIGHT["ink"], font, anchor="ma")
        turned = text.rotate(90, expand=True)
        picture.paste(turned, (edge - 6, top), turned)
        for i, prompt in enumerate(prompts):
            image = run.evaluated(model, prompt).resize((size, size), Image.Resampling.NEAREST)
            picture.paste(image, (edge + label + i * (size + gap), top))
    for i, text in enumerate(texts):
        x = edge + label + i * (size + gap) + size // 2
        for k, line in enumerate(text):
            draw.text((x, below + k * leading), line, LIGHT["ink"], font, anchor="ma")
    for k, line in enumerate(said):
        draw.text((edge + label, foot + k * leading), line, LIGHT["soft"], font)
    return picture


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of whole words, none wider than `width` pixels unless it is one word."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def loss(run: Run) -> str:
    """The loss of a training over its steps: each step, thin, and the running mean over a tenth of them, bold."""
    history = [entry for entry in run.state["log_history"] if "denoising_loss" in entry]
    steps = np.array([entry["step"] for entry in history], dtype=float)
    values = np.array([entry["denoising_loss"] for entry in history], dtype=float)
    window = max(1, len(values) // 10)
    means = np.array([values[max(0, i - window + 1) : i + 1].mean() for i in range(len(values))])
    width, height, left, right, top, bottom = 720, 300, 76, 24, 46, 52
    x_ticks, y_ticks = ticks(0, steps.max()), ticks(values.min(), values.max())

    def x(step: float) -> float:
        return left + (width - left - right) * step / max(steps.max(), 1)

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    def line(series: np.ndarray, name: str) -> str:
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(steps, series, strict=True))
        return f'<polyline points="{points}" class="{name}"/>'

    parts = [f'<line x1="{left}" x2="{width - right}" y1="{y(v):.1f}" y2="{y(v):.1f}" class="grid"/>' for v in y_ticks]
    digits = max(0, -int(np.floor(np.log10(y_ticks[1] - y_ticks[0]))))
    parts += [_text(left - 10, y(v) + 4, f"{v:.{digits}f}", "soft small", "end") for v in y_ticks]
    parts += [_text(x(v), height - bottom + 20, f"{v:.4g}", "soft small", "middle") for v in x_ticks]
    middle = (top + height - bottom) / 2
    parts += [
        _text((left + width - right) / 2, height - 12, "training step", "ink small", "middle"),
        f'<g transform="rotate(-90 20 {middle})">{_text(20, middle, "denoising loss", "ink small", "middle")}</g>',
        line(values, "thin"),
        line(means, "bold"),
        f'<line x1="{left}" x2="{left + 22}" y1="24" y2="24" class="thin"/>',
        _text(left + 28, 28, "each step", "soft small"),
        f'<line x1="{left + 120}" x2="{left + 142}" y1="24" y2="24" class="bold"/>',
        _text(left + 148, 28, f"mean of the last {window} steps" if window > 1 else "the same", "soft small"),
    ]
    said = f"Denoising loss over {len(steps)} training steps, from {means[0]:.4g} to {means[-1]:.4g}"
    return _svg(width, height, said, parts)


def flow(run: Run) -> str:
    """The method as a drawing, with one group that the filter kept and one that it dropped."""
    groups = run.groups()
    shown = {
        "kept": next((g for g in groups if _fits(g) and all(c.row["keep"] for c in g[1:])), None),
        "dropped": next((g for g in groups if _fits(g) and not any(c.row["keep"] for c in g[1:])), None),
    }
    example = next(group for group in (*shown.values(), groups[0]) if group is not None)
    rows = [candidate.row for group in groups for candidate in group]
    kept = sum(row["keep"] for row in rows)
    kept_groups = sum(any(candidate.row["keep"] for candidate in group) for group in groups)
    width, height, box, gap, edge = 880, 638, 150, 24, 17
    prompt = example[0].row["prompt"]
    suffixes = [c.row["expanded_prompt"].replace(prompt, "…") for c in example[1:3]]
    steps = [
        ("Prompts", textwrap.wrap(prompt, 19)[:4]),
        ("Expansion", [line for text in suffixes for line in textwrap.wrap(text, 19)[:2]]),
        ("Candidates", ["the model draws an", "image of each, from", "the same noise"]),
        ("Rewards", run.rewards[:4]),
        ("Filter (CRF)", ["does every variant", "beat the original", "on every reward?"]),
    ]
    parts = []
    for i, (title, lines) in enumerate(steps):
        x = edge + i * (box + gap)
        parts.append(_box(x, 18, box, 122, title, lines))
        if i:
            parts.append(_arrow(x - gap + 4, 79, x - 4, 79, both=title == "Rewards"))
    # From the filter to both groups.
    middle = edge + 4 * (box + gap) + box / 2
    panel = (width - 2 * edge - gap) / 2
    for x in (edge + panel / 2, edge + panel + gap + panel / 2):
        parts.append(f'<path d="M{middle:.0f} 140 V160 H{x:.0f} V174" class="wire"/>')
        parts.append(_head(x, 178, "down"))
    for i, (word, group) in enumerate(shown.items()):
        parts += _group(edge + i * (panel + gap), 180, panel, word, group, run.rewards[:4])
    # What is trained on, and what comes of it.
    parts.append(_arrow(edge + 100, 441, edge + 100, 464))
    last = [entry for entry in run.results if entry["model"] == run.models[-1] and entry["part"] is None]
    judge = next((entry for entry in last if entry["role"] == "held_out"), last[0])
    parts.append(
        _box(
            edge,
            468,
            200,
            124,
            "Dataset",
            [
                f"{kept} images of {kept_groups} prompts",
                f"kept of {sum(c.image is not None for g in groups for c in g)} drawn, each",
                "under its original prompt",
                "with its advantage",
            ],
        )
    )
    parts.append(_arrow(edge + 204, 530, edge + 200 + gap - 4, 530))
    x = edge + 200 + gap
    parts.append(
        _box(
            x,
            468,
            200,
            124,
            "Trainer",
            [
                "noise-prediction loss,",
                "times the advantage,",
                f"{run.state['global_step']} steps, offline: no",
                "reference model, no KL",
            ],
        )
    )
    parts.append(_arrow(x + 204, 530, x + 200 + gap - 4, 530))
    x += 200 + gap
    wide = width - edge - x
    parts.append(
        _box(
            x,
            468,
            wide,
            124,
            "Evaluation",
            [
                f"{len(run.prompts)} unseen prompts,",
                f"{judge['role'].replace('_', '-')} judge",
                f"{judge['metric']}:",
                f"{judge['delta']:+.3f} [{judge['ci_low']:+.3f}, {judge['ci_high']:+.3f}]",
            ],
        )
    )
    pictured = run.prompts[0]
    for i, model in enumerate((run.models[0], run.models[-1])):
        left = x + wide - 2 * 88 - 14 + i * 94
        parts.append(_picture(left, 480, 86, run.evaluated(model, pictured), f"{model}: {pictured}"))
        parts.append(_text(left + 43, 583, ("base", "tuned")[i], "soft small", "middle"))
    parts.append(
        _text(
            edge,
            height - 18,
            f"Pictures and numbers of runs/{run.folder.name}: its first groups that fit in, and its first test prompt.",
            "soft small",
        )
    )
    return _svg(width, height, "The flow of CRAFT, from prompts to an evaluated model", parts)


def _fits(group: list[Candidate]) -> bool:
    """Whether a group is all drawn and its prompt short enough for a line."""
    return all(candidate.image for candidate in group) and len(group[0].row["prompt"]) <= 46


def _group(
    x: float, y: float, width: float, word: str, group: list[Candidate] | None, rewards: list[str]
) -> list[str]:
    """A panel with up to three images of a group and their scores, coloured by whether they beat the original's."""
    kind, height = ("good" if word == "kept" else "bad"), 258
    parts = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" class="panel frame-{kind}"/>']
    parts.append(_text(x + 16, y + 28, word, f"{kind} title"))
    if group is None:
        return [*parts, _text(x + 16, y + 56, f"this run has no {word} group that fits in here", "soft small")]
    parts.append(_text(x + 100, y + 28, group[0].row["prompt"], "ink small"))
    size, names = 100, 78
    step = (width - names - 16) / min(len(group), 3)
    top = y + 184
    for k, name in enumerate(rewards):
        parts.append(_text(x + 16, top + k * 18, name, "soft small"))
    for j, candidate in enumerate(group[:3]):
        left = x + names + 8 + j * step + (step - size) / 2
        middle, label = left + size / 2, f"variant {j}" if j else "original"
        parts.append(_picture(left, y + 42, size, candidate.image, f"{label}: {candidate.row['expanded_prompt']}"))
        parts.append(_text(middle, y + 160, label, "ink small", "middle"))
        for k, name in enumerate(rewards):
            value, first = candidate.row[name], group[0].row[name]
            mark, colour = ("", "ink") if j == 0 else ("▲ ", "good") if value > first else ("▼ ", "bad")
            parts.append(_text(middle, top + k * 18, f"{mark}{value:.4f}", f"{colour} small", "middle"))
        if j:
            passes = _beats(candidate, group[0], rewards)
            said, colour = ("passes", "good") if passes else ("fails", "bad")
            parts.append(_text(middle, top + len(rewards) * 18 + 4, said, f"{colour} small", "middle"))
    return parts


def _beats(candidate: Candidate, original: Candidate, rewards: Sequence[str]) -> bool:
    return all(candidate.row[name] > original.row[name] for name in rewards)


def evenly_spaced(count: int, number: int) -> list[int]:
    """Up to `number` different places in a list of `count`, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, number)).round().astype(int)).tolist()


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `number` of them."""
    rough = (high - low) / number or 1.0
    unit = 10.0 ** np.floor(np.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first = int(np.floor(low / step))
    last = max(int(np.ceil(high / step)), first + 1)
    return [round(i * step, 10) for i in range(first, last + 1)]


def screenshot(page: Path, width: int, height: int, scale: float = 1.5) -> Image.Image:
    """The upper left corner of a page, `width` times `height` of its pixels, each `scale` pixels wide."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit("Screenshots need Chromium: apt-get install chromium fonts-dejavu-core.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--hide-scrollbars",
            "--force-color-profile=srgb",
            f"--user-data-dir={folder}/profile",
            f"--force-device-scale-factor={scale}",
            # Taller than what is shown: the lowest lines of a window may stay blank.
            f"--window-size={width},{height + 200}",
            "--virtual-time-budget=5000",
            f"--screenshot={folder}/page.png",
            page.resolve().as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        shot = Path(folder) / "page.png"
        if not shot.is_file():
            raise SystemExit(f"{browser} made no screenshot of {page}: {done.stderr.strip()[-300:]}")
        with Image.open(shot) as image:
            return image.convert("RGB").crop((0, 0, round(width * scale), round(height * scale)))


def write_sheet(run: Path, recipe: Path, page: Path) -> None:
    """The contact sheet of a run, of groups evenly spaced over those it has."""
    command = [sys.executable, "-m", "craft_trl.cli.main", "sheet", "--config", str(recipe / "candidates.yaml")]
    command += ["--output_dir", str(run), "--num_groups", "24", "--thumbnail_size", "160"]
    command += ["--sheet_file", str(page)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip() or done.stdout.strip())


def _open(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB")


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A picture on a card of its own, so that it can be read on any page, in the colours that the reader's system prefers."""

    def colours(of: dict[str, str]) -> str:
        return "".join(f"--{name}:{value};" for name, value in of.items())

    style = f"""
svg {{ {colours(LIGHT)} font-family: {FONTS}; }}
@media (prefers-color-scheme: dark) {{ svg {{ {colours(DARK)} }} }}
.card {{ fill: var(--paper); stroke: var(--line); }}
.panel {{ fill: var(--panel); stroke: var(--line); }}
.frame-good {{ stroke: var(--good); stroke-width: 1.5; }}
.frame-bad {{ stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 6 4; }}
.wire, .grid, polyline, .thin, .bold {{ fill: none; stroke: var(--soft); stroke-width: 1.5; }}
.head {{ fill: var(--soft); }}
.grid {{ stroke: var(--line); stroke-width: 1; }}
.thin {{ stroke: var(--soft); stroke-width: 1; stroke-opacity: .6; }}
.bold {{ stroke: var(--accent); stroke-width: 2.5; }}
.ink {{ fill: var(--ink); }} .soft {{ fill: var(--soft); }} .good {{ fill: var(--good); }} .bad {{ fill: var(--bad); }}
text {{ font-size: 13px; }} .small {{ font-size: 12.5px; }} .title {{ font-size: 15px; font-weight: 600; }}
image {{ image-rendering: pixelated; }}
"""
    # Empty strokes of half a pixel would be cut off at the edge.
    card = f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="12" class="card"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img">\n<title>{escape(title)}</title>\n<style>{style}</style>\n'
        + "\n".join([card, *parts])
        + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, name: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{name}" text-anchor="{anchor}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float, title: str, lines: Sequence[str]) -> str:
    parts = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" class="panel"/>']
    parts.append(_text(x + 12, y + 26, title, "ink title"))
    parts += [_text(x + 12, y + 48 + 18 * i, line, "soft small") for i, line in enumerate(lines)]
    return "\n".join(parts)


def _arrow(x1: float, y1: float, x2: float, y2: float, both: bool = False) -> str:
    along = "right" if y1 == y2 else "down"
    parts = [f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="wire"/>', _head(x2, y2, along)]
    return "\n".join([*parts, _head(x1, y1, "left")] if both else parts)


def _head(x: float, y: float, along: str) -> str:
    """The head of an arrow, with its point at `(x, y)`."""
    corners = {"right": [(-7, -4), (-7, 4)], "left": [(7, -4), (7, 4)], "down": [(-4, -7), (4, -7)]}[along]
    points = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in [(0, 0), *corners])
    return f'<polygon points="{points}" class="head"/>'


def _picture(x: float, y: float, size: float, image: Image.Image, title: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<image x="{x:.1f}" y="{y:.1f}" width="{size}" height="{size}" href="data:image/png;base64,{data}">'
        f"<title>{escape(title)}</title></image>"
    )


def make_pictures(run_folder: Path, output: Path, recipe: Path) -> list[Path]:
    """Write all pictures of a run, and return their files."""
    missing = [name for name in ("pool", "dataset", "model", "evaluation") if not (run_folder / name).is_dir()]
    if missing:
        raise SystemExit(f"{run_folder} has no {', '.join(missing)}: craft run {recipe} makes a whole run.")
    run = Run(run_folder)
    output.mkdir(parents=True, exist_ok=True)
    strip = before_after(run)
    strip.save(output / "before_after.webp", lossless=True, quality=100, method=6)
    (output / "flow.svg").write_text(flow(run), encoding="utf-8")
    (output / "loss.svg").write_text(loss(run), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "sheet.html"
        write_sheet(run_folder, recipe, page)
        screenshot(page, 720, 1305).save(output / "sheet.webp", quality=85, method=6)
    screenshot(run_folder / "evaluation" / "report.html", 1000, 1270).save(
        output / "report.webp", quality=85, method=6
    )
    return [output / name for name in ("before_after.webp", "flow.svg", "loss.svg", "sheet.webp", "report.webp")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the documentation from a finished run.")
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"), help="Folder of the run.")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/tiny"), help="Folder of its recipes.")
    parser.add_argument("--output", type=Path, default=Path("docs/source/images"), help="Folder for the pictures.")
    args = parser.parse_args()
    for path in make_pictures(args.run, args.output, args.recipe):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
