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

"""Recipes: flat YAML files, read by TRL's parser, that say everything about a run."""

import dataclasses
import difflib
import functools
import json
import os
import re
import sys
import types
from argparse import Namespace
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trl import TrlParser

from .errors import UsageError
from .texts import read_yaml


ENVIRONMENT: dict[str, str] = {}  # what recipes' `env` has set in this process, for tasks that are done elsewhere


class CraftParser(TrlParser):
    """
    [`~trl.TrlParser`] for recipes: `--config recipe.yaml` sets defaults, the command line wins.

    It adds what keeps a recipe from being misread: an unknown key or a value of the wrong type is an error that names
    the file, the key and what is allowed, and so is a key that is there twice; and a path that begins with `./` in a recipe
    is relative to the recipe's own folder, so that a recipe and the files beside it can be moved or installed together.
    Other paths, and all paths on the command line, are relative to the working directory; `~` is the home folder in both.
    A recipe's `env` sets environment variables, but none that could decide where tokens go or what code runs.

    Args:
        dataclass_types (`Iterable[type]`):
            Dataclasses whose fields are the options.
        launched (`str`, *optional*):
            Import path of the script, if it can be started through `accelerate launch`.
        launches (`bool`, *optional*, defaults to `False`):
            Whether the `craft` command starts it so. Then options of `accelerate launch` may stand among the others, in recipes and
            on command lines; those that were given are in `launch_options` of the dataclass that has such a field.
        kwargs:
            Arguments of [`~trl.TrlParser`].
    """

    def __init__(self, dataclass_types: Iterable[type], launched: str | None = None, launches: bool = False, **kwargs):
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)
        self.launched, self.launches = launched, launches
        self.launch_options: list[str] = []  # of the recipe
        self.recipe: Path | None = None
        self.hints: dict[str, Any] = {}
        for dataclass_type in self.dataclass_types:
            hints = get_type_hints(dataclass_type)
            self.hints.update({f.name: hints[f.name] for f in dataclasses.fields(dataclass_type) if f.init})

    def parse_args_and_config(self, args: Sequence[str] | None = None, **kwargs) -> tuple:
        # `TrlParser` knows `--config` as a word of its own only, reads the file as the locale has it, takes the last of a key
        # that is there twice, sets whatever variables it names, and lets errors through as they come. So it is read here.
        args = sys.argv[1:] if args is None else args
        args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
        if args.count("--config") > 1:
            raise UsageError("--config is given twice: a command reads one recipe.")
        if "--config" in args:
            position = args.index("--config")
            if args[position + 1 :] == []:
                raise UsageError("--config needs the path of a recipe, such as recipes/tiny/craft.yaml.")
            self.recipe = Path(at_home(args[position + 1]))
            del args[position : position + 2]
            recipe = check_recipe(self.recipe)
            ENVIRONMENT.update(recipe.pop("env", {}))
            os.environ.update(ENVIRONMENT)
            self.set_defaults_with_config(**recipe)
        return super().parse_args_and_config(args=args, **kwargs)

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        # `TrlParser` hands over the raw values of the YAML file, and argparse converts string defaults only: a list or
        # a float where an integer belongs would go through. Check here, where the key is still known.
        unknown = sorted(key for key in kwargs if key not in self.hints and not self.passes_on(key))
        if len(unknown) > 2:
            keys = ", ".join(map(repr, unknown[:3])) + (f" and {len(unknown) - 3} more" if unknown[3:] else "")
            raise UsageError(f"{self.recipe}: unknown keys {keys}. Is it a recipe of another command?")
        if unknown:
            raise UsageError(f"{self.recipe}: unknown key {unknown[0]!r}. {self.remedy(unknown[0])}")
        values = {key: relative_to(self.recipe.parent, value) for key, value in kwargs.items()}
        self.launch_options = [
            word for key in kwargs if key not in self.hints for word in _words(key, values.pop(key), self.recipe)
        ]
        for key, value in values.items():
            if not _fits(value, self.hints[key]):
                raise UsageError(f"{self.recipe}: {key} must be {_describe(self.hints[key])}, got {value!r}.")
        return super().set_defaults_with_config(**values)

    def parse_args_into_dataclasses(self, args: Sequence[str] | None = None, **kwargs) -> tuple:
        given, own, passed_on = set(), [], [*self.launch_options]
        target = own  # where the words after an option go
        for arg in args or ():
            if not arg.startswith("--"):
                target.append(arg)
                continue
            key = arg.removeprefix("--").split("=")[0].replace("-", "_")
            ours = {key, key.removeprefix("no_")} & {*self.hints, "help"}
            if not ours and not self.passes_on(key):
                raise UsageError(f"Unknown argument {arg.split('=')[0]}. {self.remedy(key, prefix='--')}")
            # Of an option that is repeated argparse takes the last one. Whoever repeats a list means all of it.
            if key in given and list in map(get_origin, _options(self.hints.get(key))):
                raise UsageError(f"--{key} is given twice: write all its values after one, --{key} A B.")
            given.add(key)
            target = own if ours else passed_on
            target.append(arg)
        parsed = super().parse_args_into_dataclasses(args=own, **kwargs)
        for config in parsed:
            if hasattr(config, "launch_options"):
                config.launch_options = passed_on
        return parsed

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Namespace | None = None) -> tuple:
        # `HfArgumentParser` raises a bare `ValueError` for words that no option takes, and makes the dataclasses before, whose
        # checks would speak first: of a recipe that was named without `--config` everything is missing.
        namespace, unused = super().parse_known_args(args, namespace)
        if unused:
            raise UsageError(describe_unexpected(unused[0], self.hints, recipe_missing=self.recipe is None))
        # Here what recipes and command lines say comes together.
        for name, value in vars(namespace).items():
            setattr(namespace, name, at_home(value))
        return namespace, unused

    def remedy(self, key: str, prefix: str = "") -> str:
        """What to do about an option that there is not."""
        known = {*self.hints, *(accelerate_options() if self.launches else ())}
        return self.of_accelerate(key) or suggest(key, known, prefix)

    def passes_on(self, key: str) -> bool:
        """Whether this is an option of `accelerate launch` that may stand among those of the script."""
        return self.launches and key in accelerate_options()

    def of_accelerate(self, key: str) -> str | None:
        """How to give an option of `accelerate launch`, if it is one and the script can be started so."""
        if self.launched is None or self.launches or key not in accelerate_options():
            return None
        return f"It is an option of accelerate: accelerate launch --{key} ... -m {self.launched} --config RECIPE."

    def error(self, message: str) -> None:
        # argparse would print the usage of every option, several screens, before the one line that matters.
        raise UsageError(message[0].upper() + message[1:].rstrip(".") + ".")


