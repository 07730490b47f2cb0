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
import io
import itertools
import json
import math
import shutil
import weakref

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from craft_trl import CraftTrainer, ImageGenerator, SamplingConfig
from craft_trl.errors import TrainingDivergedError, UsageError
from craft_trl.families.latents import normalise
from craft_trl.losses import min_snr_weights, per_sample_mse
from craft_trl.trainer.checkpoints import check_saved, has_training_state, last_complete_checkpoint
from craft_trl.trainer.precision import compute_in_bfloat16
from craft_trl.trainer.training_samples import StepBatches, check_shared_memory, needed_micro_batches

from ..helpers import config, make_dataset, stack, weights


@pytest.fixture
def make_trainer(tiny, tmp_path):
    def make(dataset=None, callbacks=None, peft_config=None, **settings):
        args = config(tmp_path, **settings)
        return CraftTrainer(str(tiny / "pipeline"), args, dataset or make_dataset(), None, peft_config, callbacks)

    return make


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestTraining:
    def test_every_parameter_changes(self, make_trainer, monkeypatch):
        # Telemetry of TRL's base class is off where `CI` is set, and would crash on a diffusers model where it is not.
        monkeypatch.delenv("CI", raising=False)
        trainer = make_trainer()
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
        unchanged = [name for name in before if torch.equal(before[name], after[name])]
        assert not unchanged
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(logs) == 2 and all({"denoising_loss", "grad_norm"} <= set(entry) for entry in logs)

    def test_no_frozen_part_is_in_memory(self, make_trainer):
        trainer = make_trainer()
        modules = {type(module).__name__ for module in trainer.model.modules()}
        assert "UNet2DConditionModel" in modules
        assert not hasattr(trainer, "pipeline")
        held = [value for value in vars(trainer).values() if isinstance(value, torch.nn.Module)]
        assert all(module is trainer.model or module is trainer.model_wrapped for module in held)

    def test_advantage_one_is_supervised_fine_tuning(self, make_trainer):
        """The loss of a batch is the plain mean of the noise-prediction errors, worked out here from the samples."""
        trainer = make_trainer(make_dataset([1.0] * 6))
        batch = stack(trainer, range(4))
        loss = trainer.compute_loss(trainer.model, batch)
        noisy = trainer.noise_process.add(batch["latents"], batch["noise"], batch["timesteps"])
        added = {"text_embeds": batch["pooled_prompt_embeds"], "time_ids": batch["time_ids"]}
        pred = trainer.model(noisy, batch["timesteps"], batch["prompt_embeds"], added_cond_kwargs=added).sample
        torch.testing.assert_close(loss, torch.nn.functional.mse_loss(pred, batch["noise"]))

    @pytest.mark.parametrize("negative_advantages", ["zero", "keep"])
    def test_leaving_out_weight_zero_changes_no_gradient(self, make_trainer, negative_advantages):
        trainer = make_trainer(
            negative_advantages=negative_advantages, global_batch_size=6, per_device_train_batch_size=3
        )
        passed = []
        for batch in itertools.islice(trainer.get_train_dataloader(), 2):
            passed += batch["advantage"].tolist()
            trainer.compute_loss(trainer.model, batch).div(trainer.args.gradient_accumulation_steps).backward()
        assert len(passed) == {"zero": 4, "keep": 5}[negative_advantages] and 0 not in passed
        ours = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
        trainer.model.zero_grad()

        advantages = torch.tensor([1.0, 0.5, 0.0, -1.0, 2.0, 0.25])[[trainer.train_dataset.row(k) for k in range(6)]]
        batch = stack(trainer, range(6))
        target = trainer.noise_process.target(batch["latents"], batch["noise"], batch["timesteps"])
        losses = per_sample_mse(trainer.predict(trainer.model, batch), target)
        (advantages.clamp(min=0 if negative_advantages == "zero" else -9) * losses).mean().backward()
        for name, parameter in trainer.model.named_parameters():
            torch.testing.assert_close(ours[name], parameter.grad, atol=1e-7, rtol=1e-4, msg=name)

    def test_normalize_advantages(self, make_trainer):
        plain, normalized = make_trainer(name="a"), make_trainer(name="b", normalize_advantages=True)
        weights_ = normalized.train_dataset.advantages
        torch.testing.assert_close(weights_.mean(), torch.tensor(1.0))
        torch.testing.assert_close(weights_, plain.train_dataset.advantages / (3.75 / 6))

    def test_micro_batches_do_not_matter(self, make_trainer):
        curves = []
        for batch in (8, 4, 3, 1):
            trainer = make_trainer(
                name=str(batch), global_batch_size=8, per_device_train_batch_size=batch, max_steps=3, max_grad_norm=0.0
            )
            # Of the 8 samples of a step at most 6 have a weight, and only those take a place: 3 micro-batches of 2, not 4.
            assert (
                len(trainer.get_train_dataloader())
                == 3 * -(-6 // batch)
                == 3 * trainer.args.gradient_accumulation_steps
            )
            trainer.train()
            logs = [entry for entry in trainer.state.log_history if "loss" in entry]
            curves.append([[entry["loss"], entry["denoising_loss"]] for entry in logs])
        for curve in curves[1:]:
            np.testing.assert_allclose(curve, curves[0], rtol=2e-4)

    def test_workers_change_nothing(self, make_trainer):
        alone, helped = (make_trainer(name=f"{n}", dataloader_num_workers=n, max_steps=1) for n in (0, 1))
        assert helped.get_train_dataloader().prefetch_factor == helped.args.gradient_accumulation_steps
        alone.train()
        helped.train()
        assert equal(weights(alone), weights(helped))

    def test_activation_checkpointing(self, make_trainer):
        plain, checkpointed = make_trainer(name="a"), make_trainer(name="b", activation_checkpointing=True)
        plain.train()
        checkpointed.train()
        assert checkpointed.model.is_gradient_checkpointing
        for a, b in zip(plain.model.parameters(), checkpointed.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)

    def test_expanded_prompts(self, make_trainer):
        original, expanded = make_trainer(name="a"), make_trainer(name="b", train_prompt="expanded")
        a, b = original.train_dataset[0], expanded.train_dataset[0]
        assert torch.equal(a["noise"], b["noise"]) and not torch.equal(a["prompt_embeds"], b["prompt_embeds"])

    def test_evaluation_inside_training(self, make_trainer):
        trainer = make_trainer()
        loader = trainer.get_train_dataloader()
        loss, _, _ = trainer.prediction_step(trainer.model, next(iter(loader)), prediction_loss_only=True)
        assert loss.ndim == 0 and not loss.requires_grad


class TestTrainingSamples:
    def test_sample_k_depends_on_seed_and_k_alone(self, make_trainer):
        one = make_trainer(name="a").train_dataset
        other = make_trainer(name="b", max_steps=20, per_device_train_batch_size=2, learning_rate=1.0).train_dataset
        for k in (5, 0, 7, 3):
            assert all(torch.equal(one[k][name], other[k][name]) for name in one[k])
        seeded = make_trainer(name="c", seed=7).train_dataset
        assert not torch.equal(one[0]["noise"], seeded[0]["noise"])

    def test_rows_come_equally_often_and_in_a_new_order(self, make_trainer):
        samples = make_trainer(max_steps=10).train_dataset
        rows = [samples.row(k) for k in range(40)]
        assert [sorted(rows[i : i + 6]) for i in range(0, 36, 6)] == [list(range(6))] * 6
        assert len({tuple(rows[i : i + 6]) for i in range(0, 36, 6)}) > 1
        assert [samples.row(k) for k in reversed(range(40))] == rows[::-1]

    def test_noise_and_timesteps_are_what_they_should_be(self, make_trainer):
        samples = make_trainer(max_steps=300).train_dataset
        noise = torch.stack([samples[k]["noise"] for k in range(200)])
        assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
        timesteps = torch.stack([samples[k]["timesteps"] for k in range(600)])
        assert timesteps.min() >= 0 and timesteps.max() < 1000 and 450 < timesteps.float().mean() < 550
        assert len(timesteps.unique()) > 400

    def test_latents_are_drawn_anew_from_the_posterior(self, make_trainer, tiny):
        trainer = make_trainer(make_dataset([1.0]), max_steps=300)
        latents = torch.stack([trainer.train_dataset[k]["latents"] for k in range(300)])
        encoded = load_file(trainer.encoded)
        scaling = json.loads((tiny / "pipeline" / "vae" / "config.json").read_text())["scaling_factor"]
        torch.testing.assert_close(latents.mean(0), encoded["latent_mean"][0] * scaling, atol=0.05, rtol=0.05)
        assert not torch.equal(latents[0], latents[1])

    def test_conditioning_is_that_of_the_pipeline(self, make_trainer, tiny):
        trainer = make_trainer(make_dataset([1.0]))
        pipeline = StableDiffusionXLPipeline.from_pretrained(tiny / "pipeline", dtype=torch.float32)
        prompt_embeds, _, pooled, _ = pipeline.encode_prompt("a fox", do_classifier_free_guidance=False)
        sample = trainer.train_dataset[0]
        torch.testing.assert_close(sample["prompt_embeds"], prompt_embeds[0])
        torch.testing.assert_close(sample["pooled_prompt_embeds"], pooled[0])
        assert sample["time_ids"].tolist() == [64, 64, 0, 0, 64, 64]

    def test_encoding_is_done_once(self, make_trainer):
        first = make_trainer().encoded
        stamp = first.stat().st_mtime_ns
        assert make_trainer().encoded.stat().st_mtime_ns == stamp
        make_trainer(train_prompt="expanded")
        assert first.stat().st_mtime_ns != stamp

    @pytest.mark.parametrize("statistics", [True, False])
    def test_what_is_trained_on_is_the_inverse_of_decoding(self, tiny, tmp_path, statistics):
        """Through the decoder of our own drawing, with the VAE's channel statistics of Playground v2.5 and without."""
        shutil.copytree(tiny / "pipeline", tmp_path / "model")
        file = tmp_path / "model" / "vae" / "config.json"
        settings = json.loads(file.read_text())
        if statistics:
            settings |= {"scaling_factor": 0.5}
            settings |= {
                "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
                "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
            }
        file.write_text(json.dumps(settings))
        trainer = CraftTrainer(str(tmp_path / "model"), config(tmp_path), make_dataset())
        samples, generator = trainer.train_dataset, ImageGenerator(str(tmp_path / "model"), SamplingConfig())
        latent = samples.encoded["latent_mean"][:1]
        seen = normalise(latent, samples.statistics)
        if statistics:
            mean, std = (torch.tensor(settings[name]).view(4, 1, 1) for name in ("latents_mean", "latents_std"))
            torch.testing.assert_close(seen, (latent - mean) * 0.5 / std)
        else:  # to the bit what it was before there were any
            assert torch.equal(seen, (latent - 0.0) * settings["scaling_factor"])
        pixels, _ = generator._decode(seen)
        with torch.no_grad():
            image = generator.pipeline.vae.decode(latent).sample
        expected = (generator.pipeline.image_processor.denormalize(image)[0] * 255).round().permute(1, 2, 0)
        assert (pixels.float() - expected).abs().max() <= 1

    def test_workers_need_room(self, make_trainer):
        sample = make_trainer().train_dataset[0]
        check_shared_memory(sample, 1)
        megabytes = sum(value.nbytes for value in sample.values()) / 1e6
        count = int(shutil.disk_usage("/dev/shm").total / 1e6 / megabytes) + 1
        with pytest.raises(
            UsageError, match=r"dataloader_num_workers keeps \d+ MB in /dev/shm, which has \d+ MB free: set"
        ):
            check_shared_memory(sample, count)


class Stream(list):
    """Weights of a stream's samples, in place of `TrainingSamples`."""

    def weightless(self, k):
        return self[k] == 0


class TestStepBatches:
    @given(data=st.data(), share=st.integers(1, 20), micro=st.integers(1, 20), processes=st.integers(1, 5))
    def test_processes_share_every_step(self, data, share, micro, processes):
        size = share * processes
        weights_ = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=2 * size, max_size=2 * size))
        parts = [list(StepBatches(Stream(weights_), size, micro, rank, processes)) for rank in range(processes)]
        accumulation = -(-share // micro)
        assert {len(part) for part in parts} == {2 * accumulation}
        for step in range(2):
            batches = [b for part in parts for b in part[step * accumulation : (step + 1) * accumulation]]
            taken = [k for batch in batches for k in batch]
            mine = range(step * size, (step + 1) * size)
            weighted = [k for k in mine if weights_[k]]
            assert set(weighted) <= set(taken) <= set(mine) and taken == sorted(set(taken))
            assert len(taken) == max(len(weighted), len(batches))
            sizes = [len(batch) for batch in batches]
            assert 1 <= min(sizes) and max(sizes) <= micro and max(sizes) - min(sizes) <= 1

    @given(data=st.data(), share=st.integers(1, 20), micro=st.integers(1, 20), processes=st.integers(1, 5))
    def test_micro_batches_are_full(self, data, share, micro, processes):
        """As many as the fullest step needs: the same in every step and for every process, and none too small."""
        size = share * processes
        weights_ = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=2 * size, max_size=2 * size))
        stream = Stream(weights_)
        needed = needed_micro_batches(stream, size, micro, processes)
        parts = [list(StepBatches(stream, size, micro, r, processes, micro_batches=needed)) for r in range(processes)]
        assert {len(part) for part in parts} == {2 * needed}
        for step in range(2):
            batches = [b for part in parts for b in part[step * needed : (step + 1) * needed]]
            weighted = [k for k in range(step * size, (step + 1) * size) if weights_[k]]
            taken = [k for batch in batches for k in batch]
            assert set(weighted) <= set(taken) and taken == sorted(set(taken))
            assert 1 <= min(map(len, batches)) and max(map(len, batches)) <= micro
        most = max(sum(w != 0 for w in weights_[s * size : (s + 1) * size]) for s in range(2))
        assert needed == max(1, math.ceil(most / (micro * processes)))

    def test_uneven(self):
        batches = [[len(b) for b in StepBatches(Stream([1.0] * 32), 32, 6, rank, 2)] for rank in range(2)]
        assert batches == [[6, 6, 5], [5, 5, 5]]

    def test_weightless_samples_only_fill_up(self):
        assert list(StepBatches(Stream([0.0, 2.0, 0.0, 0.0, -1.0, 0.0]), 6, 2)) == [[0], [1], [4]]


