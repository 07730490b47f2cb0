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
Serve a reward over HTTP, for recipes that name it as `NAME=http://HOST:PORT`.

```bash
craft serve-reward pickscore --port 8000
```
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..errors import UsageError
from ..parser import CraftParser
from ..ranges import Range, check_ranges
from ..rewards import Reward, RewardSpec, score
from ..sources import first_line


@dataclass
class ServeRewardArguments:
    """
    Arguments of `craft serve-reward`.

    Args:
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen at. Whoever reaches it can have images scored: there is no password.
        port (`int`, *optional*, defaults to `8000`):
            Port; 0 takes a free one.
        dtype (`"float32"`, `"bfloat16"` or `"float16"`, *optional*, defaults to `"float32"`):
            Precision of a built-in reward.
    """

    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to listen at. Whoever reaches it can have images scored: there is no password."},
    )
    port: Annotated[int, Range(0, 65535)] = field(default=8000, metadata={"help": "Port; 0 takes a free one."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision of a built-in reward."}
    )

    def __post_init__(self):
        check_ranges(self)


def main(spec: RewardSpec, args: ServeRewardArguments) -> None:
    """Load the reward and serve it until stopped."""
    if spec.remote:
        raise UsageError(f"Reward {spec.name}={spec.source} is served already.")
    if not spec.weighted and args.dtype != "float32":
        kind = "a judge that is asked" if spec.vlm else "a reward of your own" if spec.custom else spec.name
        raise UsageError(f"dtype {args.dtype}: {kind} is in the precision that it chooses itself.")
    import torch

    from ..devices import default_device
    from ..rewards.server import make_server, serve

    loaded: dict[str, Reward] = {}
    about = {"reward": spec.name, "fingerprint": spec.fingerprint()}
    if args.dtype != "float32":
        about["fingerprint"] += f":{args.dtype}"
    try:
        # Before the weights are loaded, which takes a while: is the port free?
        server = make_server(
            lambda images, prompts: score(loaded, images, prompts)[spec.name], about, args.host, args.port
        )
    except OSError as error:
        raise UsageError(f"Cannot listen at {args.host}:{args.port}: {first_line(error)}.") from error
    loaded[spec.name] = spec.load(default_device(), getattr(torch, args.dtype))
    about["higher_is_better"] = bool(getattr(loaded[spec.name], "higher_is_better", True))
    serve(server, spec.name)


def make_parser(prog: str | None = None) -> CraftParser:
    return CraftParser([ServeRewardArguments], prog=prog)
