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


"""What leaves for the Hub, what must not, and how it gets there."""

import getpass
import io
import json
import math
import os
import re
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from httpx2 import TransportError  # what huggingface_hub speaks HTTP with, and lets through
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ..errors import PushError, UsageError
from ..masking import TOKENS, find_secrets
from ..sources import first_line
from .cards import TAG
from .config import check_repo_id


Content = Path | bytes  # a file as it is on the disk, or one made for the push

PRIVATE_QUOTA = 100e9  # of a free account, https://huggingface.co/docs/hub/storage-limits
WAITS = (1, 4, 16)  # seconds between attempts; huggingface_hub retries single requests besides
PASSING = (408, 409, 429, 500, 502, 503, 504)  # 409: another commit is under way


def check_repository(api: HfApi, repo_id: str, repo_type: str, private: bool | None = None) -> bool:
    """
    Find what is wrong with a push before any work is done for it.

    Args:
        api ([`~huggingface_hub.HfApi`]):
            Client.
        repo_id (`str`):
            `org/name`.
        repo_type (`"model"` or `"dataset"`):
            Kind of repository.
        private (`bool`, *optional*):
            What the repository is to be. Defaults to what it is, or what the account's setting makes it.

    Returns:
        `bool`: whether the repository is private, or will be if it is to be made.

    Raises:
        [`UsageError`]: for a wrong name, no token or one that may not write there, a repository of the other visibility,
        or one with other content.
    """
    name = f"{repo_type} {repo_id}"
    check_repo_id(repo_id)
    try:
        user = with_backoff(lambda: api.whoami(cache=True))
    except LocalTokenNotFoundError as error:
        raise UsageError("There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN.") from error
    except OfflineModeIsEnabled as error:
        raise UsageError("HF_HUB_OFFLINE is set: unset it to push.") from error
    except HfHubHTTPError as error:
        if status(error) in (401, 403):
            raise UsageError(
                "The Hub does not accept the token: make one at https://huggingface.co/settings/tokens and log in with "
                "`hf auth login`."
            ) from error
        raise
    _check_rights(user, repo_id)
    try:
        info = with_backoff(lambda: api.repo_info(repo_id, repo_type=repo_type))
    except RepositoryNotFoundError:
        return bool(private)
    if private is not None and bool(info.private) != private:
        now, asked = ("private", "public") if info.private else ("public", "private")
        raise UsageError(
            f"The {name} is {now}, and {asked} was asked for: choose another repo_id, or change it in its settings on the Hub."
        )
    files = {file.rfilename for file in info.siblings or ()} - {".gitattributes"}
    if files and TAG not in (info.tags or ()):
        raise UsageError(
            f"The {name} holds {len(files)} files that craft_trl did not push, such as {min(files)}: choose another repo_id."
        )
    return bool(info.private)


def _check_rights(user: Mapping[str, Any], repo_id: str) -> None:
    """Raise a [`UsageError`] unless a `whoami` answer allows writing to a repository."""
    namespace = repo_id.partition("/")[0]
    spaces = {user["name"]: user} | {org["name"]: org for org in user.get("orgs", ())}
    if namespace not in spaces:
        raise UsageError(f"repo_id {repo_id}: you can write to {', '.join(spaces)}, but not to {namespace}.")
    token = user.get("auth", {}).get("accessToken", {})
    scopes = token.get("fineGrained", {}).get("scoped", ())
    may_write = {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and not may_write & {namespace, repo_id}):
        raise UsageError(
            f"The token may not write to {namespace}: make one that may at https://huggingface.co/settings/tokens."
        )
    if spaces[namespace].get("roleInOrg") == "read":
        raise UsageError(f"You may read {namespace} but not write to it: ask one of its admins for the role.")


