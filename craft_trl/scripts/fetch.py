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
Download all that a run needs from the Hub, so that it needs no network afterwards.

```bash
craft fetch recipes/sdxl --dry_run       # what that is: files, sizes, hashes
craft fetch recipes/sdxl
HF_HUB_OFFLINE=1 craft run recipes/sdxl
```
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..parser import CraftParser
from ..prompts.benchmarks import WebFile, download, published_files
from ..prompts.config import excluded_files
from ..prompts.loading import files_of_dataset, hub_files
from ..rewards import parse_rewards
from ..sources import HubFiles, first_line, sha256
from ..stages import check_writable
from .launch import say


if TYPE_CHECKING:
    from ..planning.recipes import RunRecipes


@dataclass
class FetchArguments:
    """
    What to do. Every option of a recipe may be given too, as to `craft run`.

    Args:
        dry_run (`bool`, *optional*, defaults to `False`):
            List the files, and download nothing but the configurations that say which they are.
    """

    dry_run: bool = field(
        default=False,
        metadata={"help": "List the files, and download nothing but the configurations that say which they are."},
    )


@dataclass
class Need:
    """
    Something that a run needs from a network.

    Args:
        files (`HubFiles` or `WebFile`):
            Where it is.
        users (`list[str]`):
            What needs it, for people.
        read (`Callable`, *optional*):
            Reads it, where what it is read by keeps a copy of its own, as `datasets` does.
    """

    files: HubFiles | WebFile
    users: list[str]
    read: Callable[[], Any] | None = None


@dataclass(frozen=True)
class File:
    """
    A file to be had.

    Args:
        name (`str`):
            Path in its repository.
        size (`int`, *optional*):
            Bytes, if it is known.
        digest (`str`, *optional*):
            SHA-256 of its content; of a small file on the Hub `git:` and the hash that git has for it.
        path (`Path`, *optional*):
            Where it lies in the cache, if it does.
    """

    name: str
    size: int | None
    digest: str | None
    path: Path | None


def needs(recipes: "RunRecipes") -> list[Need]:
    """What the stages of a run load from a network, by the functions that load it."""
    from ..candidates.loading import network_files, pipeline_files
    from ..evaluation.models import Model
    from ..expansion.checks import load_tokenizers
    from ..prompts.config import load_excluded
    from ..prompts.loading import load_prompt_rows

    candidates, train, evaluation = recipes.candidates, recipes.train, recipes.evaluation
    found: dict[HubFiles | WebFile, Need] = {}

    def add(
        user: str,
        files: Iterable[HubFiles | WebFile | None],
        read: Callable[[], Any] | None = None,
        config: str | None = None,
    ) -> None:
        for item in filter(None, files):
            item = files_of_dataset(item, config) if isinstance(item, HubFiles) else item
            need = found.setdefault(item, Need(item, [], read))
            need.users += [user] if user not in need.users else []

    def add_model(user: str, source: str, revision: str | None) -> None:
        path = Path(source)
        if path.is_file() and not (path.parent / "model_index.json").is_file():
            raise UsageError(
                f"{user} {source} is a file without a configuration, which diffusers asks the Hub for: put the "
                "model_index.json and the configuration folders of its pipeline beside it."
            )
        # Of the model that is tuned as a whole, all is saved.
        whole = not recipes.train.use_peft and (source, revision) == (train.model_name_or_path, train.model_revision)
        # transformers (5.24) looks for a config.json beside a tokenizer, and without a network takes for an error what it did
        # not find to be missing with one.
        add(user, [pipeline_files(source, revision, whole)], lambda: load_tokenizers(source, revision))

    def add_part(user: str, model: Model) -> None:
        wanted = model.hub_files
        held = [files for files in wanted if any(file.name.endswith(".safetensors") for file in listed(files))]
        add(user, [*(held or wanted)[:1], model.facts_file])

    add_model("model_name_or_path", candidates.model_name_or_path, candidates.model_revision)
    add_model("model_name_or_path", train.model_name_or_path, train.model_revision)
    if candidates.draft_adapter is not None:
        add_part("draft_adapter", Model.of_candidates(candidates))
    models = Model.parse_all(evaluation.models, evaluation.model_revision, evaluation.strengths or ())
    for model in models.values():
        if model.kind != "results" and Path(model.source) != Path(recipes.training.output_dir):
            add_model("models", *model.whole)
            add_part("models", model)
    for config in (candidates, evaluation):
        if config.vae_name_or_path is not None:
            add("vae_name_or_path", [network_files(config.vae_name_or_path)])
    add("expander_model", [candidates.expander_files()])
    for user, texts in (
        ("rewards", [*candidates.rewards, *evaluation.rewards]),
        ("held_out_rewards", evaluation.held_out_rewards),
        ("the guard", [*(train.held_out_rewards or ()), *(train.guard_rewards or ())]),
    ):
        for spec in dict.fromkeys(spec for text in texts for spec in parse_rewards([text])):
            add(f"{user}: {spec.name}", spec.hub_files())
    where = candidates.prompt_split, candidates.prompt_config, candidates.prompt_revision
    add(
        "prompts",
        hub_files(candidates.prompts, candidates.prompt_split, candidates.prompt_revision),
        lambda: load_prompt_rows(candidates.prompts, candidates.prompt_column, *where),
        candidates.prompt_config,
    )
    for source in candidates.exclude_prompts:
        add(
            "exclude_prompts",
            excluded_files(source),
            lambda source=source: load_excluded(source, candidates.prompt_column),
        )
    add("evaluation's prompts", published_files(evaluation.prompts), evaluation.load_prompts)
    if train.guard_prompts:
        add("guard_prompts", published_files(train.guard_prompts), train.load_guard_prompts)
    return list(found.values())


