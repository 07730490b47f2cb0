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


import gc
import importlib.util
import os
import shutil
from pathlib import Path

import hypothesis
import pytest
import yaml


# Before any library is imported: nothing in the suite may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As `craft` does, before the libraries are imported that read them.
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Threads that wait must not spin: on a busy machine of few cores that makes PyTorch twenty times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# One thread each, as pytest's workers share the cores; and without workers too, since the last bits depend on the number of
# threads, and the programs that tests start (preload.py) have one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: a busy machine must not fail a test. Derandomised: a failure can be repeated.
hypothesis.settings.register_profile("craft_trl", deadline=None, derandomize=True)
hypothesis.settings.load_profile("craft_trl")

ROOT = Path(__file__).parents[1]
TINY = ROOT / "recipes" / "tiny"
# Programs that tests start find this package, and the tests, wherever they stand.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


# The files that take longest begin first: one that began last would leave the other workers with nothing to do.
LONGEST = (
    "distributed/test_executors.py",
    "distributed/test_same_training.py",
    "trainer/test_trainer.py",
    "distributed/test_generate.py",
    "bakeoff/test_bakeoff.py",
    "benchmarks/test_gpu.py",
    "hub/test_hub.py",
    "scripts/test_fetch.py",
    "scripts/test_killed.py",
    "recipes/test_tiny_build.py",
    "distributed/test_same_evaluation.py",
    "trainer/test_guard.py",
    "cli/test_cli.py",
    "examples/test_notebook.py",
    "examples/test_pictures.py",
    "cli/test_startup.py",
)


# What stands beside the package, and takes minutes: `make test-tools`.
TOOLS = ("benchmarks", "examples", "recipes/test_tiny_build.py")


def pytest_collection_modifyitems(items):
    for item in items:
        if any(item.path.is_relative_to(ROOT / "tests" / place) for place in TOOLS):
            item.add_marker(pytest.mark.tools)
    order = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_collection_finish():
    """What is imported by now stays. To look through it for garbage, as each stage's end does, takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny() -> Path:
    """Folder of the tiny recipe with its models, rewards and prompts."""
    return TINY


def load_benchmark(name: str):
    """A file of `benchmarks/`, as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")  # where Python finds what stands beside a script
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def benchmark_train():
    return load_benchmark("train")


@pytest.fixture(scope="session")
def benchmark_memory():
    return load_benchmark("memory")


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Every test stands in an empty folder of its own, so that `runs/` never lands in the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipes(tiny, tmp_path):
    """A copy of the tiny recipes, small enough to run in seconds, with a function that changes a key of one."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in ("pipeline", "rewards", "evaluators", "prompts", "inspector.py"):
        (folder / name).symlink_to(tiny / name)
    for name in ("candidates.yaml", "craft.yaml", "evaluate.yaml"):
        shutil.copy(tiny / name, folder)

    def edit(name, **changes):
        path = folder / f"{name}.yaml"
        content = {**yaml.safe_load(path.read_text()), **changes}
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value != "DELETE"}))
        return path

    edit("candidates", num_prompts=6, batch_size=4, num_inference_steps=2)
    guard = {key: "DELETE" for key in yaml.safe_load((folder / "craft.yaml").read_text()) if key.startswith("guard_")}
    edit("craft", max_steps=2, global_batch_size=4, per_device_train_batch_size=4, held_out_rewards="DELETE", **guard)
    edit("evaluate", num_prompts=4, batch_size=4, num_inference_steps=2, num_bootstrap=50)
    edit.folder = folder
    return edit