@functools.cache
def accelerate_options() -> frozenset[str]:
    """Names of the options of `accelerate launch`, but for those that say what is launched."""
    from accelerate.commands.launch import launch_command_parser  # here: it imports PyTorch

    # Not its short ones, `-m` and the like.
    options = {option[2:].replace("-", "_") for option in launch_command_parser()._option_string_actions if option[2:]}
    return frozenset(options - {"help", "module", "no_python", "config_file"})


def _words(key: str, value: Any, recipe: Path) -> list[str]:
    """An option of `accelerate launch` in a recipe, as it stands on a command line."""
    if isinstance(value, bool):
        return [f"--{key}"] if value else []
    if not isinstance(value, (str, int, float)):
        raise UsageError(f"{recipe}: {key} must be text, a number, or true or false, got {value!r}.")
    return [f"--{key}", str(value)]


def without(names: Collection[str], argv: Iterable[str]) -> list[str]:
    """A command line without some options and their values."""
    left: list[str] = []
    kept = True
    for arg in argv:
        if arg.startswith("--"):
            kept = arg[2:].partition("=")[0].replace("-", "_") not in names
        if kept:
            left.append(arg)
    return left


def check_recipe(path: Path) -> dict:
    """Content of a recipe file, or a [`UsageError`] if there is none or it is not a flat YAML mapping."""
    recipe = read_yaml(path, "the recipe")
    if not isinstance(recipe, dict):
        raise UsageError(f"{path} must hold `key: value` lines, got {type(recipe).__name__}.")
    for key in recipe:
        if not isinstance(key, str):
            raise UsageError(f"{path}: a key must be text, got {key!r}.")
    if "env" in recipe:
        recipe["env"] = check_variables(path, recipe["env"])
    return recipe


# What would send a token elsewhere, run other code, or take off a guard: recipes are passed around, and read by few.
NOT_IN_RECIPES = re.compile(
    r"(?:HF|HUGGING_?FACE(?:_HUB)?|LD|DYLD|PIP|UV|CONDA|GIT|SSL|SSH|CURL|REQUESTS|BASH|XDG)(?:_.*)?|(?:PYTHON|TORCH|TRITON).*"
    r"|.*(?:PATH|HOME|PROXY|BASE|URLS?|URI|ENDPOINT|HOST|ADDR|SERVER|CERT|BUNDLE|COMMAND|PRELOAD|PLUGIN|COMPILER|EXECUTABLE)"
    r"|ENV|IFS|SHELL|TMPDIR|TEMP|TMP|EDITOR|PAGER|CC|CXX|NVCC|CFLAGS|CXXFLAGS|LDFLAGS",
    re.IGNORECASE,
)