def listed(files: HubFiles | WebFile) -> list[File]:
    """The files, with what the Hub says of each, and where it lies in the cache."""
    if isinstance(files, WebFile):
        there = files.path.is_file()
        size = files.path.stat().st_size if there else None
        return [File(files.url, size, files.sha256, files.path if there else None)]
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import filter_repo_objects

    api = HfApi()
    where = {"repo_id": files.repo_id, "repo_type": files.repo_type}
    with explained(files):
        sha = api.repo_info(**where, revision=files.revision).sha
        tree = [
            entry for entry in api.list_repo_tree(**where, revision=sha, recursive=True) if isinstance(entry, RepoFile)
        ]
    names = {entry.path for entry in tree}
    if missing := [name for name in files.files if name not in names and not set("*?[") & set(name)]:
        if not files.optional:
            raise UsageError(f"{files.repo_id} on the Hub has no {missing[0]}.")
    taken = set(filter_repo_objects(names, allow_patterns=list(files.files), ignore_patterns=list(files.ignored)))
    result = []
    for entry in tree:
        if entry.path in taken:
            path = try_to_load_from_cache(files.repo_id, entry.path, revision=sha, repo_type=files.repo_type)
            digest = entry.lfs.sha256 if entry.lfs else f"git:{entry.blob_id}"
            result.append(File(entry.path, entry.size, digest, Path(path) if isinstance(path, str) else None))
    return sorted(result, key=lambda file: file.name)


class explained:
    """Inside, what the Hub or the network says is one line that names the repository."""

    def __init__(self, files: HubFiles):
        self.files = files

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, UsageError) or not isinstance(error, Exception):
            return
        raise UsageError(
            f"{self.files.repo_id}{f' at {self.files.revision}' if self.files.revision else ''} cannot be had from the Hub: "
            f"{first_line(error)}"
        ) from error


def fetch(need: Need, files: Sequence[File]) -> None:
    """Download what is missing, and compare what git-lfs knows with its hash."""
    if isinstance(need.files, WebFile):
        download(need.files.url, need.files.sha256)
        return
    from huggingface_hub import snapshot_download

    wanted = need.files
    with explained(wanted):
        # Also where nothing is missing: it notes the commit that a name such as `main` stands for.
        folder = snapshot_download(
            wanted.repo_id,
            repo_type=wanted.repo_type,
            revision=wanted.revision,
            allow_patterns=list(wanted.files),
            ignore_patterns=list(wanted.ignored),
        )
    for file in files:
        path = Path(folder) / file.name
        if not file.digest.startswith("git:") and sha256(path) != file.digest:
            raise UsageError(
                f"{path} is not what the Hub has: its SHA-256 begins with {sha256(path)[:12]}, that of the Hub with "
                f"{file.digest[:12]}. Delete {path.resolve()} and try again."
            )


def rows(needs: Iterable[tuple[Need, list[File]]]) -> Iterator[str]:
    """The list, in lines."""
    for need, files in needs:
        wanted = need.files
        place = wanted.url if isinstance(wanted, WebFile) else wanted.repo_id
        if isinstance(wanted, HubFiles):
            place = f"{'datasets/' if wanted.repo_type == 'dataset' else ''}{place}"
            place += f"@{wanted.revision}" if wanted.revision else ""
        yield f"{place} ({', '.join(need.users)})"
        for file in files:
            size = "size not known" if file.size is None else megabytes(file.size)
            state = "in the cache" if file.path else "to be downloaded"
            yield f"  {size:>14}  {file.digest}  {file.name}, {state}"


def megabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.3f} MB"


def main(recipes: "RunRecipes", args: FetchArguments) -> None:
    """List what a run needs from a network, and download it."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UsageError("craft fetch asks the Hub, and HF_HUB_OFFLINE is set: run it where there is a network.")
    found = [(need, part) for need in needs(recipes) if (part := listed(need.files))]
    for line in rows(found):
        say(line)
    files = [file for _, part in found for file in part]
    missing = sum(file.size or 0 for file in files if file.path is None)
    count = sum(file.path is None for file in files)
    total = megabytes(sum(file.size or 0 for file in files))
    if not files:
        say("[fetch] the run needs nothing from a network")
    elif args.dry_run:
        say(f"[fetch] {len(files)} files, {total}; {count} of them, {megabytes(missing)}, are not in the cache yet")
    if args.dry_run or not files:
        return
    check_writable(Path(constants.HF_HUB_CACHE), missing)
    for need, part in found:
        fetch(need, part)
    for need, _ in found:
        if need.read is not None:
            need.read()
    say(
        f"[fetch] {len(files)} files, {total}, are in the cache; {count} of them were downloaded now, {megabytes(missing)}"
    )


def run(argv: Sequence[str]) -> None:
    """The command line: a folder of recipes, then options."""
    parser = make_parser(prog="craft fetch FOLDER")
    if argv and argv[0] in ("-h", "--help"):
        parser.print_help()
        return
    if not argv or argv[0].startswith("-"):
        raise UsageError("craft fetch needs a folder of recipes, such as recipes/tiny.")
    from .plan import split

    own, others = split(argv[1:], parser)
    (args,) = parser.parse_args_and_config(args=own)
    from ..planning.recipes import RunRecipes, find_recipes

    main(RunRecipes.load(find_recipes(argv[0]), others), args)


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([FetchArguments], prog=prog)


if __name__ == "__main__":
    import sys

    from ..errors import exit_code

    raise SystemExit(exit_code(lambda: run(sys.argv[1:])))
