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
GenEval's rules: are the objects there that the prompt asks for, in number, colour and place?
(https://huggingface.co/papers/2310.11513)

They are those of `evaluation/evaluate_images.py` of https://github.com/djghosh13/geneval at commit af4902f, as functions over
detections, whatever detector they come from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


# COCO's 80, in its order, three of them by GenEval's names.
OBJECT_NAMES = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,"
    "bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,"
    "sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,"
    "bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,"
    "toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,"
    "clock,vase,scissors,teddy bear,hair drier,toothbrush".split(",")
)


@dataclass(frozen=True)
class Detection:
    """
    An object in an image.

    Args:
        name (`str`):
            Kind of object.
        box (`tuple[float, float, float, float]`):
            Left, top, right and bottom in pixels.
        score (`float`):
            Confidence, 0 to 1.
        mask (`np.ndarray` of shape `(H, W)`, *optional*):
            Whether a pixel is of the object, bool.
    """

    name: str
    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Thresholds:
    """
    GenEval's numbers.

    Args:
        score (`float`, *optional*, defaults to `0.3`):
            An object must score above it.
        counting (`float`, *optional*, defaults to `0.9`):
            The same for prompts that ask for a number.
        max_objects (`int`, *optional*, defaults to `16`):
            Objects of a kind that are looked at, the most certain ones.
        max_overlap (`float`, *optional*, defaults to `1.0`):
            Intersection over union from which on the less certain one of two objects of a kind is dropped; at 1, none.
        position (`float`, *optional*, defaults to `0.1`):
            Share of the objects' sizes that they must be apart.
    """

    score: float = 0.3
    counting: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position: float = 0.1

    def min_score(self, metadata: Mapping) -> float:
        """The score that objects must be above for this prompt."""
        return self.counting if metadata["tag"] == "counting" else self.score


def select(
    detections: Sequence[Detection], min_score: float, thresholds: Thresholds = Thresholds()
) -> dict[str, list[Detection]]:
    """The objects that count, by kind, the most certain first."""
    selected: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > min_score:
            selected.setdefault(detection.name, []).append(detection)
    for name, objects in selected.items():
        kept: list[Detection] = []
        for candidate in objects[: thresholds.max_objects]:
            if thresholds.max_overlap == 1 or all(
                overlap(k.box, candidate.box) < thresholds.max_overlap for k in kept
            ):
                kept.append(candidate)
        selected[name] = kept
    return selected


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes, whose right and bottom pixels belong to them."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    either = area(*a) + area(*b) - both
    return both / either if either else 0.0


def relative_position(a: Sequence[float], b: Sequence[float], threshold: float = 0.1) -> set[str]:
    """Where box `a` is as seen from box `b`: any of `left of`, `right of`, `above` and `below`, or none."""
    boxes = np.array([a, b], dtype=np.float64).reshape(2, 2, 2)  # (box, corner, axis)
    centres, sizes = boxes.mean(axis=1), np.abs(boxes[:, 1] - boxes[:, 0])
    offset = centres[0] - centres[1]
    apart = np.maximum(np.abs(offset) - threshold * sizes.sum(axis=0), 0) * np.sign(offset)
    if (np.abs(apart) < 1e-3).all():
        return set()
    # By the length of the whole offset, as the benchmark has it: nearness makes a relation weaker.
    dx, dy = apart / np.linalg.norm(offset)
    relations = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in relations.items() if holds}


def evaluate(
    objects: Mapping[str, Sequence[Detection]],
    metadata: Mapping[str, Any],
    colors_of: Callable[[Sequence[Detection], str], Sequence[str]],
    position_threshold: float = 0.1,
) -> tuple[bool, str]:
    """
    Whether an image shows what its prompt asks for.

    Args:
        objects (`Mapping[str, Sequence[Detection]]`):
            Output of [`select`].
        metadata (`Mapping`):
            A row of GenEval's `evaluation_metadata.jsonl`: all of `include` must be there, none of `exclude`.
        colors_of (`Callable[[Sequence[Detection], str], Sequence[str]]`):
            Objects and the name of their kind to their colours.
        position_threshold (`float`, *optional*, defaults to `0.1`):
            See [`Thresholds`].

    Returns:
        `tuple[bool, str]`: the answer, and what is wrong.
    """
    reasons: list[str] = []
    matched: list[Sequence[Detection] | None] = []
    for request in metadata.get("include", ()):
        name, count = request["class"], request["count"]
        # Colour and place are asked of the most certain ones only.
        found = objects.get(name, ())[:count]
        before = len(reasons)
        if len(found) < count:
            reasons.append(f"expected {name}>={count}, found {len(found)}")
        else:
            if "color" in request:
                colors = list(colors_of(found, name))
                if colors.count(request["color"]) < count:
                    reasons.append(f"expected {request['color']} {name}>={count}, found {' and '.join(colors)}")
            if "position" in request and len(reasons) == before:
                relation, target = request["position"]
                if matched[target] is None:
                    reasons.append(f"no target for {name} to be {relation}")
                elif not all(
                    relation in relative_position(a.box, b.box, position_threshold)
                    for a in found
                    for b in matched[target]
                ):
                    reasons.append(f"expected {name} {relation} target")
        matched.append(found if len(reasons) == before else None)
    for request in metadata.get("exclude", ()):
        name, count = request["class"], request["count"]
        if len(objects.get(name, ())) >= count:
            reasons.append(f"expected {name}<{count}, found {len(objects[name])}")
    return not reasons, "; ".join(reasons)
