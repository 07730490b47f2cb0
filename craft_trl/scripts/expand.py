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
Expand prompts.

```bash
craft expand --config recipes/tiny/candidates.yaml
```
"""

import json
from pathlib import Path
from typing import Any

from ..candidates.config import CandidatesConfig
from ..candidates.groups import make_groups, save_groups
from ..errors import NothingToDoError
from ..expansion import PromptExpander
from ..expansion.instructed import InstructedExpander
from ..families.checks import check_model
from ..parser import CraftParser
from ..rewards import check_asked, parse_rewards
from ..stages import Stage, fingerprint, write_atomically
from .launch import run_script, run_stage


def make_stage(config: CandidatesConfig, prompts: list[str], expander: PromptExpander | InstructedExpander) -> Stage:
    """The stage, with the settings that decide its result. Its prompts stand for the file or dataset they are from."""
    settings = {
        "prompts": fingerprint(prompts),
        "num_prompts": config.num_prompts,
        "exclude_prompts": config.exclude_prompts,
        "near_duplicate_threshold": config.near_duplicate_threshold,
        "num_variants": config.num_variants,
        "expansion": expander.settings,
        "model_max_length": [tokenizer.model_max_length for tokenizer in expander.tokenizers],
        "group_seeds": config.group_seeds,
    }
    if config.expander != "templates":
        settings["expander_max_attempts"] = config.expander_max_attempts
    if config.seed_by != "position":
        settings["seed_by"] = config.seed_by
    return Stage("expand", Path(config.output_dir) / "prompts", settings)


Checked = tuple[list[str], dict[str, Any], PromptExpander | InstructedExpander]


def check(config: CandidatesConfig) -> Checked:
    """Find what is wrong before any work is done; return the prompts, what was left out of them, and the expander."""
    check_model(config.model_name_or_path, config.model_revision)
    prompts, counts = config.load_prompts(config.seed)
    check_asked(parse_rewards(config.rewards), prompts, config.prompts)
    if config.expander == "templates":
        PromptExpander(config.templates, config.seed)(prompts[:1], config.num_variants)
    expander = config.make_expander(
        config.seed, config.output_dir, config.model_name_or_path, config.model_revision, config.max_sequence_length
    )
    if isinstance(expander, PromptExpander):
        expander(prompts[:1], config.num_variants)
    return prompts, counts, expander


def main(config: CandidatesConfig, checked: Checked | None = None) -> None:
    """
    Write `prompts/groups.jsonl`: every prompt with its variants and seeds; and, if there are any, `prompts/failures.jsonl`:
    prompts without variants, and why.

    Args:
        config ([`CandidatesConfig`]):
            Settings.
        checked (`tuple`, *optional*):
            What [`check`] has returned, where it was called before.
    """
    prompts, counts, expander = check(config) if checked is None else checked
    stage = make_stage(config, prompts, expander)

    def work() -> dict:
        variants = expander(prompts, config.num_variants)
        if not any(variants):
            prompt, faults = next(iter(expander.failures.items()))
            raise NothingToDoError(f"No prompt could be expanded. The first, {prompt!r}: {'; '.join(faults)[:300]}.")
        # Numbered before any is dropped, so that a prompt's noise does not depend on whether others failed.
        groups = make_groups(prompts, variants, config.seed, config.group_seeds, config.seed_by)
        save_groups([group for group in groups if group.expanded_prompts], stage.folder / "groups.jsonl")
        failures = [{"prompt": prompt, "faults": faults} for prompt, faults in expander.failures.items()]
        if failures:
            lines = [json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures]
            write_atomically(stage.folder / "failures.jsonl", "".join(lines))
        made = {"prompts": len(prompts) - len(failures), "failed": len(failures), "variants": config.num_variants}
        used = usage(expander, config.expander_prices) if isinstance(expander, InstructedExpander) else {}
        return {**made, **used, "source": counts}

    run_stage(stage, work, lambda summary: f"{describe(summary)} in {stage.folder}")


def usage(expander: InstructedExpander, prices: list[float] | None) -> dict[str, Any]:
    """What the answers that went into the variants cost, in this run or in an earlier one."""
    counted = [answer for answer in expander.answers if answer.prompt_tokens is not None]
    used = {
        "answers": len(expander.answers),
        "answers_without_count": len(expander.answers) - len(counted),
        "prompt_tokens": sum(answer.prompt_tokens for answer in counted),
        "completion_tokens": sum(answer.completion_tokens for answer in counted),
        "faults": dict(sorted(expander.faults.items())),
    }
    if prices is not None:
        cost = (used["prompt_tokens"] * prices[0] + used["completion_tokens"] * prices[1]) / 1e6
        used["cost"] = round(cost, 4)
    return used


def describe(summary: dict) -> str:
    """One line of what was left out, what was made, and what it cost."""
    left_out = {"repeated": summary["source"]["repeated"], **summary["source"]["excluded"]}
    if "near_duplicates" in summary["source"]:
        left_out["near duplicates"] = summary["source"]["near_duplicates"]
    said = ", ".join(f"{count} {name}" for name, count in left_out.items() if count)
    said = f" (of {summary['source']['read']} read; left out: {said})" if said else ""
    line = f"{summary['prompts']} prompts{said} with {summary['variants']} variants each"
    if summary["failed"]:
        line += f", {summary['failed']} without, see failures.jsonl,"
    if "answers" in summary:
        line += f" from {summary['answers']} answers of {summary['prompt_tokens']:,} + "
        line += f"{summary['completion_tokens']:,} tokens"
        if summary["answers_without_count"]:
            line += f" ({summary['answers_without_count']} of them uncounted)"
        if "cost" in summary:
            line += f" for {summary['cost']:.2f}"
        faults = ", ".join(f"{count} {name}" for name, count in summary["faults"].items())
        line += f" (not taken: {faults})" if faults else ""
    return line


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([CandidatesConfig], prog=prog)


if __name__ == "__main__":
    raise SystemExit(run_script(main, make_parser))
