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

"""The figure of a frontier: gain to the right, variety upwards, every way from the base model a line of its own."""

import html
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .frontier import HELD_OUT, TRAINING


WIDTH, HEIGHT = 880, 470
TOP, BOTTOM, LEFT, RIGHT = 66, 52, 46, 16  # of a panel
FONT = 11.5
STYLE = """
.frontier { --ink: #1c1f24; --soft: #656d78; --line: #e4e8ec; --paper: #ffffff; --hill: #eef1f4; --model: #2b5fd9; --guidance: #b36b00; --expanded: #8250c4; font-family: system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { .frontier { --ink: #e8eaed; --soft: #9aa3ae; --line: #2c3239; --paper: #16191d; --hill: #20262c; --model: #8ab0ff; --guidance: #f0b05a; --expanded: #c3a1f5; } }
.frontier text { fill: var(--soft); font-size: 11.5px; stroke: var(--paper); stroke-width: 3.5px; stroke-linejoin: round; paint-order: stroke; }
.frontier .head { fill: var(--ink); font-size: 13px; font-weight: 600; }
.frontier .paper { fill: var(--paper); } .frontier .hill { fill: var(--hill); }
.frontier .grid { stroke: var(--line); stroke-width: 1; } .frontier .drop { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
.frontier polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.frontier .choice { --own: var(--ink); } .frontier .model { --own: var(--model); } .frontier .guidance { --own: var(--guidance); } .frontier .expanded { --own: var(--expanded); }
.frontier polyline.choice, .frontier polyline.model, .frontier polyline.guidance, .frontier polyline.expanded { stroke: var(--own); }
.frontier polyline.guidance, .frontier polyline.expanded { stroke-dasharray: 6 4; stroke-width: 1.6; }
.frontier .dot { fill: var(--own); stroke: var(--paper); stroke-width: 1.5; }
.frontier text.choice, .frontier text.model, .frontier text.guidance, .frontier text.expanded { fill: var(--own); }
.frontier .lead { stroke: var(--own); stroke-width: 0.8; opacity: 0.7; }
.frontier .name { font-weight: 600; font-size: 12.5px; }
.frontier g:hover .dot { stroke: var(--own); stroke-width: 4; }
"""
FAR = 24  # pixels from a point to its text that a line between them is drawn for
CLASSES = {"best of k": "choice", "model": "model", "guidance": "guidance", "expanded prompt": "expanded"}


@dataclass
class Labels:
    """Texts in a panel, each put beside its point where nothing stands yet."""

    box: tuple[float, float, float, float]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)
    svg: list[str] = field(default_factory=list)

    def block(self, x: float, y: float, radius: float = 5) -> None:
        """Keep a place free of texts."""
        self.taken.append((x - radius, y - radius, x + radius, y + radius))

    def put(self, x: float, y: float, lines: Sequence[str], style: str, around: str = "e n s w ne se nw sw") -> None:
        """
        Write some lines beside a point, at the first of these places around it that is free, or else where they cover least, with a
        thin line to the point if that is not near.
        """
        width, height = max(map(len, lines)) * FONT * 0.58, len(lines) * (FONT + 2.5)
        places = []
        for away in (9, 22, 38, 56, 76, 100, 128):
            for place in around.split():
                left = x + away if "e" in place else x - away - width if "w" in place else x - width / 2
                top = y - away - height if "n" in place else y + away if "s" in place else y - height / 2
                places.append((left, top, left + width, top + height))
        inside = [p for p in places if self._inside(p)] or places
        chosen = min(inside, key=lambda place: sum(_overlap(place, other) for other in self.taken))
        self.taken.append(chosen)
        near = float(np.clip(x, chosen[0], chosen[2])), float(np.clip(y, chosen[1], chosen[3]))
        if np.hypot(near[0] - x, near[1] - y) > FAR:
            ends = f'x1="{x:.1f}" y1="{y:.1f}" x2="{near[0]:.1f}" y2="{near[1]:.1f}"'
            self.svg.append(f'<line class="lead {style}" {ends}/>')
        for number, line in enumerate(lines):
            weight = f"{style} name" if number == 0 and len(lines) > 1 else style
            at = chosen[1] + (number + 0.8) * (FONT + 2.5)
            self.svg.append(f'<text x="{chosen[0]:.1f}" y="{at:.1f}" class="{weight}">{html.escape(line)}</text>')

    def _inside(self, place: tuple[float, float, float, float]) -> bool:
        left, top, right, bottom = self.box
        return place[0] >= left and place[1] >= top and place[2] <= right and place[3] <= bottom


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two rectangles share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    return max(width, 0) * max(min(one[3], other[3]) - max(one[1], other[1]), 0)


