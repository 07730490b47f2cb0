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
Run the notebooks of this folder and write them back with what they put out, so that it can be read without running them.

```bash
python examples/notebooks/execute.py
```
"""

import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode


def execute(notebook: Path, **parameters: int) -> NotebookNode:
    """
    A notebook with its outputs, run from the first cell to the last in a folder of its own.

    Args:
        notebook (`Path`):
            File to run. It is left as it is.
        parameters (`int`):
            Values of names that the cell tagged `parameters` sets, in place of its own.

    Returns:
        [`~nbformat.NotebookNode`]: the notebook as it is in the file, with outputs. What cells write to stderr, which
        is progress and warnings, is left out, as are the times of execution.
    """
    content = nbformat.read(notebook, as_version=4)
    (cell,) = [cell for cell in content.cells if "parameters" in cell.metadata.get("tags", [])]
    source, lines = cell.source, cell.source.splitlines()
    for name, value in parameters.items():
        (i,) = [i for i, line in enumerate(lines) if line.startswith(f"{name} =")]
        lines[i] = f"{name} = {value}"
    cell.source = "\n".join(lines)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            content, timeout=900, kernel_name="python3", record_timing=False, resources={"metadata": {"path": folder}}
        )
        kernel = client.create_kernel_manager()
        kernel.transport, kernel.ip = "ipc", f"{folder}/kernel"  # files that only this user can open, no ports
        # DeepSpeed, where it is installed, is told what it would otherwise say that it found.
        client.execute(env=os.environ | {"TQDM_DISABLE": "1", "DS_ACCELERATOR": "cpu"})
    cell.source = source
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = joined([output for output in cell.outputs if output.get("name") != "stderr"])
            for output in cell.outputs:
                output.get("data", {}).pop("image/jpeg", None)  # the same picture once more
    # The version of Python that ran it says nothing to a reader.
    content.metadata.language_info = {"name": "python"}
    return content


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """What a cell printed as one text, where something on stderr had come between."""
    together: list[NotebookNode] = []
    for output in outputs:
        if together and output.output_type == together[-1].output_type == "stream":
            together[-1].text += output.text
        else:
            together.append(output)
    return together


def main() -> None:
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        start = time.monotonic()
        nbformat.write(execute(path), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB ({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    main()