class TestLossOptions:
    def test_snr_gamma(self, make_trainer):
        plain, weighted = make_trainer(make_dataset([1.0] * 6), name="a"), None
        weighted = make_trainer(make_dataset([1.0] * 6), name="b", snr_gamma=0.5)
        batch = stack(plain, range(4))
        target = batch["noise"]
        losses = per_sample_mse(plain.predict(plain.model, batch), target)
        expected = (min_snr_weights(plain.noise_process, batch["timesteps"], 0.5) * losses).mean()
        torch.testing.assert_close(weighted.compute_loss(weighted.model, batch), expected)
        assert not torch.isclose(plain.compute_loss(plain.model, batch), expected)

    def test_empty_prompts_are_those_of_the_pipeline_and_drawn_per_sample(self, make_trainer):
        samples = make_trainer(max_steps=100, proportion_empty_prompts=0.25).train_dataset
        plain = make_trainer(name="plain", max_steps=100).train_dataset
        empty = [k for k in range(400) if not samples[k]["prompt_embeds"].any()]
        assert 70 < len(empty) < 130
        assert all(not samples[k]["pooled_prompt_embeds"].any() for k in empty)  # zeros, as SDXL has at inference
        # Nothing else about a sample changes, and the same row is dropped at one time and kept at another.
        assert all(torch.equal(samples[k]["noise"], plain[k]["noise"]) for k in range(50))
        assert {samples.row(k) for k in empty} == set(range(6))


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


