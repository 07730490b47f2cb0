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
Which of several checkpoints or adapters draws best: a ranking on your prompts, with intervals.

```bash
craft pick runs/a/model runs/b/model --config recipes/tiny/evaluate.yaml --output_dir runs/pick
craft pick lora-000400.safetensors lora-000800.safetensors --config recipes/sdxl/evaluate.yaml --output_dir runs/pick
```

A layer over `craft evaluate`: the recipe names the base model (its first), prompts, sampler and judges, and what is named here is
compared with that. Images that another pick has drawn in the same folder are not drawn again.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import UsageError
from ..evaluation.config import EvaluationConfig
from ..evaluation.specs import KINDS
from ..families import DENOISERS
from ..parser import CraftParser
from .launch import say


def main(sources: Sequence[str], config: EvaluationConfig) -> None:
    """Evaluate the sources beside the recipe's base model, and print them in order."""
    from . import evaluate

    base = config.models[0]
    taken = {base.partition("=")[0]}
    models = [base, *(f"{name_of(source, taken)}={as_model(source)}" for source in sources)]
    # What else the recipe compares, and the run that trained it, play no part.
    config = replace(config, models=models, run_dir=None)
    evaluate.main(config)
    say(f"\n{ranking(Path(config.output_dir))}")


def as_model(source: str) -> str:
    """A checkpoint or adapter as `models` of an evaluation names it, by what lies there."""
    kind, colon, rest = source.partition(":")
    if colon and kind in KINDS:
        return source
    path = Path(source)
    if path.is_file() and path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{source} cannot be read as weights: it is damaged, or no safetensors file.") from error
        if any(re.search(r"lora|lokr|hada|alpha", name, re.IGNORECASE) for name in names):
            return f"lora:{source}"
        kinds = " or ".join(f"{kind}:{source}" for kind in DENOISERS)
        raise UsageError(f"{source} is no adapter: it has no LoRA layers. Name a denoiser's weights as {kinds}.")
    if path.is_dir():
        if (path / "model_index.json").exists():
            return source
        for denoiser in DENOISERS:
            if (path / denoiser / "config.json").exists():
                return f"{denoiser}:{path / denoiser}"
        if list(path.glob("*.safetensors")):
            return f"lora:{source}"
        raise UsageError(
            f"{source} holds neither a pipeline (model_index.json), nor a denoiser ({', '.join(DENOISERS)}), nor an adapter "
            "(*.safetensors)."
        )
    if path.suffix or source.startswith((".", "/")):
        raise UsageError(f"{source}: there is no such file or folder.")
    return source  # a whole pipeline on the Hub; the evaluation looks whether it is there


def name_of(source: str, taken: set[str]) -> str:
    """A name for the tables: that of the file or the folder, with those above it where there are several."""
    parts = [re.sub(r"[^\w.-]", "_", part) for part in Path(source.partition(":")[2] or source).with_suffix("").parts]
    parts = [part for part in parts if part.strip("._-")]
    for count in range(1, len(parts) + 1):
        name = "-".join(parts[-count:]).lstrip(".-")
        if name not in taken:
            taken.add(name)
            return name
    raise UsageError(f"{source} is named twice, or has the name of the base model.")


def ranking(folder: Path) -> str:
    """
    The models of an evaluation in the order of their held-out score, each against the base, and which of them cannot be told
    from the first.
    """
    import pyarrow.parquet as pq

    from ..bakeoff.comparison import held_out_score
    from ..evaluation.statistics import holm, paired_bootstrap, paired_p

    rows = [row for row in json.loads((folder / "results.json").read_text(encoding="utf-8")) if row["part"] is None]
    models = list(dict.fromkeys(row["model"] for row in rows))
    judges = {row["metric"]: row["higher_is_better"] for row in rows if row["role"] == "held_out"}
    kind = "held-out judges"
    if not judges:
        kind = "rewards"
        judges = {row["metric"]: row["higher_is_better"] for row in rows if row["role"] == "training"}
    table = pq.read_table(folder / "scores.parquet").to_pandas()
    # Images of a prompt are averaged first, in the order in which prompts come.
    means = {
        model: part.groupby("prompt", sort=False)[list(judges)].mean()
        for model, part in table.groupby("model", sort=False)
    }
    columns = {model: {name: frame[name].to_numpy(float) for name in judges} for model, frame in means.items()}
    base = columns[models[0]]
    scores = {model: held_out_score(columns[model], base, judges) for model in models}
    order = sorted(models, key=lambda model: -scores[model].mean())
    lines = [
        f"By {len(judges)} {kind} ({', '.join(judges)}), in standard deviations of the base model's prompts, 95 % intervals:"
    ]
    width = max(map(len, models))
    for place, model in enumerate(order, 1):
        found = paired_bootstrap(scores[model], scores[models[0]], rows[0]["settings"]["num_bootstrap"])
        interval = "the base" if model == models[0] else f"[{found['ci_low']:+.3f}, {found['ci_high']:+.3f}]"
        lines.append(f"{place:>3}  {model:<{width}}  {found['delta']:+.3f}  {interval}")
    best, *others = order
    apart = holm([paired_p(scores[best], scores[other]) for other in others])
    same = [other for other, is_apart in zip(others, apart, strict=True) if not is_apart]
    told = (
        f"{best} is first, and cannot be told from {', '.join(same)} by these prompts." if same else f"{best} is best."
    )
    if len(order) > 2:
        told += " The best of several looks better here than it is: judge it again on other prompts."
    return "\n".join([*lines, told])


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([EvaluationConfig], prog=prog)
