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
Tasks on datatrove's executors, each of them real: the same rows as one process makes, bit for bit; what is killed is done again
and nothing else.
"""

import importlib.util
import json
import multiprocessing
import os
import shutil
import threading
import time
from pathlib import Path, PurePosixPath

import psutil
import pyarrow.parquet as pq
import pytest

from craft_trl.candidates.groups import load_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.candidates.shared import SharedFolder, open_shared
from craft_trl.cli.main import main


pytest.importorskip("datatrove")
import dill  # noqa: E402 - which datatrove brings


NAMES = ["hpsv2", "pickscore", "aesthetic"]
SLURM = Path(__file__).parents[1] / "slurm"


JUDGE = """
import os
from pathlib import Path


class Judge:
    def __init__(self):
        with Path(__file__).with_name("loads").open("a") as file:
            file.write(f"{os.getpid()}\\n")

    def __call__(self, images, prompts):
        return [sum(image.convert("L").histogram()[128:]) for image in images]
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny):
    """A run of six prompts whose pool one process has filled, and its recipe's options. One of the judges counts its loads."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "judge.py").write_text(JUDGE)
    options = ["--config", str(tiny / "candidates.yaml"), "--num_prompts", "6", "--num_inference_steps", "1"]
    options += ["--rewards", f"hpsv2={tiny / 'rewards/hps'}", f"pickscore={folder / 'judge.py'}:Judge"]
    options += [f"aesthetic={tiny / 'rewards/aesthetic'}", "--batch_size", "2", "--output_dir"]
    assert main(["expand", *options, str(folder)]) == 0 and main(["generate", *options, str(folder)]) == 0
    assert loads((folder, options)) == [os.getpid()]
    return folder, options


def loads(reference) -> list[int]:
    """The processes that have loaded the judges since this was asked last, once for each time."""
    file = reference[0] / "loads"
    lines = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return list(map(int, lines))


@pytest.fixture
def run(reference, tmp_path):
    """A run before anything was drawn: a function of what is to be said besides."""
    folder, options = reference
    shutil.copytree(folder / "prompts", tmp_path / "run" / "prompts")
    return lambda *said: main(["generate", *options, str(tmp_path / "run"), *said])


def assert_same(reference, folder="run/pool", doubles=False):
    """The rows, scores and images of one process, each made once."""
    one, tasks = (CandidatePool(path, NAMES) for path in (reference[0] / "pool", Path(folder)))
    assert one.scores.keys() == tasks.scores.keys()
    assert all(one.scores[key].tobytes() == tasks.scores[key].tobytes() for key in one.scores)
    assert list(one.images(one.scores)) == list(tasks.images(one.scores))
    rows = sum(pq.read_metadata(path).num_rows for path in Path(folder).glob("shard-*.parquet"))
    assert rows == len(one) or doubles and rows > len(one)
    assert json.loads((Path(folder) / "stage.json").read_text())["finished"]
    assert not list(Path(folder).glob(".*"))


def taken(pool="run/pool") -> dict[str, bytes]:
    """By task and worker: what the worker has noted of the task."""
    return {path.name: path.read_bytes() for path in Path(pool).glob("tasks/*/taken/*")}


def when(pattern: str, number: int, action) -> None:
    """Do something, on a thread, as soon as there are so many files of the pool."""

    def watch():
        while len(list(Path("run/pool").glob(pattern))) < number:
            time.sleep(0.005)
        action()

    threading.Thread(target=watch, daemon=True).start()


def test_one_of_two_workers_is_killed(run, reference, capfd):
    """The other one does all tasks but the one that was under way, with the models that it has."""
    when("shard-*.parquet", 1, lambda: multiprocessing.active_children()[0].kill())
    loads(reference)
    with pytest.raises(SystemExit, match="^1$"):
        run("--executor", "local", "--tasks", "3", "--workers", "2")
    said, notes, loaded = capfd.readouterr().out, taken(), loads(reference)
    (left,) = [int(name.partition("-")[0]) for name, note in notes.items() if note != b"done"]
    assert len(notes) == 3 and {name.partition("-")[0] for name in notes} == {"0", "1", "2"}
    assert f"1 of 3 tasks are left ({left}): run the same command again" in said
    assert said.count(" ended by signal 9\n") == 1 and said.count("images made and scored\n") == 2
    assert len(loaded) == len(set(loaded)) <= 2 and os.getpid() not in loaded
    rows = len(CandidatePool("run/pool", NAMES))
    before = {path.name: path.stat().st_mtime_ns for path in Path("run/pool").glob("shard-*.parquet")}
    assert run("--executor", "local", "--tasks", "3") == 0
    said = capfd.readouterr().out
    assert "1 of 3 tasks are to be done by the executor local" in said and taken() == {f"{left}-0": b"done"}
    assert said.count("images made and scored\n") == 1  # the task that was left, and no other
    assert f"{len(CandidatePool('run/pool', NAMES)) - rows} images made and scored, " in said
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in Path("run/pool").glob("shard-*.parquet")}.items()
    assert_same(reference)
    # Without an executor there is nothing left to do either.
    assert run() == 0 and "done before" in capfd.readouterr().out


def test_a_folder_behind_fsspec(run, reference, capfd, tmp_path):
    """In the memory that fsspec keeps, as it would be in a bucket. Some of it was made here, some by another number of tasks."""
    shared = f"memory://{tmp_path.name}/pool"
    assert run("--tasks", "4", "--task", "1", "--shared_dir", shared) == 0
    said = capfd.readouterr().out
    assert "[generate] task 1 of 4: " in said and not Path("run/pool").exists()
    assert run("--tasks", "4", "--task", "2") == 0  # into the pool of this machine
    loads(reference)
    assert run("--executor", "local", "--tasks", "3", "--shared_dir", shared) == 0
    assert loads(reference) == [os.getpid()]  # once for two tasks
    # Groups 1 and 5, and 2, were there: task 2 of 3 has nothing to do.
    names = SharedFolder(shared).names("shard-*")
    assert {name.split("-")[2].partition("x")[0] for name in names} == {"1of4", "2of4", "0of3", "1of3"}
    assert_same(reference)
    pool = open_shared(shared, NAMES)
    assert pool.scores.keys() == CandidatePool("run/pool", NAMES).scores.keys()
    assert list(pool.images(pool.scores)) == list(CandidatePool("run/pool", NAMES).images(pool.scores))
    # A shard that was damaged on its way is set aside, there as well as here, and its rows are made again.
    folder = SharedFolder(shared)
    name = folder.names("shard-*.parquet")[0]
    folder.write(name, folder.read(name)[:-100])
    shutil.rmtree("run/pool")
    assert run("--shared_dir", shared) == 0
    assert "is damaged and set aside" in capfd.readouterr().out
    assert_same(reference)
    assert len(open_shared(shared, NAMES)) < len(pool) and folder.names("*.damaged") == [
        name.replace("parquet", "damaged")
    ]
    assert run("--executor", "local", "--shared_dir", shared, "--tasks", "2") == 0
    # Another model must not be drawn into it, neither by who starts tasks nor by a task that is under way.
    assert run("--tasks", "4", "--task", "1", "--shared_dir", shared, "--guidance_scale", "3") == 2
    assert "was filled under other settings (sampling.guidance_scale was" in capfd.readouterr().err
    folder.write("stage.json", folder.read("stage.json").replace(b'"fingerprint": "', b'"fingerprint": "0'))
    assert run("--tasks", "4", "--task", "1", "--shared_dir", shared) == 2


def test_slurm(run, reference, capfd, monkeypatch):
    """What datatrove submits, run by a stand-in for Slurm."""
    monkeypatch.setenv("PATH", f"{SLURM}:{os.environ['PATH']}")
    slurm = [
        "--executor",
        "slurm",
        "--tasks",
        "2",
        "--workers",
        "1",
        "--executor_args",
        "partition=gpu",
        "time=12:00:00",
    ]
    slurm += ["cpus_per_task=4", 'sbatch_args={"account": "me"}', "--shared_dir", "nas"]
    assert run(*slurm, "--dry_run", "true") == 0
    script = capfd.readouterr().out
    for line in ("partition=gpu", "time=12:00:00", "gpus=1", "cpus-per-task=4", "account=me", "array=0-0%1"):
        assert f"#SBATCH --{line}\n" in script, line
    assert not list(Path("nas").glob("shard-*"))
    # The time of the job is up: the same command submits what it has left, once the job has ended.
    Path("time-is-up").touch()
    assert run(*slurm) == 0
    assert capfd.readouterr().out.endswith("at the end to go on from here.\n")
    made = len(CandidatePool("run/pool", NAMES))
    assert 0 < made < len(CandidatePool(reference[0] / "pool", NAMES)) and taken("nas") == {"0-0": b""}
    Path("time-is-up").unlink()
    Path("job-7-is-at-work").touch()
    assert run(*slurm) == 0
    said = capfd.readouterr().out
    assert "2 of 2 tasks are to be done" in said and "[generate] job 7 is at work. To submit what it leaves" in said
    assert len(CandidatePool("run/pool", NAMES)) == made
    Path("job-7-is-at-work").unlink()
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert run(*slurm) == 2
    assert "Slurm did not take the job: " in capfd.readouterr().err
    monkeypatch.setenv("PATH", path)
    loads(reference)
    assert run(*slurm) == 0
    assert taken("nas") == {"0-0": b"done", "1-0": b"done"} and len(loads(reference)) == 1
    assert_same(reference)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
def test_ray_worker_is_killed(run, reference, monkeypatch):
    """Ray's own worker, which Ray and datatrove start again: it does the task that it had taken. What it left behind ends."""
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # it would end workers for what other tests take
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    left = []

    def kill():  # before it has imported much, which would take most of the time of this test
        named = [
            process for process in psutil.Process().children(True) if process.name().startswith("ray::RankWorker")
        ]
        # The process that one starts for its work has its name too.
        worker = next(process for process in named if process.parent() not in named)
        left.extend([worker, *worker.children(True)])
        worker.kill()

    when("tasks/*/taken/*", 2, kill)
    loads(reference)
    options = ["gpus_per_task=0", "mem_per_cpu_gb=0.1"]
    assert run("--executor", "ray", "--tasks", "2", "--workers", "2", "--executor_args", *options) == 0
    assert len(left) > 2 and psutil.wait_procs(left, 10)[1] == []
    assert taken() == {"0-0": b"done", "1-1": b"done"}
    loaded = loads(reference)
    assert len(loaded) == len(set(loaded)) in (2, 3)
    assert_same(reference, doubles=True)  # of the process that was left behind, if it was fast
    pool, groups = CandidatePool("run/pool", NAMES), load_groups("run/prompts/groups.jsonl")
    once = 0
    for task in range(2):
        shards = Path("run/pool").glob(f"shard-*-{task}of2x*")
        once += sum(pq.read_metadata(path).num_rows for path in shards) == sum(
            key in pool for group in groups[task::2] for key in group.keys
        )
    assert once >= 1  # the other worker's