class TestSavingAndResuming:
    def test_the_saved_folder_is_a_pipeline(self, make_trainer, tiny, tmp_path):
        trainer = make_trainer()
        trainer.train()
        trainer.save_model()
        pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out")
        assert equal(pipeline.unet.state_dict(), weights(trainer))
        image = pipeline("a fox", height=64, width=64, num_inference_steps=2).images[0]
        assert image.size == (64, 64)
        for part in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
            for file in (tiny / "pipeline" / part).iterdir():
                copy = tmp_path / "out" / part / file.name
                assert copy.read_bytes() == file.read_bytes() or part.startswith("text_encoder"), file
                assert copy.suffix != ".json" or json.loads(copy.read_text()) == json.loads(file.read_text()), file
        assert not list((tmp_path / "out").rglob("*.bin")) and not list((tmp_path / "out").rglob("*.pt"))

    def test_a_pipeline_stored_in_half_precision_can_be_used_as_it_is(self, tiny, tmp_path):
        """Its text encoders are declared float16, which a pipeline that is loaded without a dtype would mix with float32."""
        shutil.copytree(tiny / "pipeline", tmp_path / "half")
        for name in ("text_encoder", "text_encoder_2"):
            file = tmp_path / "half" / name / "config.json"
            file.write_text(file.read_text().replace('"dtype": "float32"', '"dtype": "float16"'))
        trainer = CraftTrainer(str(tmp_path / "half"), config(tmp_path), make_dataset())
        trainer.save_model()
        pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out")
        assert pipeline("a fox", height=64, width=64, num_inference_steps=1).images[0].size == (64, 64)

    def test_model_card(self, make_trainer, tmp_path):
        trainer = make_trainer()
        trainer.train()
        trainer.save_model()
        card = (tmp_path / "out" / "README.md").read_text()
        assert "library_name: diffusers" in card and "pipeline_tag: text-to-image" in card and "- craft" in card
        assert "2603.18991" in card and "6 images." in card and "| optimizer steps | 2 |" in card
        assert str(tmp_path.parent) not in card.replace(str(tmp_path / "out"), "")

    @pytest.mark.parametrize("lora", [False, True])
    def test_resuming_is_exact(self, make_trainer, tmp_path, lora):
        from peft import LoraConfig

        def peft_config():
            return LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian") if lora else None

        torch.manual_seed(0)
        whole = make_trainer(name="whole", max_steps=4, peft_config=peft_config(), learning_rate=1e-3)
        whole.train()
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
        torch.manual_seed(0)
        stopped = make_trainer(name="cut", callbacks=[Stop(2)], peft_config=peft_config(), **settings)
        stopped.train()
        checkpoint = last_complete_checkpoint(tmp_path / "cut")
        assert checkpoint.name == "checkpoint-2"
        resumed = make_trainer(name="cut", peft_config=peft_config(), **settings)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert equal(weights(whole), weights(resumed))
        assert not equal(weights(stopped), weights(resumed))
        losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, resumed)]
        assert losses[0] == losses[1] and len(losses[0]) == 4

    def test_lora_is_small_and_loads_into_the_pipeline(self, make_trainer, tiny, tmp_path):
        from peft import LoraConfig

        # Attention projections and others, which diffusers names by different rules; and a scale that is not 1.
        lora = LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v", "proj_in", "ff.net.0.proj"])
        trainer = make_trainer(peft_config=lora, learning_rate=1e-2)
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed and all("lora_" in name for name in changed)
        trainer.save_model()
        assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == [
            "encoded.safetensors",
            "pytorch_lora_weights.safetensors",
        ]

        pipeline = StableDiffusionXLPipeline.from_pretrained(tiny / "pipeline", dtype=torch.float32)

        def draw():
            generator = torch.Generator().manual_seed(1)
            output = pipeline(
                "a fox", height=64, width=64, num_inference_steps=2, generator=generator, output_type="np"
            )
            return output.images

        plain = draw()
        pipeline.load_lora_weights(tmp_path / "out")
        adapted = draw()
        assert np.abs(adapted - plain).max() > 1e-4
        pipeline.unload_lora_weights()
        pipeline.unet = trainer.model.merge_and_unload()
        np.testing.assert_allclose(draw(), adapted, atol=1e-4)

    def test_an_adapter_starts_from_the_seed(self, make_trainer):
        from peft import LoraConfig

        lora = {"r": 2, "target_modules": ["to_q"], "init_lora_weights": "gaussian"}
        torch.manual_seed(1)
        first = make_trainer(name="a", peft_config=LoraConfig(**lora))
        torch.manual_seed(2)
        same, other = (make_trainer(name=f"{n}", peft_config=LoraConfig(**lora), seed=n) for n in (42, 7))
        assert equal(weights(first), weights(same)) and not equal(weights(first), weights(other))

    def test_half_written_checkpoints_are_passed_over(self, make_trainer, tmp_path):
        trainer = make_trainer(max_steps=3, save_strategy="steps", save_steps=1)
        trainer.train()
        out = tmp_path / "out"
        assert last_complete_checkpoint(out) == out / "checkpoint-3"
        file = out / "checkpoint-3" / "unet" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        assert last_complete_checkpoint(out) == out / "checkpoint-2"
        (out / "checkpoint-2" / "trainer_state.json").write_text('{"global_step": ')
        assert last_complete_checkpoint(out) == out / "checkpoint-1"
        (out / "checkpoint-1" / "trainer_state.json").unlink()
        assert last_complete_checkpoint(out) is None
        (out / "checkpoint-x").mkdir()
        assert last_complete_checkpoint(out) is None

    def test_without_the_state_of_the_optimizer_training_does_not_go_on(self, make_trainer, tmp_path):
        settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
        trainer = make_trainer(save_only_model=True, **settings)
        with pytest.raises(UsageError, match="There is no complete checkpoint in .*out to go on from"):
            trainer.train(resume_from_checkpoint=True)
        trainer.train()
        checkpoint = last_complete_checkpoint(tmp_path / "out")
        for wish in (str(checkpoint), True):
            with pytest.raises(
                UsageError, match="checkpoint-1 has no state of optimizer and schedule, as under save_only"
            ):
                trainer.train(resume_from_checkpoint=wish)
        for names, whole in ((["optimizer.pt"], False), (["scheduler.pt"], True)):
            for name in names:
                (checkpoint / name).touch()
            assert has_training_state(checkpoint) == whole
        (checkpoint / "optimizer.pt").unlink()
        assert not has_training_state(checkpoint)

    def test_what_was_saved_is_read_back(self, tmp_path):
        weights_ = {"a": torch.ones(2), "b": torch.full((3,), float("nan"))}
        file = tmp_path / "x.safetensors"
        save_file(weights_, file)
        check_saved(weights_, file)
        with pytest.raises(OSError, match="a in .*x.safetensors was read back with other values"):
            check_saved({**weights_, "a": torch.zeros(2)}, file)
        with pytest.raises(OSError, match="a in .*x.safetensors was read back with other values"):
            check_saved({"b": weights_["b"]}, file)
        with pytest.raises(OSError, match="c is missing in .*x.safetensors"):
            check_saved({**weights_, "c": torch.ones(1)}, file)

    def test_a_checkpoint_holds_the_denoiser_only(self, make_trainer, tmp_path):
        make_trainer(max_steps=1, save_strategy="steps", save_steps=1).train()
        checkpoint = tmp_path / "out" / "checkpoint-1"
        assert UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet").dtype == torch.float32
        assert not (checkpoint / "vae").exists()


