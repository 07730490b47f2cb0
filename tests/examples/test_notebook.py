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


"""The notebook runs from its first cell to its last, and what is committed is what such a run puts out."""

import base64
import importlib.util
import io
import re

import nbformat
import pytest
from PIL import Image

from ..conftest import ROOT


FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOK = FOLDER / "quickstart.ipynb"


def load_execute():
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(notebook):
    """Every cell was run and none failed; at the end there are pictures of both models and a row of numbers per judge."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert image.width > 64 and len(image.getcolors(1_000_000)) > 100
    *_, with_picture, last = code
    assert "image/png" in with_picture.outputs[-1].data
    numbers = re.findall(r"^(\w+).* ([-\d.]+) +([-\d.]+) +([-+]\d+\.\d+) ", last.outputs[-1].text, flags=re.MULTILINE)
    assert [name for name, *_ in numbers] == ["hpsv2", "pickscore", "aesthetic", "imagereward"]
    for _, base, tuned, difference in numbers:
        assert float(tuned) - float(base) == pytest.approx(float(difference), abs=0.0021)
    return numbers


def test_every_cell_runs():
    check(load_execute().execute(NOTEBOOK, num_prompts=12, max_steps=2, num_test_prompts=4))


def test_committed_outputs():
    numbers = check(nbformat.read(NOTEBOOK, as_version=4))
    assert all(float(difference) > 0 for *_, difference in numbers)
    text = NOTEBOOK.read_text()
    assert len(text) < 1_500_000
    # Nothing of the machine that ran it: no path, no time, no warning.
    assert not re.search(r"/(?:home|root|tmp|work|usr|Users|site-packages)\b", text)
    assert "Traceback" not in text and '"stderr"' not in text and "iopub" not in text


def test_warnings_between_two_lines(tmp_path):
    """However late they come, what is printed is one text."""
    notebook = nbformat.v4.new_notebook()
    lines = "import sys\nprint(n, flush=True)\nprint('careful', file=sys.stderr, flush=True)\nprint(n + 1)"
    notebook.cells = [
        nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(lines),
    ]
    nbformat.write(notebook, tmp_path / "n.ipynb")
    *_, cell = load_execute().execute(tmp_path / "n.ipynb", n=7).cells
    assert [(output.name, output.text) for output in cell.outputs] == [("stdout", "7\n8\n")]


def test_unknown_parameter():
    with pytest.raises(ValueError):
        load_execute().execute(NOTEBOOK, num_prompt=1)
