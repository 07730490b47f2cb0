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

"""A repository on the Hub, of which configurations alone are downloaded to look at it: a real server on loopback."""

import shutil

import huggingface_hub
import huggingface_hub.constants
import pytest
from safetensors.torch import load_file

from craft_trl.candidates.loading import load_pipeline
from craft_trl.errors import UsageError
from craft_trl.evaluation.models import Model
from craft_trl.families.checks import check_model
from craft_trl.families.files import find_files
from craft_trl.scripts import evaluate
from craft_trl.sources import model_hash, source_hash

from ..hub_server import WRITER, HubServer, Repo
from ..models import edit, linked, renamed


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = HubServer()
    constants = {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "hub")}
    constants |= {"HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}"}
    for name, value in constants.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)  # of the functions that diffusers imports
    monkeypatch.setenv("HF_TOKEN", WRITER)
    yield server
    server.stop()


def publish(server, folder, name="org/tiny"):
    files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    repo = server.repos.setdefault(("model", name), Repo())
    repo.files = files
    repo.commits.append("commit")
    return repo


def downloaded(server):
    return {
        path.split("/resolve/")[1].partition("/")[2]
        for method, path in server.requests
        if method == "GET" and "/resolve/" in path
    }


def test_what_is_looked_at_and_what_is_loaded(server, tiny, tmp_path, monkeypatch):
    folder = linked(tiny / "pipeline", tmp_path / "model")
    renamed(folder, "model.safetensors", "model.fp16.safetensors")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    (folder / "vae_1_0").mkdir()
    (folder / "vae_1_0" / "config.json").write_text("{}")
    publish(server, folder)
    check_model("org/tiny", train=True)
    assert not [name for name in downloaded(server) if not name.endswith(".json")]
    assert find_files("org/tiny").variant == "fp16"
    state_dict = load_pipeline("org/tiny").unet.state_dict()
    expected = load_file(tiny / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all((state_dict[name] == value).all() for name, value in expected.items())
    assert "unet/diffusion_pytorch_model.bin" not in downloaded(server)
    # Without a network: of what is no part of the pipeline nothing need be there.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (cached,) = (tmp_path / "hub").glob("*/snapshots/*/vae_1_0/config.json")
    cached.unlink()
    check_model("org/tiny")
    assert find_files("org/tiny").variant == "fp16" and load_pipeline("org/tiny").vae.config.latent_channels == 4


def test_what_is_refused(server, tiny, tmp_path):
    folder = linked(tiny / "pipeline", tmp_path / "model")
    renamed(folder, "model.safetensors", "model.bin")
    publish(server, folder)
    with pytest.raises(
        UsageError, match="Model org/tiny: text_encoder/model.safetensors is missing. There is model.bin"
    ):
        check_model("org/tiny")
    renamed(folder, "model.bin", "model.safetensors")
    edit(folder, "unet/config.json", in_channels=9)
    publish(server, folder)
    with pytest.raises(UsageError, match="Model org/tiny: an inpainting model"):
        check_model("org/tiny")
    with pytest.raises(UsageError, match="Model org/none: there is no such folder, and the Hub says: "):
        check_model("org/none")
    (folder / "model_index.json").unlink()
    publish(server, folder)
    with pytest.raises(UsageError, match="Model org/tiny: it has no model_index.json"):
        check_model("org/tiny")


def test_a_fingerprint_is_of_the_commit(server, tiny, tmp_path, monkeypatch):
    """A repository that moves is another input, and the same one when it is looked up without a network."""
    folder = linked(tiny / "pipeline", tmp_path / "model")
    first = publish(server, folder).sha
    assert model_hash("org/tiny") == source_hash("org/tiny") == model_hash("org/tiny", first) == f"org/tiny@{first}"
    second = publish(server, folder).sha
    assert model_hash("org/tiny") == f"org/tiny@{second}" != f"org/tiny@{first}"
    assert model_hash("org/tiny", first) == f"org/tiny@{first}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert model_hash("org/tiny") == f"org/tiny@{second}"
    shutil.rmtree(tmp_path / "hub")
    assert model_hash("org/tiny") == "org/tiny@main"  # of which nothing can be loaded


def test_a_comparison_has_the_revision_of_its_base(server, tiny, tmp_path):
    folder = linked(tiny / "pipeline", tmp_path / "model")
    first = publish(server, folder).sha
    find_files("org/tiny")
    models = Model.parse_all(["base=org/tiny", "dpo=unet:./model/unet", "other=org/other"], first)
    check_model("org/tiny", first)
    assert models["base"].load().unet.config.in_channels == 4
    edit(folder, "unet/config.json", in_channels=9)
    publish(server, folder)
    assert models["base"].hash() == f"org/tiny@{first}" and models["dpo"].hash().startswith(f"org/tiny@{first}+unet:")
    assert models["other"].whole == ("org/other", None)
    models["base"].check()
    argv = ["--config", str(tiny / "evaluate.yaml"), "--models", "base=org/tiny", "--output_dir", "out"]
    for revision, message in ((["--model_revision", first], None), ([], "an inpainting model")):
        config, _ = evaluate.make_parser().parse_args_and_config([*argv, *revision])
        if message is None:
            evaluate.check(config)
        else:
            with pytest.raises(UsageError, match=message):
                evaluate.check(config)
