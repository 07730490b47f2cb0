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
import math
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ..processes import Program


ROOT = Path(__file__).parents[2]
TINY = ROOT / "recipes" / "tiny"
sys.path.insert(0, str(ROOT))  # `recipes` is not installed under its own name

from recipes.tiny.build import training  # noqa: E402
from recipes.tiny.build.checkpoints import Checkpoint, read_average  # noqa: E402
from recipes.tiny.build.flow import main  # noqa: E402
from recipes.tiny.build.flow_networks import encode_flow_prompt, flow_text_encoders  # noqa: E402
from recipes.tiny.build.networks import noise_scheduler  # noqa: E402
from recipes.tiny.build.settings import FLOW, FLOW_SMOKE, Run  # noqa: E402
from recipes.tiny.build.train_flow import Distillation, Teacher, measure  # noqa: E402


CPU = torch.device("cpu")
TEACHER = TINY / "pipeline"
STEPS = 16


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose more time in waiting for threads than the threads save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Killed(Exception):
    pass


class TestCheckpoint:
    def train(self, file: Path, killed_at: int | None = None) -> tuple[list[float], dict]:
        """Train a toy on random targets, up to the beginning of step `killed_at`; its parameters and the log."""
        torch.manual_seed(0)
        toy = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        averaging = training.Averaging(lag=2, max_decay=0.8)
        recipe = training.Recipe(0.1, weight_decay=0.1, beta2=0.9, warmup_steps=3, averaging=averaging)

        def loss_function(progress):
            if killed_at is not None and round(45 * progress) > killed_at:
                raise Killed
            return (toy(torch.randn(5, 3)) - torch.randn(5, 1)).square().mean(), {}

        checkpoint = Checkpoint(file, seed=100, interval=0)
        log = training.fit("toy", toy.parameters(), loss_function, Run(45, 5), recipe, CPU, checkpoint)
        return torch.cat([parameter.flatten() for parameter in toy.parameters()]).tolist(), log

    @pytest.mark.parametrize("killed_at", [[1], [23], [44], [7, 30, 41]])
    def test_a_killed_training_ends_as_if_it_had_not_been(self, tmp_path, killed_at, monkeypatch):
        monkeypatch.setattr(training, "RECORD_EVERY", 3)
        monkeypatch.setattr(training, "HISTORY_EVERY", 10)
        never_killed, log = self.train(tmp_path / "one.safetensors")
        for step in killed_at:
            with pytest.raises(Killed):
                self.train(tmp_path / "two.safetensors", step)
        killed, its_log = self.train(tmp_path / "two.safetensors")
        assert killed == never_killed
        assert its_log["history"] == log["history"] and len(log["history"]) == 4

    def test_the_average_of_a_checkpoint(self, tmp_path):
        file = tmp_path / "checkpoint.safetensors"
        finished, _ = self.train(file)  # the parameters end as their average
        toy = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        assert read_average(file, list(toy.parameters())) == 45
        assert torch.cat([parameter.flatten() for parameter in toy.parameters()]).tolist() == finished

    def test_no_state_is_written_before_its_time(self, tmp_path):
        checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", seed=0, interval=3600)
        assert not checkpoint.due
        assert Checkpoint(tmp_path / "checkpoint.safetensors", seed=0, interval=0).due


