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


import json
import os
import pwd
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest

from craft_trl.errors import UsageError
from craft_trl.parser import CraftParser, at_home, relative_to, suggest


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


class TestHome:
    """`~` is the home folder wherever a path may stand, in a recipe and on the command line."""

    @pytest.fixture(autouse=True)
    def home(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/me")

    @pytest.mark.parametrize(
        ("written", "read"),
        [
            ("~/p.txt", "/home/me/p.txt"),
            ("~", "/home/me"),
            ("hps=~/w", "hps=/home/me/w"),
            ("base=lora:~/l", "base=lora:/home/me/l"),
            ("lora:~/l", "lora:/home/me/l"),
            ("half=strength:0.5:~/m", "half=strength:0.5:/home/me/m"),
            ("half=strength:0.5:lora:~/l", "half=strength:0.5:lora:/home/me/l"),
            ("mine=~/r.py:Reward", "mine=/home/me/r.py:Reward"),
            ("~nobody-of-this-name/p", "~nobody-of-this-name/p"),  # as a shell leaves it
            ("./~/p", "{folder}/~/p"),
            ("a~/p", "a~/p"),
            ("runs/~", "runs/~"),
            ("~ soft, ~/dreamy", "~ soft, ~/dreamy"),
        ],
    )
    def test_everywhere(self, tmp_path, written, read):
        text = json.dumps({"prompts": written, "names": [written, "x"]})
        settings = parse(text, tmp_path=tmp_path)
        read = read.format(folder=tmp_path)
        assert (settings.prompts, settings.names) == (read, [read, "x"])
        if not written.startswith("./"):
            args = ["--prompts", written, "--names", written, "x"]
            (settings,) = CraftParser([Settings]).parse_args_and_config(args)
            assert (settings.prompts, settings.names) == (read, [read, "x"])
            assert CraftParser([Settings]).parse_args_and_config([f"--prompts={written}"])[0].prompts == read

    def test_of_a_user(self):
        assert at_home("~root/p") == f"{pwd.getpwnam('root').pw_dir}/p"

    def test_the_recipe_itself(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "r.yaml").write_text("prompts: ./q.txt\n")
        for args in (["--config", "~/r.yaml"], ["--config=~/r.yaml"]):
            (settings,) = CraftParser([Settings]).parse_args_and_config(args)
            assert settings.prompts == f"{tmp_path}/q.txt"


class TestVariables:
    """What a recipe's `env` may set: nothing that could decide where tokens go or what code runs."""

    def test_harmless_ones(self, tmp_path, monkeypatch):
        names = {"WANDB_PROJECT": "craft", "OMP_NUM_THREADS": 2, "NCCL_TIMEOUT": 1.5, "PYTORCH_CUDA_ALLOC_CONF": "x:y"}
        for name in names:
            monkeypatch.setenv(name, "before")
        assert parse(f"env: {json.dumps(names)}\nsize: 3\n", tmp_path=tmp_path).size == 3
        assert {name: os.environ[name] for name in names} == {name: str(value) for name, value in names.items()}

    @pytest.mark.parametrize(
        "name",
        "HF_ENDPOINT HF_TOKEN hf_home HUGGING_FACE_HUB_TOKEN HUGGINGFACE_HUB_CACHE LD_PRELOAD LD_LIBRARY_PATH DYLD_INSERT_LIBRARIES "
        "PYTHONPATH PYTHONSTARTUP PYTHONINSPECT PATH HOME http_proxy HTTPS_PROXY ALL_PROXY OPENAI_BASE_URL OPENAI_API_BASE "
        "WANDB_BASE_URL MLFLOW_TRACKING_URI SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE GIT_SSH_COMMAND BASH_ENV CC CUDA_HOME "
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD TORCH_HOME TRITON_PTXAS_PATH NCCL_NET_PLUGIN XDG_CACHE_HOME TMPDIR".split(),
    )
    def test_refused(self, tmp_path, monkeypatch, name):
        before = dict(os.environ)
        with pytest.raises(UsageError, match=f"recipe.yaml: env: a recipe must not set {name}, .*Set it in the shell"):
            parse(f"env:\n  OMP_SCHEDULE: static\n  {name}: x\n", tmp_path=tmp_path)
        assert dict(os.environ) == before

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{A: [1]}", r"env: A must be text or a number, got \[1\]"),
            ("{A: null}", "env: A must be text or a number, got null"),
            ("{A: yes}", "env: A must be text or a number, got true"),
            ("{A=B: x}", "env: 'A=B' is no name of an environment variable"),
            ("{1: x}", "env: 1 is no name of an environment variable"),
        ],
    )
    def test_wrong(self, tmp_path, text, message):
        with pytest.raises(UsageError, match=message):
            parse(f"env: {text}\n", tmp_path=tmp_path)


class TestCraftParser:
    def test_a_recipe_is_utf_8_whatever_the_locale(self, tmp_path):
        script = (
            "import sys; from craft_trl.texts import read_yaml; "
            "print(ascii(read_yaml(sys.argv[1], 'the recipe')), sys.stdout.encoding)"
        )
        (tmp_path / "r.yaml").write_bytes("\ufeffprompts: café.txt\r\n".encode())
        environment = os.environ | {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        command = [sys.executable, "-c", script, str(tmp_path / "r.yaml")]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert output.startswith("{'prompts': 'caf\\xe9.txt'} ") and "utf" not in output.lower()
        (settings,) = CraftParser([Settings]).parse_args_and_config(["--config", str(tmp_path / "r.yaml")])
        assert settings.prompts == "café.txt"

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
            ("size: 1\nscale: 2\nsize: 3\n", "line 3: the key 'size' is there twice, first in line 1"),
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