def test_jobs(run, reference, capfd, tmp_path, monkeypatch):
    shared = f"memory://{tmp_path.name}/jobs"
    jobs = ["--executor", "jobs", "--tasks", "2", "--shared_dir", shared, "--executor_args", "flavor=a100-large"]
    jobs += ['dependencies=["craft_trl[executors]"]', "timeout=2h", "poll_interval=1", "secrets=MINE", "namespace=me"]
    monkeypatch.setenv("MINE", "s3cret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert run(*jobs) == 2
    assert "is a path of this machine, which Jobs do not see: put it on the Hub" in capfd.readouterr().err
    monkeypatch.setattr("craft_trl.scripts.generate.check_reached", lambda *args, **kwargs: None)  # the model is here
    assert run(*jobs, "--dry_run", "true") == 0
    out = capfd.readouterr().out
    said = json.loads(out[out.index("{") :])
    assert said["jobs"] == 2 and said["flavor"] == "a100-large" and said["timeout"] == "2h"
    assert said["secrets"] == ["HF_TOKEN", "MINE"] and "s3cret" not in out and "hf_secret" not in out
    # What a Job does: it reads the pickle that it was given, and does the tasks of its number.
    folder, pickled = (
        SharedFolder(shared),
        said["command"][1].removeprefix(f"/{tmp_path.name}/jobs/").partition("jobs/")[2],
    )
    for name in ("executor.pik", "executor.json"):
        content = folder.read(str(Path(pickled).with_name(name)))
        assert b"s3cret" not in content and b"hf_secret" not in content
    monkeypatch.chdir("/")
    for job in range(2):
        monkeypatch.setenv("DATATROVE_JOB_ARRAY_INDEX", str(job))
        dill.loads(folder.read(pickled)).run()
    monkeypatch.chdir(tmp_path)
    assert run("--shared_dir", shared) == 0 and "shards fetched from memory://" in capfd.readouterr().out
    assert_same(reference)


def test_mistakes(run, capfd, monkeypatch, tmp_path):
    """One line each, and nothing is lost."""
    file = tmp_path / "file"
    file.touch()
    for said, message in {
        "--executor cloud": "Argument --executor: invalid choice: 'cloud'",
        "--tasks 4": "tasks has no effect without an executor",
        "--workers 4": "workers has no effect without an executor",
        "--dry_run true": "dry_run has no effect without an executor",
        "--executor_args partition=x": "executor_args has no effect without an executor",
        "--task 4 --tasks 4": "task is 4, of tasks 4: it must be from 0 to one less than tasks",
        "--task 0": "task is 0, of tasks None: it must be",
        "--task 0 --tasks 2 --executor local": "executor starts all tasks, and task does one of them",
        "--executor local --tasks 0": "tasks must be at least 1, got 0",
        "--executor local --dry_run true": "dry_run is of slurm and jobs",
        "--executor local --num_processes 2": "num_processes is 2, but the work is done in tasks: leave it out",
        "--executor local --executor_args partition=x": "the executor local of datatrove has no 'partition'. It takes none.",
        "--executor slurm": "executor slurm needs partition: give --executor_args partition=gpu",
        "--executor slurm --executor_args partition=x": "executor slurm needs time: give",
        "--executor slurm --executor_args partitoin=x": "has no 'partitoin'. Did you mean partition",
        "--executor slurm --executor_args partition": "executor_args: 'partition' is not NAME=VALUE",
        "--executor slurm --executor_args cpus_per_task=many": "cpus_per_task must be int, got 'many'",
        "--executor slurm --executor_args logging_dir=x": "has no 'logging_dir'",
        "--executor jobs": "executor jobs needs a folder that the Jobs reach: --shared_dir hf://buckets/org/bucket/run",
        "--executor jobs --shared_dir memory://x": "executor jobs needs flavor",
        "--executor jobs --shared_dir memory://x --executor_args secrets=NO_SUCH": "there is no such environment variable",
        "--executor local --shared_dir nothing://x": "shared_dir nothing://x: Protocol not known: nothing",
        f"--executor local --shared_dir {file}/pool": "cannot be reached",
        "--shared_dir memory://nobody/was/here": "No task has been at work in shared_dir memory://nobody/was/here",
        "--executor ray --executor_args address=127.0.0.1:1": "There is no Ray cluster at 127.0.0.1:1: ",
        "--executor ray --executor_args address=nowhere": "There is no Ray cluster at nowhere: ",
    }.items():
        assert run(*said.split()) == 2, said
        error = capfd.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("craft: ")]
        assert len(lines) == 1 and message in lines[0], error
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "datatrove" else find_spec(name, *a)
    )
    assert run("--executor", "local") == 2
    assert 'needs datatrove, which is not installed: pip install "craft_trl[executors]"' in capfd.readouterr().err


