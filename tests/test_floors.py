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

"""The order in which modules may import each other: the contracts of import-linter in setup.cfg."""

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from .conftest import ROOT


def test_contracts(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename=str(ROOT / "setup.cfg"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_what_they_would_find(tmp_path, capsys, monkeypatch):
    """An import that goes up, and a circle within a room, in a package with the same contracts."""
    package = tmp_path / "package"
    for room in ("cli", "crf", "pages"):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "crf" / "one.py").write_text("from package.cli import main\nfrom package.crf import two\n")
    (package / "crf" / "two.py").write_text("from package.crf import one\n")
    (package / "cli" / "main.py").touch()
    contracts = (ROOT / "setup.cfg").read_text().partition("[importlinter]")[2].replace("craft_trl", "package")
    contracts = contracts.replace("exhaustive = True", "").partition("exhaustive_ignores")
    rest = contracts[2][contracts[2].index("[importlinter") :]
    layers = "layers =\n    cli\n    crf\n    pages\n\n"
    before = contracts[0][: contracts[0].index("layers =\n")]
    (tmp_path / "setup.cfg").write_text("[importlinter]" + before + layers + rest)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert lint_imports(config_filename="setup.cfg", no_cache=True) != EXIT_STATUS_SUCCESS
    said = capsys.readouterr().out
    assert "0 kept, 2 broken" in said and "package.crf is not allowed to import package.cli" in said