def paths(results: Mapping) -> list[tuple[str, list[Mapping]]]:
    """The points of each line of the figure, by the way that they go: all begin at the base, which is the best of 1."""
    points = results["points"]
    choice = [point for point in points if point["way"] == "best of k"]
    lines = [("best of k", choice)]
    score = results["score"]
    guided = sorted((p for p in points if p["way"] == "guidance"), key=lambda p: float(p["label"]))
    lines += [("guidance", [choice[0], *guided])] if guided else []
    lines += [("expanded prompt", [choice[0], p]) for p in points if p["way"] == "expanded prompt"]
    models = [point for point in points if point["way"] == "model"]
    names = {point["name"] for point in models}
    stems: dict[str, list[tuple[float, Mapping]]] = {}
    for point in models:
        match = re.fullmatch(r"(.+)-(\d+(?:\.\d+)?)", point["name"])
        of_another = match and match[1] in names  # as `--strengths` names them
        stem, strength = (match[1], float(match[2])) if of_another else (point["name"], 1.0)
        stems.setdefault(stem, []).append((strength, point))
    for found in stems.values():
        lines.append(("model", [choice[0], *(point for _, point in sorted(found, key=lambda item: item[0]))]))
    return [(way, line) for way, line in lines if all(np.isfinite(point[score]) for point in line)]


def unit(score: str) -> str:
    """What an axis of a score says."""
    if score in (HELD_OUT, TRAINING):
        judges = "held-out judges" if score == HELD_OUT else "training rewards"
        return f"gain by the {judges}, in standard deviations of the base"
    return f"gain in {score}"


def frontier_svg(results: Mapping) -> str:
    """
    The figure as SVG, to stand in a page or in a file of its own, with nothing outside of it.

    Args:
        results (`Mapping`):
            What [`Frontier.results`] returns.
    """
    kinds = results["variety"]
    width = WIDTH / len(kinds)
    panels = [_panel(results, kind, number * width, width) for number, kind in enumerate(kinds)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="frontier" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>What a gain costs: gain against variety</title><style>{STYLE}</style>"
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>{"".join(panels)}</svg>\n'
    )