@pytest.fixture(scope="module")
def bucket():
    """A bucket of a server that speaks S3, on loopback."""
    moto = pytest.importorskip("moto.server")
    boto3, _ = pytest.importorskip("boto3"), pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket="craft")
        yield "s3://craft"
    server.stop()


def test_s3(run, reference, capfd, bucket):
    """Two processes that share nothing but a bucket."""
    assert run("--executor", "local", "--shared_dir", "s3://nobody/pool") == 2
    assert capfd.readouterr().err.startswith("craft: error: Cannot write to s3://nobody/pool: ")
    shared = ["--shared_dir", f"{bucket}/pool"]
    loads(reference)
    assert run("--executor", "local", "--tasks", "6", "--workers", "2", *shared) == 0
    loaded = loads(reference)
    notes = [PurePosixPath(name).name for name in SharedFolder(shared[1]).names("tasks/*/taken/*")]
    assert sorted(name.partition("-")[0] for name in notes) == list("012345")
    # Each worker that has taken a task has loaded the judges once; one that came too late has not.
    assert len(loaded) == len(set(loaded)) == len({name.partition("-")[2] for name in notes})
    assert_same(reference)
    shutil.rmtree("run/pool")
    assert run(*shared) == 0 and " shards fetched from s3://craft/pool" in capfd.readouterr().out
    assert_same(reference)


