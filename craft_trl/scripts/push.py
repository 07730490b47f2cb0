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
Put the dataset and the model of a run on the Hub, with their cards.

```bash
craft push runs/tiny --repo_id org/name --private true
craft push runs/tiny --repo_id org/name --what dataset --license cc-by-4.0
craft push runs/tiny --repo_id org/name --dry_run
```
"""

from pathlib import Path

from huggingface_hub import HfApi

from ..errors import UsageError
from ..hub.config import PushConfig
from ..parser import CraftParser
from .launch import say


def main(run_dir: str, config: PushConfig) -> None:
    """Check, make the files, and upload them."""
    folder = Path(run_dir)
    if not folder.is_dir():
        raise UsageError(f"There is no run in {run_dir}.")
    from ..hub.release import STAGES, Run, dataset_release, model_release
    from ..hub.upload import base_license, check_repository, check_size, endpoint, scan, upload

    run = Run(folder, Path(config.model_dir) if config.model_dir else None)
    for stage in (*STAGES, "train"):
        if config.what == "all" or (config.what == "model") == (stage == "train"):
            run.record(stage)
    api = HfApi()
    private = {}
    if not config.dry_run:
        private = {kind: check_repository(api, id_, kind, config.private) for kind, id_ in config.targets.items()}
    base_model = config.base_model or run.base_model
    license = config.license or (None if config.dry_run else base_license(api, base_model))
    dataset_id = config.targets.get("dataset") or config.dataset_repo_id

    releases = {}
    for kind, repo_id in config.targets.items():
        staging = folder / "hub" / kind
        if kind == "dataset":
            files = dataset_release(
                folder, repo_id, staging, config.base_model, license, config.candidate_images, config.max_shard_size
            )
        else:
            files = model_release(run.model, repo_id, folder, config.base_model, dataset_id, license)
        scan(files)
        releases[kind] = files
        for name, content in files.items():
            if isinstance(content, bytes):
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                (staging / name).write_bytes(content)
        if not config.dry_run:
            check_size(api, repo_id, private[kind], files)

    for kind, files in releases.items():
        repo_id = config.targets[kind]
        what = f"{len(files)} files, the card among them, as {folder / 'hub' / kind}"
        if config.dry_run:
            say(f"[push] would put {kind} {repo_id} on the Hub: {what}")
            continue
        upload(api, repo_id, kind, config.private, files, f"Push {kind} with craft_trl")
        say(f"[push] {kind}: {len(files)} files in {endpoint(repo_id, kind)}")


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([PushConfig], prog=prog)
