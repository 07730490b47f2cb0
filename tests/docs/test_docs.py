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


"""The pages of the documentation: all of them in the table of contents, all public names in them, no link that leads nowhere."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

import craft_trl


ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "docs" / "source"
PAGES = sorted([ROOT / "README.md", *SOURCE.rglob("*.md")])
TOCTREE = yaml.safe_load((SOURCE / "_toctree.yml").read_text())
AUTODOC = [
    (match[1], re.findall(r"- (\w+)", match[2]))
    for page in PAGES
    for match in re.finditer(r"^\[\[autodoc\]\] (\S+)((?:\n    - \w+)*)$", page.read_text(), flags=re.MULTILINE)
]


def prose(page):
    """A page without its code blocks."""
    return re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_table_of_contents_has_every_page_once():
    for section in TOCTREE:
        assert set(section) == {"title", "sections"}
        assert all(set(page) == {"local", "title"} for page in section["sections"])
    listed = [page["local"] for section in TOCTREE for page in section["sections"]]
    assert sorted(listed) == sorted(
        path.relative_to(SOURCE).with_suffix("").as_posix() for path in SOURCE.rglob("*.md")
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_begins_with_its_only_title(page):
    assert page.read_text().startswith("# ") and len(re.findall(r"^# ", prose(page), flags=re.MULTILINE)) == 1


def test_every_public_name_is_documented_once():
    assert sorted(name for name, _ in AUTODOC) == sorted(set(craft_trl.__all__) - {"__version__"})


@cache
def classes():
    """All classes of the package, as they are written. Nothing is imported."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "craft_trl").rglob("*.py"))
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def methods(name):
    """Methods with a docstring of a class, those of its bases in the package included."""
    node = classes()[name]
    own = {part.name for part in node.body if isinstance(part, ast.FunctionDef) and ast.get_docstring(part)}
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in classes()]
    return own.union(*map(methods, bases))


@pytest.mark.parametrize(("name", "listed"), [(name, listed) for name, listed in AUTODOC if listed])
def test_listed_methods_exist(name, listed):
    assert set(listed) <= methods(name)


def test_all_that_a_family_may_say_is_documented():
    (listed,) = (listed for name, listed in AUTODOC if name == "Family")
    assert set(listed) == methods("Family")


def anchors(page):
    """Of the headings that have the same anchor on GitHub and in the site."""
    headings = [re.sub(r"[`*]", "", heading) for heading in re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)]
    github = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return {anchor for anchor in github if anchor.isascii() and "--" not in anchor}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)#?([^)\s:]*)\)", prose(page)):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_cross_references_are_documented(page):
    for name in re.findall(r"\[`(\w+)`\](?![(\[])", prose(page)):
        assert name in craft_trl.__all__, name