def evaluation(tiny, output_dir, *said):
    return main([
        "evaluate", "--models", f"base={tiny / 'pipeline'}", "--templates", "{prompt}, sharp",
        "--prompts", str(tiny / "prompts" / "tiny-parti.jsonl"), "--num_prompts", "3", "--num_images_per_prompt", "2",
        "--rewards", f"aesthetic={tiny / 'rewards/aesthetic'}", "--held_out_rewards", f"quality={tiny / 'inspector.py'}:quality",
        "--num_inference_steps", "1", "--batch_size", "2", "--num_bootstrap", "50", "--output_dir", output_dir, *said,
    ])  # fmt: skip


def test_evaluate(tiny, tmp_path, capfd):
    assert evaluation(tiny, "whole") == 0
    shared = f"memory://{tmp_path.name}/evaluation"
    assert (
        evaluation(tiny, "tasks", "--tasks", "2", "--task", "1", "--shared_dir", shared, "--reward_device", "offload")
        == 0
    )
    assert capfd.readouterr().out.endswith("[evaluate] task 1 of 2 is done\n")
    assert evaluation(tiny, "tasks", "--executor", "local", "--tasks", "2", "--shared_dir", shared) == 0
    out = capfd.readouterr().out
    assert (
        "1 of 2 tasks are to be done by the executor local" in out
        and out.count("Verdict: ") == 1
        and "task 0 of 2 is done" in out
    )
    rows = [json.loads(Path(name, "results.json").read_text()) for name in ("whole", "tasks")]
    assert rows[0] == rows[1]
    tables = [pq.read_table(Path(name, "scores.parquet")) for name in ("whole", "tasks")]
    assert tables[0].equals(tables[1])
    assert evaluation(tiny, "tasks", "--executor", "local", "--num_processes", "2") == 2
    assert "and tasks do not: leave one of them out" in capfd.readouterr().err