class TestMemory:
    def test_a_model_goes_with_its_trainer(self, make_trainer):
        trainer = make_trainer(bf16=True, activation_checkpointing=True, max_steps=1)
        trainer.train()
        model = weakref.ref(trainer.model)
        del trainer
        gc.collect()
        assert model() is None

    def test_no_closure_keeps_a_module(self, tiny):
        """Without the garbage collector, which the next stage does not wait for."""
        unet = UNet2DConditionModel.from_pretrained(tiny / "pipeline", subfolder="unet")
        compute_in_bfloat16(unet)
        module = weakref.ref(unet)
        gc.disable()
        try:
            del unet
            assert module() is None
        finally:
            gc.enable()


class TestEMA:
    def test_the_average_is_saved_and_training_goes_on_with_the_weights(self, make_trainer, tmp_path):
        trainer = make_trainer(use_ema=True, ema_decay=0.5, max_steps=3, learning_rate=1e-3)
        history = [weights(trainer)]

        class Record(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                history.append(weights(trainer))

        trainer.add_callback(Record())
        trainer.train()
        trainer.save_model()
        saved = UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet").state_dict()
        # diffusers: at its step k = 1, 2, ... the decay is 0 first, then min(0.5, k / (9 + k)).
        average = history[0]
        for k, current in enumerate(history[1:], start=1):
            decay = 0.0 if k == 1 else min(0.5, k / (9 + k))
            average = {name: decay * average[name] + (1 - decay) * current[name] for name in average}
        for name, value in average.items():
            torch.testing.assert_close(saved[name], value, atol=1e-6, rtol=1e-5, msg=name)
        assert equal(weights(trainer), history[-1])

    def test_resuming_is_exact(self, make_trainer, tmp_path):
        settings = {"use_ema": True, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
        whole = make_trainer(name="whole", **settings)
        whole.train()
        make_trainer(name="cut", callbacks=[Stop(2)], **settings).train()
        resumed = make_trainer(name="cut", **settings)
        resumed.train(resume_from_checkpoint=str(last_complete_checkpoint(tmp_path / "cut")))
        for a, b in zip(whole.ema.shadow_params, resumed.ema.shadow_params, strict=True):
            assert torch.equal(a, b)
        assert whole.ema.optimization_step == resumed.ema.optimization_step == 4


class TestValidation:
    def test_images(self, make_trainer, tmp_path):
        settings = {"validation_num_inference_steps": 2, "validation_guidance_scale": 2.0}
        trainer = make_trainer(
            validation_prompts=["a fox", "a red car"], validation_steps=2, max_steps=3, learning_rate=1e-3, **settings
        )
        trainer.train()
        files = sorted((tmp_path / "out" / "validation").iterdir())
        assert [file.name for file in files] == ["step-00000.png", "step-00002.png", "step-00003.png"]
        images = [np.asarray(PILImage.open(file)).astype(int) for file in files]
        assert all(image.shape == (64, 128, 3) for image in images)
        assert np.abs(images[0] - images[1]).max() > 0  # the same noise, another model
        assert np.abs(images[0] - images[1]).mean() < 60
        assert trainer.model.training

    def test_training_is_not_disturbed(self, make_trainer):
        plain, validated = (
            make_trainer(name="a"),
            make_trainer(name="b", validation_prompts=["a fox"], validation_steps=1),
        )
        plain.train()
        validated.train()
        assert equal(weights(plain), weights(validated))


class TestTrackers:
    settings = {"validation_prompts": ["a fox"], "validation_num_inference_steps": 1, "validation_steps": 1}

    def test_tensorboard(self, make_trainer, tmp_path):
        make_trainer(report_to="tensorboard", **self.settings).train()
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (folder,) = (tmp_path / "out" / "runs").iterdir()
        events = EventAccumulator(str(folder)).Reload()
        assert [event.step for event in events.Scalars("train/denoising_loss")] == [1, 2]
        assert [event.step for event in events.Images("validation")] == [0, 1, 2]
        drawn = PILImage.open(tmp_path / "out" / "validation" / "step-00002.png").convert("RGB")
        logged = PILImage.open(io.BytesIO(events.Images("validation")[-1].encoded_image_string))
        np.testing.assert_array_equal(np.asarray(logged), np.asarray(drawn))

    def test_trackio(self, make_trainer, tmp_path, monkeypatch):
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
        # It asks for Pillow < 13: `make test` installs it without asking, see the Makefile.
        pytest.importorskip("trackio", reason="trackio is not installed; `make test` installs it")
        from trackio.sqlite_storage import SQLiteStorage

        make_trainer(report_to="trackio", project="tiny", run_name="run", **self.settings).train()
        logs = SQLiteStorage.get_logs("tiny", "run")
        assert [entry["train/global_step"] for entry in logs if "train/denoising_loss" in entry] == [1, 2]
        assert [entry["train/global_step"] for entry in logs if "validation" in entry] == [0, 1, 2]

    def test_others_are_refused(self, tmp_path):
        with pytest.raises(
            UsageError, match="report_to must be among tensorboard, trackio, wandb, none; got 'mlflow'"
        ):
            config(tmp_path, report_to="mlflow")


class TestDivergence:
    def test_nan_stops_training_and_keeps_the_checkpoint(self, make_trainer, tmp_path):
        class Break(TrainerCallback):
            def on_step_begin(self, args, state, control, model=None, **kwargs):
                if state.global_step == 2:
                    next(model.parameters()).data.fill_(float("nan"))

        trainer = make_trainer(max_steps=6, save_strategy="steps", save_steps=1, callbacks=[Break()])
        with pytest.raises(TrainingDivergedError) as error:
            trainer.train()
        message = str(error.value)
        assert "The loss at step 3 is nan: training stopped" in message and "out/checkpoint-2." in message
        assert "lower learning_rate (now 0.0001)" in message and "\n" not in message
        assert not (tmp_path / "out" / "checkpoint-3").exists()
        kept = load_file(tmp_path / "out" / "checkpoint-2" / "unet" / "diffusion_pytorch_model.safetensors")
        assert all(value.isfinite().all() for value in kept.values())

    def test_a_loss_worse_than_predicting_nothing(self, make_trainer):
        trainer = make_trainer(max_steps=40, learning_rate=1.0)
        with pytest.raises(TrainingDivergedError, match="worse than predicting nothing|is nan|is inf"):
            trainer.train()
        assert trainer.state.global_step < 40


class TestConfig:
    def test_global_batch_size(self, tmp_path):
        args = config(tmp_path, global_batch_size=16, per_device_train_batch_size=4)
        assert args.gradient_accumulation_steps == 4
        assert config(tmp_path, global_batch_size=16, per_device_train_batch_size=6).gradient_accumulation_steps == 3
        assert config(tmp_path, gradient_accumulation_steps=3).global_batch_size == 12

    def test_global_batch_size_follows_the_launcher(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "4")
        with pytest.raises(UsageError, match="must be a multiple of 4, the number of processes; got 10"):
            config(tmp_path, global_batch_size=10)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"global_batch_size": 0}, "global_batch_size must be a multiple of 1, the number of processes; got 0"),
            ({"global_batch_size": 16, "gradient_accumulation_steps": 2}, "on 1 processes needs 4: leave it out"),
            ({"proportion_empty_prompts": 1.5}, "proportion_empty_prompts must be from 0 to 1, got 1.5"),
            ({"snr_gamma": 0.0}, "snr_gamma must be above 0, got 0.0"),
            ({"max_steps": -1}, "max_steps must be at least 1, got -1"),
            ({"negative_advantages": "clip"}, "'zero', 'keep' or 'proximal', got 'clip'"),
            ({"proximal_tau": 2.0}, "proximal_tau 2 has no effect with negative_advantages: zero"),
            ({"negative_advantages": "proximal", "proximal_tau": 0.0}, "proximal_tau must be above 0, got 0"),
            ({"train_prompt": "both"}, "'original' or 'expanded', got 'both'"),
            (
                {"load_best_model_at_end": True, "save_strategy": "no", "eval_strategy": "no"},
                "load_best_model_at_end is not supported",
            ),
            ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy is not supported"),
            ({"push_to_hub": True, "hub_strategy": "every_save"}, "hub_strategy must be 'end', got 'every_save'"),
        ],
    )
    def test_wrong_settings(self, tmp_path, settings, message):
        with pytest.raises(UsageError, match=message):
            config(tmp_path, **settings)