def check_variables(path: Path, variables: Any) -> dict[str, str]:
    """The environment variables of a recipe's `env`, or a [`UsageError`] for one that a recipe must not set."""
    if not isinstance(variables, dict):
        raise UsageError(f"{path}: env must hold `NAME: value` lines, got {variables!r}.")
    for name, value in variables.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise UsageError(f"{path}: env: {name!r} is no name of an environment variable.")
        if NOT_IN_RECIPES.fullmatch(name):
            raise UsageError(
                f"{path}: env: a recipe must not set {name}, which can decide where tokens go or what code runs. Set it in "
                "the shell."
            )
        if type(value) not in (str, int, float):
            raise UsageError(f"{path}: env: {name} must be text or a number, got {json.dumps(value, default=str)}.")
    return {name: str(value) for name, value in variables.items()}


def at_home(value: Any) -> Any:
    """
    A value with `~` and `~user` at the beginning of a path replaced by the home folder as a shell does, also in
    `NAME=~/path`, in `NAME=KIND:~/path` and in lists. Of a user that there is not, it stays.
    """
    if isinstance(value, list):
        return [at_home(item) for item in value]
    if isinstance(value, str):
        prefix, path = split_path(value)
        return prefix + os.path.expanduser(path)
    return value


def relative_to(folder: Path, value: Any) -> Any:
    """
    Put `folder` before every path in a recipe's value that begins with `./`, in `NAME=./path`, `NAME=KIND:./path` and in
    lists too.
    """
    if isinstance(value, list):
        return [relative_to(folder, item) for item in value]
    if isinstance(value, str):
        prefix, path = split_path(value)
        if path.startswith("./"):
            return f"{prefix}{folder / path}"
    return value


def split_path(value: str) -> tuple[str, str]:
    """
    What stands before the path in a recipe's `NAME=KIND:PATH`, `NAME=PATH`, `KIND:PATH` or `PATH`, and the path. Before a
    kind may stand a strength, as in `NAME=strength:0.7:KIND:PATH`. Of a judge that is asked, `vlm:`, it is the path of its
    questions.
    """
    asked = re.match(r"(?:[\w.-]+=)?vlm:[^?]*\?(?:.*&)?questions=", value)
    prefix = (asked or re.match(r"(?:[\w.-]+=)?(?:strength:[^:/]*:)?(?:[a-z]+:)?", value)).group()
    return prefix, value[len(prefix) :]


def describe_unexpected(word: str, known: Iterable[str], recipe_missing: bool = False) -> str:
    """What to say of a word on the command line that no option takes, with what was probably meant."""
    key, equals, value = word.partition("=")
    key = key.lstrip("-").replace("-", "_")
    if equals and key in known:
        remedy = f"Write --{key} {value}."
    elif recipe_missing and word.endswith((".yaml", ".yml")):
        remedy = f"Write --config {word}."
    else:
        remedy = "Options are written --KEY VALUE; `--help` lists them."
    return f"Unexpected argument {word!r}. {remedy}"


def suggest(
    word: str, known: Iterable[str], prefix: str = "", otherwise: str = "`--help` lists the known ones."
) -> str:
    """The remedy of a misspelt word: the known ones that are like it, all of them if they are few, or `otherwise`."""
    known = sorted(known)
    like = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    like = like or [name for name in known if name.lower().startswith(word.lower())][:3]
    if like:
        return f"Did you mean {' or '.join(prefix + name for name in like)}?"
    return f"Known are {', '.join(prefix + name for name in known)}." if len(known) <= 40 else otherwise


def _options(hint: Any) -> tuple:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value may stand for a field of this type. Text that reads as a number may: YAML 1.1 takes 5e-5 for
    text, and argparse converts it. Of classes that are not listed here, such as enums, their constructor decides."""
    for option in _options(hint):
        origin, arguments = get_origin(option) or option, get_args(option)
        if origin is Literal:
            fits = value in arguments
        elif origin is list:
            fits = isinstance(value, list) and all(_fits(item, arguments[0] if arguments else Any) for item in value)
        elif origin in (int, float):
            number = isinstance(value, (int, origin)) and not isinstance(value, bool)
            fits = number or isinstance(value, str) and _reads_as(value, origin)
        elif origin in (str, bool, dict, types.NoneType):
            fits = isinstance(value, origin)
        else:
            fits = True
        if fits:
            return True
    return False


def _reads_as(text: str, number: type) -> bool:
    try:
        number(text)
    except ValueError:
        return False
    return True


def _describe(hint: Any) -> str:
    names = {types.NoneType: "null", str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    plural = {str: "texts", int: "whole numbers", float: "numbers"}

    def name(option: Any) -> str:
        if get_origin(option) is Literal:
            return "one of " + ", ".join(map(str, get_args(option)))
        if get_origin(option) is list:
            return f"a list of {plural.get(get_args(option)[0], 'values')}"
        return names.get(option, getattr(option, "__name__", str(option)))

    return " or ".join(map(name, _options(hint)))