def check_size(api: HfApi, repo_id: str, private: bool, files: Mapping[str, Content]) -> int:
    """Bytes of a push, or a [`UsageError`] if the account has no room for them."""
    total = sum(len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values())
    user = with_backoff(lambda: api.whoami(cache=True))
    namespace = repo_id.partition("/")[0]
    account = next((org for org in user.get("orgs", ()) if org["name"] == namespace), user)
    paid = account.get("isPro") or account.get("isEnterprise") or account.get("plan") in ("team", "enterprise")
    if private and not paid and total > PRIVATE_QUOTA:
        raise UsageError(
            f"{repo_id} is {total / 1e9:.0f} GB and private, and a free account has {PRIVATE_QUOTA / 1e9:.0f} GB for private "
            "repositories: push it public, or with candidate_images: kept."
        )
    return total


def upload(
    api: HfApi, repo_id: str, repo_type: str, private: bool | None, files: Mapping[str, Content], message: str
) -> CommitInfo:
    """
    Make the repository if there is none, and put files into it, as one commit.

    One commit and not `upload_folder`, which makes several of a large folder: nobody ever sees a card without its data,
    or half a model. It is no less resumable: contents are sent first and are known by their hash, so that a push that
    was cut short sends only what is missing.

    Args:
        api ([`~huggingface_hub.HfApi`]):
            Client.
        repo_id (`str`):
            `org/name`.
        repo_type (`"model"` or `"dataset"`):
            Kind of repository.
        private (`bool`, *optional*):
            Visibility of a repository that is made.
        files (`Mapping[str, Path | bytes]`):
            Contents by path in the repository. What an earlier push left in their folders is deleted.
        message (`str`):
            Commit message.
    """
    scan(files)
    folders = {name.partition("/")[0] for name in files if "/" in name}

    def attempt() -> CommitInfo:
        # All of it anew: a commit whose answer was lost is found to be there, and then nothing is left to do.
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        there = api.list_repo_files(repo_id, repo_type=repo_type)
        stale = [f for f in there if f not in files and (f.partition("/")[0] in folders or f.endswith(OURS))]
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        operations += [CommitOperationDelete(name) for name in stale]
        return api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type)

    try:
        return with_backoff(attempt)
    except HfHubHTTPError as error:
        raise UsageError(f"The Hub refuses to write to the {repo_type} {repo_id}: {first_line(error)}") from error
    except ValueError as error:  # of huggingface_hub: what the Hub says of a card's metadata or of a file
        raise UsageError(f"The Hub refuses the {repo_type} {repo_id}: {' '.join(str(error).split())}") from error


# Of another kind of model than the one being pushed; kept, it would be loaded in its stead.
OURS = ("model_index.json", ".safetensors", ".parquet")


def with_backoff(work: Callable[[], Any]) -> Any:
    """Call, and call again after a while where the Hub is busy or the line is cut; in the end a [`PushError`]."""
    for wait in (*WAITS, None):
        try:
            return work()
        except OfflineModeIsEnabled:  # a `ConnectionError` that no waiting mends
            raise
        except (HfHubHTTPError, TransportError, ConnectionError, RuntimeError) as error:
            # `create_commit` wraps what goes wrong with one of several large files; `hf_xet` has errors of its own.
            cause = (error.__cause__ or error) if type(error) is RuntimeError else error
            code = status(cause)
            if code is not None and code not in PASSING:
                if cause is error:
                    raise
                raise cause from error
            if wait is None:
                raise PushError(
                    f"The Hub is busy or cannot be reached: {first_line(cause)} Run the same command again: what it has "
                    "already is not sent twice."
                ) from error
            retry_after = cause.response.headers.get("Retry-After", "") if code is not None else ""
            time.sleep(max(wait, int(retry_after) if retry_after.isdigit() else 0))


def status(error: BaseException | None) -> int | None:
    """HTTP status of an error of huggingface_hub."""
    return getattr(getattr(error, "response", None), "status_code", None)


