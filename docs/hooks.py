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
Builds the pages of hf-doc-builder with mkdocs: `_toctree.yml`, `[[autodoc]]`, cross references and docstrings.

hf-doc-builder itself makes HTML only with the Svelte kit of its repository and packages of npm.
"""

import os.path
import re
from pathlib import Path

import griffe
import yaml
from mkdocs.structure.files import File, InclusionLevel

from craft_trl import _EXPORTS


ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "docs" / "source"
# `[[autodoc]] Name` with the list of methods below it, and the heading above it if that is the same name.
AUTODOC = re.compile(r"(?:^## (\w+)\n+)?^\[\[autodoc\]\] (\w+)((?:\n    - \w+)*)$", re.MULTILINE)
REFERENCE = re.compile(r"\[`~?([\w.]+)`\](?![(\[])")  # [`CraftTrainer`] and [`~transformers.Trainer`]
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")  # the file of a relative link
SECTION = re.compile(r"(Args|Parameters|Returns|Raises|Attributes|Examples):")
PARAMETER = re.compile(r"    ([\w, ]+?)(?: \((.*)\))?:")
# Public name -> the methods that its `[[autodoc]]` names, if any.
DOCUMENTED = {
    name: methods.replace("-", " ").split()
    for path in SOURCE.rglob("*.md")
    for _, name, methods in AUTODOC.findall(path.read_text())
}


def on_config(config):
    sections = yaml.safe_load((SOURCE / "_toctree.yml").read_text())
    config.nav = [
        {section["title"]: [{page["title"]: page["local"] + ".md"} for page in section["sections"]]}
        for section in sections
    ]
    return config


def on_files(files, config):
    """Adds the style sheet, and a page for each file of the repository that the pages lead to."""
    files.append(File.generated(config, "style.css", abs_src_path=str(ROOT / "docs" / "style.css")))
    pages = [(path, path.read_text()) for path in SOURCE.rglob("*.md")]
    for path, text in pages:  # grows: what a page of the repository leads to is there too
        for target in LINK.findall(text):
            target = Path(os.path.normpath(path.parent / target))
            if target.exists() and uri(target) not in files.src_uris:
                pages.append((target, contents(target)))
                level = InclusionLevel.NOT_IN_NAV
                files.append(File.generated(config, uri(target), content=pages[-1][1], inclusion=level))
    return files


def uri(path):
    """Where a file of the repository is in the site's sources."""
    if path.is_relative_to(SOURCE):
        return path.relative_to(SOURCE).as_posix()
    return f"repository/{path.relative_to(ROOT).as_posix().removesuffix('.md')}.md"


def contents(path):
    """A file of the repository as a page."""
    if path.suffix == ".md":
        return path.read_text()
    title = f"# {path.relative_to(ROOT)}\n\n"
    if path.is_dir():
        return title + "\n".join(f"- [{file.name}]({path.name}/{file.name})" for file in sorted(path.iterdir()))
    return f"{title}````{path.suffix[1:]}\n{path.read_text()}\n````\n"


def on_page_markdown(markdown, page, config, files):
    folder = Path(page.file.src_uri).parent
    path = folder.relative_to("repository") if folder.is_relative_to("repository") else Path("docs/source", folder)

    def link(match):
        target = Path(os.path.normpath(ROOT / path / match[1]))
        return os.path.relpath(uri(target), folder) if target.exists() else match[1]

    if page.file.src_uri.endswith((".py.md", ".yaml.md")):
        return markdown
    return references(AUTODOC.sub(autodoc, LINK.sub(link, markdown)))


def autodoc(match):
    """mkdocstrings' directive. A heading above it with the same name is left to mkdocstrings."""
    heading, name, methods = match.groups()
    lines = [] if heading in (None, name) else [f"## {heading}", ""]
    lines += [f"::: craft_trl.{name}", "    options:"]
    if name.endswith("Config"):  # its signature would be the list of parameters once more
        lines += ["      show_signature: false", "      separate_signature: false"]
    members = DOCUMENTED[name] or "false"
    lines += [f"      members: {members}", f"      inherited_members: {members}"]
    return "\n".join(lines)


def references(text):
    """Links to what is documented; what is not is set as code."""

    def reference(match):
        name, _, method = match[1].partition(".")
        known = name in DOCUMENTED and (not method or method in DOCUMENTED[name])
        return f"[`{match[1]}`][craft_trl.{match[1]}]" if known else f"`{match[1]}`"

    return REFERENCE.sub(reference, text)


class HuggingFaceDocstrings(griffe.Extension):
    """Puts the public names into the package, where they are imported on first use, and docstrings into Markdown."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)

    def on_package(self, *, pkg, **kwargs):
        for name, module in _EXPORTS.items():
            pkg.set_member(name, griffe.Alias(name, f"craft_trl.{module}.{name}"))


def to_markdown(docstring):
    """Sections of a docstring become headings, parameters a definition list."""
    lines, section = [], None
    for line in docstring.splitlines():
        if line and not line.startswith(" "):
            section = (match := SECTION.fullmatch(line)) and match[1].replace("Args", "Parameters")
            lines.append(f"**{section}**\n" if section else line)
        elif section in (None, "Returns", "Examples"):
            lines.append(line.removeprefix("    ") if section else line)
        elif parameter := PARAMETER.fullmatch(line):
            name, kind = parameter.groups()
            lines.append(f"\n`{name}`{f' ({kind})' if kind else ''}\n:   ")
        elif lines[-1].endswith(":   "):
            lines[-1] += line.strip()
        elif line.startswith("    > "):  # a heading among the parameters
            lines.append(f"*{line[6:]}*")
        else:
            lines.append(line.removeprefix("    "))
    return references("\n".join(lines))