class TestBadInput:
    def test_before_anything_is_loaded(self, make_trainer, monkeypatch):
        monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", None)
        with pytest.raises(UsageError, match="advantage of row 1 is nan"):
            make_trainer(make_dataset([1.0, float("nan")]))

    def test_nothing_to_train_on(self, make_trainer, monkeypatch):
        monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", None)
        with pytest.raises(UsageError, match="No advantage is above 0: there is nothing to train on"):
            make_trainer(make_dataset([-1.0, 0.0]))
        with pytest.raises(UsageError, match="normalize_advantages needs a mean above 0, got -0.2500"):
            make_trainer(make_dataset([-1.0, 0.5]), name="b", normalize_advantages=True, negative_advantages="keep")

    def test_no_model(self, tmp_path):
        with pytest.raises(UsageError, match="there is no such folder"):
            CraftTrainer(str(tmp_path / "nothing"), config(tmp_path), make_dataset())

    def test_model_of_another_kind(self, tiny, tmp_path):
        shutil.copytree(tiny / "pipeline", tmp_path / "model")
        index = tmp_path / "model" / "model_index.json"
        index.write_text(index.read_text().replace("StableDiffusionXLPipeline", "WanPipeline"))
        with pytest.raises(
            UsageError, match="A WanPipeline is not supported. Supported are .*StableDiffusionPipeline, Stable"
        ):
            CraftTrainer(str(tmp_path / "model"), config(tmp_path), make_dataset())

    def test_no_expanded_prompts(self, make_trainer):
        with pytest.raises(UsageError, match="no column 'expanded_prompt'"):
            make_trainer(make_dataset().remove_columns("expanded_prompt"), train_prompt="expanded")