class TestTeacher:
    def test_timesteps_are_those_of_the_same_noise_to_signal_ratio(self):
        teacher, shares = Teacher(TEACHER, CPU), noise_scheduler().alphas_cumprod
        ratios = ((1 - shares) / shares).sqrt()
        timesteps = torch.tensor([0, 1, 17, 500, 998, 999])
        sigmas = (ratios / (1 + ratios))[timesteps]
        torch.testing.assert_close(teacher.timesteps(sigmas), timesteps.float(), atol=2e-2, rtol=0)
        between = sigmas[2:4].mean(0, keepdim=True)
        assert 17 < teacher.timesteps(between).item() < 500
        assert teacher.timesteps(torch.tensor([1e-3, 0.99, 1.0])).tolist() == [0, 999, 999]
        assert teacher.max_sigma.item() == pytest.approx(0.936, abs=1e-3)

    @torch.no_grad()
    def test_the_velocity_leads_to_the_picture_that_sdxl_predicts(self):
        """From x, a velocity v leads to the picture x - sigma v, and to the noise x + (1 - sigma) v."""
        teacher, share = Teacher(TEACHER, CPU), noise_scheduler().alphas_cumprod[400]
        torch.manual_seed(0)
        noisy = torch.randn(2, 4, 16, 16)  # as SDXL scales it
        text, pooled = torch.randn(2, 32, 192), torch.randn(2, 128)
        conditions = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
        noise = teacher.unet(noisy, 400, text, added_cond_kwargs=conditions).sample
        picture = (noisy - (1 - share).sqrt() * noise) / share.sqrt()
        ratio = ((1 - share) / share).sqrt()
        sigma = ratio / (1 + ratio)
        flow_noisy = noisy * ((1 - sigma).square() + sigma.square()).sqrt()
        velocity = teacher.velocity(flow_noisy, sigma.expand(2), text, pooled)
        torch.testing.assert_close(flow_noisy - sigma * velocity, picture, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(flow_noisy + (1 - sigma) * velocity, noise, atol=2e-3, rtol=1e-3)


class TestCommandLine:
    @pytest.mark.parametrize(
        "options, message",
        [
            (["--steps", "0"], "--steps must be positive, got 0"),
            (["--learning_rate", "-1"], "--learning_rate must be positive, got -1.0"),
            (["--teacher", "nowhere"], "nowhere is not the folder of a tiny SDXL"),
            (["--init", str(TEACHER)], "is not the folder of a flow model"),
            (["--assemble", "new"], "has no checkpoint yet"),
        ],
    )
    def test_mistakes_are_told_before_anything_is_written(self, options, message, capsys, tmp_path):
        with pytest.raises(SystemExit) as exit:
            main(["--output_dir", "out", "--smoke", *options])
        assert exit.value.code == 2 and message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_the_shape_of_the_full_build(self):
        from diffusers import SD3Transformer2DModel

        config = FLOW.transformer_config(TEACHER)
        assert config == {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 5,
            "attention_head_dim": 32,
            "num_attention_heads": 6,
            "joint_attention_dim": 192,
            "caption_projection_dim": 192,
            "pooled_projection_dim": 192,
            "pos_embed_max_size": 8,
            "qk_norm": "rms_norm",
        }
        with torch.device("meta"):
            network = SD3Transformer2DModel(**config)
        assert sum(parameter.numel() for parameter in network.parameters()) == 6_461_840


@pytest.fixture(scope="module")
def flow_build(tmp_path_factory):
    """A smoke build, and one that was killed in its training, assembled at that moment, and started again."""
    root = tmp_path_factory.mktemp("flow")
    whole, killed = root / "whole", root / "killed"
    options = ("--smoke", "--steps", STEPS)
    first = Program(main, "--output_dir", whole, *options)
    second = Program(main, "--output_dir", killed, *options)
    deadline = time.monotonic() + 120
    while not (killed / "work" / "checkpoint.safetensors").exists():
        assert second.is_alive() and time.monotonic() < deadline, second.output
        time.sleep(0.005)
    second.kill()
    second.finish(-9)
    assert not (killed / "work" / "transformer").exists()
    midway = Program(main, "--output_dir", killed, *options, "--assemble", root / "midway").finish()
    third = Program(main, "--output_dir", killed, *options)
    first.finish()
    return root, midway, third.finish()


def draw(folder: Path, **options) -> np.ndarray:
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    prompts = ["a fox on the beach", "two red cars"]
    size = {"height": 64, "width": 64, "num_inference_steps": 3}
    return pipeline(prompts, **size, max_sequence_length=0, generator=generator, output_type="np").images


class TestSmokeBuild:
    def test_a_killed_build_ends_as_if_it_had_not_been(self, flow_build):
        root, _, printed = flow_build
        assert "work/latents exists, skipped" in printed and "wrote work/transformer in" in printed
        files = {file.relative_to(root / "whole") for file in (root / "whole" / "pipeline").rglob("*.*")}
        for file in files:
            assert (root / "whole" / file).read_bytes() == (root / "killed" / file).read_bytes(), file
        reports = [json.loads((root / name / "metrics.json").read_text()) for name in ("whole", "killed")]
        logs = [report["training"]["transformer"] for report in reports]
        assert [log.pop("seconds") > 0 for log in logs] == [True, True] and logs[0] == logs[1]
        assert reports[0]["settings"] == reports[1]["settings"]
        again = Program(main, "--output_dir", root / "killed", "--smoke", "--steps", STEPS).finish()
        assert "complete, nothing to do" in again

    def test_the_settings_of_a_build_cannot_change(self, flow_build, capsys):
        root, _, _ = flow_build
        for options, named in ((["--steps", "17"], "run"), (["--init", str(root / "whole" / "pipeline")], "init")):
            with pytest.raises(SystemExit):
                main(["--output_dir", str(root / "whole"), "--smoke", "--steps", str(STEPS), *options])
            assert f"other settings ({named})" in capsys.readouterr().err

    def test_in_bfloat16(self, flow_build, tmp_path):
        root, _, _ = flow_build
        for name in ("scenes", "latents"):
            shutil.copytree(root / "whole" / "work" / name, tmp_path / "out" / "work" / name)
        Program(main, "--output_dir", tmp_path / "out", "--smoke", "--steps", STEPS, "--bf16").finish()
        logs = [json.loads((folder / "metrics.json").read_text()) for folder in (root / "whole", tmp_path / "out")]
        single, half = (log["training"]["transformer"]["error_to_teacher"] for log in logs)
        assert single == pytest.approx(half, rel=1e-2)
        file = "pipeline/transformer/diffusion_pytorch_model.safetensors"
        assert (root / "whole" / file).read_bytes() != (tmp_path / "out" / file).read_bytes()

    def test_a_transformer_of_another_shape_is_no_start(self, flow_build, capsys, tmp_path):
        root, _, _ = flow_build
        with pytest.raises(SystemExit):
            main(["--output_dir", str(tmp_path / "out"), "--init", str(root / "whole" / "pipeline")])
        assert "num_layers 1 instead of 5, attention_head_dim 16 instead of 32" in capsys.readouterr().err

    def test_a_build_starts_from_the_weights_of_another(self, flow_build, tmp_path):
        root, _, _ = flow_build
        for name in ("scenes", "latents"):
            shutil.copytree(root / "whole" / "work" / name, tmp_path / "out" / "work" / name)
        settings = ("--smoke", "--steps", "1", "--learning_rate", "1e-30", "--init", root / "whole" / "pipeline")
        Program(main, "--output_dir", tmp_path / "out", *settings).finish()
        file = "pipeline/transformer/diffusion_pytorch_model.safetensors"
        before, after = load_file(root / "whole" / file), load_file(tmp_path / "out" / file)
        assert before.keys() == after.keys()
        for name in before:
            torch.testing.assert_close(after[name], before[name], atol=0, rtol=0)

    def test_the_pipeline_draws_and_so_does_that_of_a_checkpoint(self, flow_build):
        root, printed, _ = flow_build
        images = draw(root / "whole" / "pipeline")
        assert images.shape == (2, 64, 64, 3) and np.isfinite(images).all() and images.std() > 0.01
        assert f"of {STEPS} steps" in printed
        midway = draw(root / "midway")
        assert midway.shape == images.shape and np.isfinite(midway).all()
        assert not np.array_equal(midway, images)

    def test_weights_are_in_half_precision_and_are_loaded_in_single(self, flow_build):
        root, _, _ = flow_build
        files = sorted((root / "whole" / "pipeline").rglob("*.safetensors"))
        assert [file.parent.name for file in files] == ["text_encoder", "text_encoder_2", "transformer", "vae"]
        for file in files:
            with safe_open(file, "pt") as weights:
                assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}, file
        for name in ("text_encoder", "text_encoder_2"):
            config = json.loads((root / "whole" / "pipeline" / name / "config.json").read_text())
            assert config["dtype"] == "float32" and config["architectures"] == ["CLIPTextModelWithProjection"]
        for file in (root / "whole" / "pipeline").rglob("*.json"):
            assert str(root) not in file.read_text(), file

    def test_the_transformer_reads_in_training_what_it_reads_in_the_pipeline(self, flow_build):
        from diffusers import StableDiffusion3Pipeline

        root, _, _ = flow_build
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            root / "whole" / "pipeline", text_encoder_3=None, tokenizer_3=None
        )
        # "" is what the pipeline takes for a missing negative prompt.
        prompts = ["a fox on the beach", ""]
        sequence, _, pooled, _ = pipeline.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=0
        )
        tokens = pipeline.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            text, pooled_text = encode_flow_prompt(flow_text_encoders(TEACHER), tokens)
        torch.testing.assert_close(text, sequence)
        torch.testing.assert_close(pooled_text, pooled)

    def test_the_autoencoder_has_the_latents_of_the_training(self, flow_build):
        from diffusers import AutoencoderKL

        root, _, _ = flow_build
        work = root / "whole" / "work"
        vae = AutoencoderKL.from_pretrained(root / "whole" / "pipeline" / "vae")
        assert vae.config.shift_factor == 0
        pixels = torch.from_numpy(np.load(work / "scenes" / "images.npy")[:2]).movedim(-1, 1) / 127.5 - 1
        with torch.no_grad():
            latents = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        torch.testing.assert_close(
            latents, torch.from_numpy(np.load(work / "latents" / "latents.npy")[:2]).float(), atol=2e-3, rtol=1e-3
        )

    def test_batches(self, flow_build):
        root, _, _ = flow_build
        work = root / "whole" / "work"
        distillation = Distillation(TEACHER, work / "scenes", work / "latents", CPU)
        torch.manual_seed(0)
        rows = torch.arange(48).repeat(4)
        batch = distillation.batch(rows, empty_prompts=0.25)
        sigmas = batch.sigmas[:, None, None, None]
        latents = distillation.latents[rows].float()
        # Back from the velocity to the picture.
        torch.testing.assert_close(batch.noisy - sigmas * batch.velocity, latents, atol=1e-5, rtol=1e-4)
        assert torch.equal(batch.has_teacher, batch.sigmas <= distillation.teacher.max_sigma)
        assert 0 < (~batch.has_teacher).sum() < 40
        expected = torch.where(batch.has_teacher[:, None, None, None], batch.taught, batch.velocity)
        assert torch.equal(batch.target, expected) and torch.isfinite(batch.target).all()
        empty, _ = encode_flow_prompt(distillation.encoders, distillation.empty_tokens)
        share = (batch.text == empty).all((1, 2)).float().mean().item()
        assert 0.15 < share < 0.35
        # The teacher's velocity of real noisy pictures is near the true one, as a wrong scale or timestep would not be.
        known = batch.has_teacher
        error = (batch.taught - batch.velocity)[known].square().mean().item()
        assert error < 0.5 < batch.velocity.square().mean().item()

    def test_errors(self, flow_build):
        """A network that answers what the teacher does, or nothing."""
        root, _, _ = flow_build
        work = root / "whole" / "work"
        distillation = Distillation(TEACHER, work / "scenes", work / "latents", CPU)
        silent = measure(lambda noisy, *_, **__: (torch.zeros_like(noisy),), distillation, FLOW_SMOKE.scenes_held_out)
        assert 1 < silent["error_to_scenes"] < 3 and 1 < silent["error_to_teacher"] < 3
        assert 0 < silent["error_of_teacher"] < 0.6
        report = json.loads((root / "whole" / "metrics.json").read_text())
        log = report["training"]["transformer"]
        assert log["error_of_teacher"] == silent["error_of_teacher"] and log["steps"] == STEPS
        assert all(math.isfinite(log[name]) for name in silent)