def _panel(results: Mapping, kind: str, offset: float, width: float) -> str:
    score, lines = results["score"], paths(results)
    full = lines[0][1][0][kind] or 1.0
    points = [point for _, line in lines for point in line]
    xs, ys = [p[score] for p in points], [100 * p[kind] / full for p in points]
    low_x, high_x = min(0.0, *xs), max(xs) + 0.14 * (max(xs) - min(0.0, *xs) or 1.0)
    low_y, high_y = max(0.0, 10 * np.floor(min(ys) / 10 - 0.3)), 10 * np.ceil(max(ys) / 10 - 0.1)
    left, right, top, bottom = offset + LEFT, offset + width - RIGHT, TOP, HEIGHT - BOTTOM

    def at(point: Mapping) -> tuple[float, float]:
        x = left + (right - left) * (point[score] - low_x) / (high_x - low_x)
        return x, bottom - (bottom - top) * (100 * point[kind] / full - low_y) / (high_y - low_y)

    def polyline(line: Sequence[Mapping], style: str) -> str:
        return f'<polyline class="{style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, line))}"/>'

    measured = "pixels" if kind == "diversity_pixels" else f"features of {kind.removeprefix('diversity_')}"
    svg = [
        f'<text class="head" x="{left:.1f}" y="26">Variety by {html.escape(measured)}</text>',
        f'<text x="{left:.1f}" y="44">images of one prompt, % of the base model\'s</text>',
        f'<text x="{left:.1f}" y="{HEIGHT - 12}">{html.escape(unit(score))}</text>',
    ]
    for value in np.arange(low_y, high_y + 1, 10):
        y = bottom - (bottom - top) * (value - low_y) / (high_y - low_y)
        svg.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        svg.append(f'<text x="{left - 30:.1f}" y="{y + 4:.1f}">{value:.0f}</text>')
    for value in nice_ticks(low_x, high_x):
        x = left + (right - left) * (value - low_x) / (high_x - low_x)
        svg.append(f'<text x="{x - 8:.1f}" y="{bottom + 18:.1f}">{value:g}</text>')
    choice = lines[0][1]
    edge = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, choice))
    (first_x, _), (last_x, _) = at(choice[0]), at(choice[-1])
    svg.append(f'<polygon class="hill" points="{first_x:.1f},{bottom} {edge} {last_x:.1f},{bottom}"/>')

    labels = Labels((left, top - 14, right + 6, bottom))
    for _, line in lines:
        for one, other in itertools.pairwise(map(at, line)):
            for share in np.arange(0, 1, 8 / max(8, np.hypot(other[0] - one[0], other[1] - one[1]))):
                labels.block(one[0] + share * (other[0] - one[0]), one[1] + share * (other[1] - one[1]), 2)
    for point in points:
        labels.block(*at(point))
    kept = {row["name"]: row for row in results["kept"] if row["score"] == score and row["variety"] == kind}
    drops, dots = [], []
    for way, line in reversed(lines):  # the best of k on top of the others
        style = CLASSES[way]
        svg.append(polyline(line, style))
        for point in line if way == "best of k" else line[1:]:
            (x, y), row = at(point), kept.get(point["name"])
            said = f"{point['name']}: gain {point[score]:+.2f}, {point[kind] / full:.0%} of the base's variety"
            if row:
                said += f"; keeps {kept_in_words(row)} of what the best of {row['best_of']:.1f} keeps"
            size = 6 if way == "model" and point["name"] == _stem(line) else 4
            dots.append(f'<g class="{style}"><title>{html.escape(said)}</title><circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{size}"/></g>')  # fmt: skip
    for way, line in sorted(lines, key=lambda item: item[0] != "model"):  # models have the first choice of places
        style = CLASSES[way]
        if way == "model":
            whole = next(point for point in line[1:] if point["name"] == _stem(line))
            row = kept[whole["name"]]
            labels.put(*at(whole), [whole["label"], f"keeps {kept_in_words(row)}"], style, "sw s se w e nw n ne")
            for point in line[1:]:
                if point is not whole:
                    labels.put(*at(point), [point["name"].removeprefix(f"{whole['name']}-")], style, "sw s w e n")
            if not row["beyond"]:
                (x, y), edge_y = at(whole), at({score: whole[score], kind: whole[kind] / row["kept"]})[1]
                drops.append(f'<line class="drop" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{edge_y:.1f}"/>')
        elif way == "best of k":
            labels.put(*at(line[len(line) // 2]), ["best of k images"], style, "ne e n se s w sw nw")
            for point in line[1:]:
                labels.put(*at(point), [point["label"]], style, "sw n ne e s")
        elif way == "guidance":
            labels.put(*at(line[-1]), [f"guidance {line[-1]['label']}"], style, "e ne se n s w")
            for point in line[1:-1]:
                labels.put(*at(point), [point["label"]], style, "n ne e s w")
        else:
            labels.put(*at(line[-1]), [line[-1]["label"]], style, "e ne n se s nw w")
    labels.put(*at(choice[0]), ["base"], "choice", "e ne n s")
    return "".join([*svg, *drops, *dots, *labels.svg])


def _stem(line: Sequence[Mapping]) -> str:
    """Name of the model whose strengths a line goes through."""
    return min((point["name"] for point in line[1:]), key=len)


def kept_in_words(row: Mapping) -> str:
    """A kept variety in short: `72 %`, or `≥ 72 %` where no choice gains as much."""
    return f"{'≥ ' if row['beyond'] else ''}{row['kept']:.0%}".replace("%", " %")


def nice_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers in a range."""
    raw = (high - low) / 6
    step = next(s for s in (10 ** np.floor(np.log10(raw)) * np.array([1, 2, 2.5, 5, 10])) if s >= raw * 0.999)
    return [round(float(value), 10) + 0.0 for value in np.arange(np.ceil(low / step) * step, high, step)]
