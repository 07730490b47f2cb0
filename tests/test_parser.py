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


from dataclasses import dataclass, field
from typing import Literal

import pytest

from craft_trl.errors import UsageError
from craft_trl.parser import CraftParser, relative_to, suggest


@dataclass
class Settings:
    prompts: str = field(default="p.txt", metadata={"help": "100 %% of the prompts"})
    num_variants: int = 8
    scale: float = 1.0
    level: Literal["group", "image"] = "group"
    names: list[str] = field(default_factory=list)
    weights: list[float] | None = None
    size: int | None = None
    flag: bool = True


def parse(text, *args, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    return CraftParser([Settings]).parse_args_and_config(["--config", str(recipe), *args])[0]


class TestCraftParser:
    def test_recipe_and_command_line(self, tmp_path):
        settings = parse("num_variants: 3\nnames: [a, b]\nscale: 5e-5\n", "--num_variants", "4", tmp_path=tmp_path)
        assert settings == Settings(num_variants=4, names=["a", "b"], scale=5e-5)

    def test_null_and_no_flags(self, tmp_path):
        settings = parse("size: null\nweights: [1, 2.5]\n", "--no_flag", tmp_path=tmp_path)
        assert settings == Settings(weights=[1, 2.5], flag=False)

    def test_paths_beside_the_recipe(self, tmp_path):
        settings = parse("prompts: ./a/p.txt\nnames: ['hps=./rewards/hps', runs/x]\n", tmp_path=tmp_path)
        assert settings.prompts == f"{tmp_path}/a/p.txt"
        assert settings.names == [f"hps={tmp_path}/rewards/hps", "runs/x"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("num_variant: 3", "unknown key 'num_variant'. Did you mean num_variants"),
            ("xyzzy: 3", "unknown key 'xyzzy'. Known are flag, level, "),
            ("num_variants: eight", "num_variants must be a whole number, got 'eight'"),
            ("num_variants: 2.5", "num_variants must be a whole number, got 2.5"),
            ("num_variants: true", "num_variants must be a whole number, got True"),
            ("num_variants: [1]", r"num_variants must be a whole number, got \[1\]"),
            ("num_variants: null", "num_variants must be a whole number, got None"),
            ("scale: fast", "scale must be a number, got 'fast'"),
            ("prompts: 3", "prompts must be text, got 3"),
            ("flag: maybe", "flag must be true or false, got 'maybe'"),
            ("level: batch", "level must be one of group, image, got 'batch'"),
            ("names: a", "names must be a list of texts, got 'a'"),
            ("names: [1]", r"names must be a list of texts, got \[1\]"),
            ("weights: [a]", r"weights must be a list of numbers or null, got \['a'\]"),
            ("a: 1\nb: 2\nc: 3\nd: 4", "unknown keys 'a', 'b', 'c' and 1 more. Is it a recipe of another command?"),
            ("1: 2", "a key must be text, got 1"),
            ("env: 3", "env must hold `NAME: value` lines, got 3"),
            ("- a\n- b", "must hold `key: value` lines, got list"),
            ("a: [", "is not YAML"),
        ],
    )
    def test_bad_recipes_name_file_key_and_remedy(self, tmp_path, text, message):
        with pytest.raises(UsageError, match=message) as error:
            parse(text, tmp_path=tmp_path)
        assert str(error.value).startswith(str(tmp_path / "recipe.yaml"))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--num_variant", "3"], "Unknown argument --num_variant. Did you mean --num_variants"),
            (["--num_variants", "x"], "invalid int value: 'x'"),
            (["--level", "batch"], "invalid choice: 'batch'"),
            (["--num_variants"], "expected one argument"),
            (["--config"], "needs the path of a recipe"),
            (["--config", "a.yaml", "--config", "b.yaml"], "--config is given twice"),
            (["--config=nothing.yaml"], "Cannot read the recipe nothing.yaml: No such file"),
            (["--names", "a", "--size", "1", "--names", "b"], "write all its values after one, --names A B"),
            (["stray"], "Unexpected argument 'stray'. Options are written --KEY VALUE"),
            (["--size", "1", "-x"], "Unexpected argument '-x'"),
            (["num-variants=3"], "Unexpected argument 'num-variants=3'. Write --num_variants 3."),
            (["recipes/a.yaml"], "Unexpected argument 'recipes/a.yaml'. Write --config recipes/a.yaml."),
            (["--config", "nothing.yaml"], "Cannot read the recipe nothing.yaml: No such file"),
        ],
    )
    def test_bad_command_lines(self, args, message):
        with pytest.raises(UsageError, match=message):
            CraftParser([Settings]).parse_args_and_config(args)

    def test_the_last_of_a_repeated_value_counts(self):
        assert CraftParser([Settings]).parse_args_and_config(["--size", "1", "--size", "2"])[0].size == 2

    def test_help(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            CraftParser([Settings]).parse_args_and_config(["--help"])
        assert "100 % of the prompts" in capsys.readouterr().out


def test_relative_to(tmp_path):
    assert relative_to(tmp_path, "./a") == f"{tmp_path}/a"
    assert relative_to(tmp_path, ["sd-1.5=./a", "l=lora:./a"]) == [f"sd-1.5={tmp_path}/a", f"l=lora:{tmp_path}/a"]
    assert relative_to(tmp_path, ["n=./a:b", "n=a", "x y=./a"]) == [f"n={tmp_path}/a:b", "n=a", "x y=./a"]
    assert relative_to(tmp_path, 3) == 3


def test_suggest_says_where_to_look():
    assert suggest("zzz", [f"option_{i}" for i in range(50)]) == "`--help` lists the known ones."