def model_files(folder: Path, lora: bool) -> dict[str, Content]:
    """
    Files of a trained model that belong on the Hub, by their path there: the pipeline's parts or the adapter, not
    checkpoints, logs or records.
    """
    weights = folder / "pytorch_lora_weights.safetensors"
    if lora:
        return {weights.name: weights}
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [name for name, value in index.items() if isinstance(value, list) and (folder / name).is_dir()]
    files = [path for part in parts for path in sorted((folder / part).rglob("*")) if path.suffix in SUFFIXES]
    files = [folder / "model_index.json", *files]
    return {
        str(path.relative_to(folder).as_posix()): without_path(path) if path.suffix == ".json" else path
        for path in files
    }


SUFFIXES = (".json", ".safetensors", ".txt", ".model")


def without_path(path: Path) -> Content:
    """A JSON file without `_name_or_path`, where diffusers and transformers note what folder a model came from."""
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    if not isinstance(content, dict) or "_name_or_path" not in content:
        return path
    content = {key: value for key, value in content.items() if key != "_name_or_path"}
    return (json.dumps(content, indent=2) + "\n").encode()


HOMES = re.compile(r"(?<![\w.-])(?:/home/[\w.-]+|/Users/[\w.-]+|/root/|[A-Za-z]:\\{1,2}Users\\{1,2}[\w.-]+)")
ADDRESS = re.compile(r"https?://[^\s\"')]+")
TEXT = (".json", ".md", ".txt", ".yaml")


def scan(files: Mapping[str, Content], texts: Iterable[tuple[str, str]] = ()) -> None:
    """
    Raise a [`UsageError`] if a push would give away a token or key, or a path of this machine.

    Args:
        files (`Mapping[str, Path | bytes]`):
            Contents by path in the repository. Read are texts and the headers of safetensors files.
        texts (`Iterable[tuple[str, str]]`, *optional*):
            Other texts to look at, each with a name for the error message.
    """
    secrets = {secret.strip() for secret in find_secrets(dict(os.environ)) if len(secret.strip()) >= 8}
    secrets |= {get_token()} - {None}
    folders = {str(path) for path in (Path.home(), Path.cwd(), Path(tempfile.gettempdir()).resolve())} - {"/"}
    # A path begins where a word does not go on: `/data` is none of `huggingface.co/datasets`.
    here = re.compile("(?<![\\w.-])(?:" + "|".join(map(re.escape, folders)) + r")(?![\w.-])")
    user = re.compile(rf"(?<![\w.-])(?:/[\w.-]+)*/{re.escape(getpass.getuser())}/")
    for name, text in chain(_texts(files), texts):
        if TOKENS.search(text) or any(secret in text for secret in secrets):
            raise UsageError(
                f"{name} holds what looks like a secret (a token, key or password): nothing was uploaded."
            )
        # A user of the same name on the Hub is in the addresses of a card.
        plain = ADDRESS.sub(" ", text)
        found = next((match.group() for match in (p.search(plain) for p in (here, HOMES, user)) if match), None)
        if found is not None:
            raise UsageError(f"{name} holds a path of this machine, {found}: nothing was uploaded.")


def _texts(files: Mapping[str, Content]) -> Iterable[tuple[str, str]]:
    for name, content in files.items():
        if name.endswith(".safetensors"):
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                yield name, stream.read(length).decode(errors="replace")
        elif name.endswith(TEXT):
            yield name, (content if isinstance(content, bytes) else content.read_bytes()).decode(errors="replace")


def shards(rows: Sequence[dict], row_bytes: float, max_shard_size: int) -> list[Sequence[dict]]:
    """Cut rows into as many equal parts as keep each below a size."""
    count = max(1, math.ceil(len(rows) * row_bytes / max_shard_size))
    bounds = [round(i * len(rows) / count) for i in range(count + 1)]
    return [rows[low:high] for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


def base_license(api: HfApi, base_model: str | None) -> str | None:
    """Licence on the card of a model on the Hub, if it can be had."""
    if base_model is None:
        return None
    try:
        card = api.model_info(base_model).card_data
    except (HfHubHTTPError, TransportError, OSError):
        return None
    return card.license if card is not None else None


def endpoint(repo_id: str, repo_type: str) -> str:
    """Address of a repository."""
    return f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
