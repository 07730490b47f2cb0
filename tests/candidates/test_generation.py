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


import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

from craft_trl.candidates.config import SamplingConfig
from craft_trl.candidates.drawing import generate_candidates
from craft_trl.candidates.generation import ImageGenerator
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.loading import load_pipeline, make_scheduler
from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.families.checks import check_model
from craft_trl.rewards.hpsv2 import HPSv2
from craft_trl.rewards.pickscore import PickScore
from craft_trl.sources import model_hash

from ..pipelines import make_pipeline
from ..single_file import original_weights


PROMPTS = ["a fox", "a red car", "two green mushrooms", "a lion to the left of a guitar", "a blue car on the beach"]


def config(**settings):
    defaults = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 64, "width": 64, "batch_size": 4}
    return SamplingConfig(**{**defaults, **settings})


@pytest.fixture(scope="module")
def pipeline(tiny):
    return load_pipeline(str(tiny / "pipeline"))


def arrays(images):
    return [np.asarray(image) for image in images]


class TestImageGenerator:
    def test_an_image_is_the_same_bit_for_bit_whatever_it_is_batched_with(self, pipeline):
        generate = ImageGenerator(pipeline, config())
        together = arrays(generate(PROMPTS, range(5)))  # a full batch and one that is filled up
        order = [4, 2, 0, 3, 1]
        shuffled = arrays(generate([PROMPTS[i] for i in order], order))
        alone = [arrays(generate([PROMPTS[i]], [i]))[0] for i in range(5)]
        for i in range(5):
            assert (together[i] == alone[i]).all() and (together[order[i]] == shuffled[i]).all()

    def test_batch_size_changes_rounding_at_most(self, pipeline):
        a, b = (arrays(ImageGenerator(pipeline, config(batch_size=size))(PROMPTS, range(5))) for size in (1, 5))
        assert np.abs(np.stack(a).astype(int) - np.stack(b)).max() <= 1

    def test_equals_the_pipeline_of_diffusers(self, pipeline, tiny):
        ours = ImageGenerator(pipeline, config(batch_size=1))(["a fox"], [7])[0]
        reference = StableDiffusionXLPipeline.from_pretrained(tiny / "pipeline", dtype=torch.float32)(
            "a fox",
            generator=torch.Generator().manual_seed(7),
            num_inference_steps=2,
            guidance_scale=2.0,
            height=64,
            width=64,
        ).images[0]
        assert (np.asarray(ours) == np.asarray(reference)).all()

    def test_seed_and_prompt_matter(self, pipeline):
        images = arrays(ImageGenerator(pipeline, config())(["a fox", "a fox", "a car"], [1, 2, 1]))
        assert (images[0] != images[1]).any() and (images[0] != images[2]).any()

    def test_negative_prompt_is_used(self, pipeline):
        plain = ImageGenerator(pipeline, config())(["a fox"], [1])[0]
        negative = ImageGenerator(pipeline, config(negative_prompt="blurry"))(["a fox"], [1])[0]
        assert (np.asarray(plain) != np.asarray(negative)).any()

    @pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
    def test_schedulers_do_not_clip_latents(self, tiny, scheduler):
        """With its default of clipping, DDIM turns latents, which are no pixels, into noise."""
        pipeline = load_pipeline(str(tiny / "pipeline"))
        settings = config(scheduler=scheduler, num_inference_steps=10, guidance_scale=5.0)
        generate = ImageGenerator(pipeline, settings)
        assert type(generate.pipeline.scheduler).__name__ == scheduler
        assert not generate.pipeline.scheduler.config.get("clip_sample", False)
        image = np.asarray(generate(["a fox on a white background"], [3])[0]).astype(float)
        # Neighbouring pixels of a picture are alike; those of clipped latents are not.
        assert np.abs(np.diff(image, axis=1)).mean() < 25

    def test_unequal_lists(self, pipeline):
        with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
            ImageGenerator(pipeline, config())(["a", "b"], [1])

    def test_nothing_to_draw(self, pipeline):
        assert ImageGenerator(pipeline, config())([], []) == []


class TestAgainstDiffusers:
    """Bit for bit, for one image at a time: a batch is rounded otherwise."""

    @pytest.mark.parametrize("negative_prompt", [None, "blurry"])
    @pytest.mark.parametrize("family", ["sd", "sdxl"])
    def test_equal(self, tiny, family, negative_prompt):
        pipeline = make_pipeline(family, "v_prediction", tiny)
        options = {"guidance_scale": 3.0, "guidance_rescale": 0.7, "num_inference_steps": 2, "height": 64, "width": 64}
        options["negative_prompt"] = negative_prompt
        pipeline.set_progress_bar_config(disable=True)
        expected = pipeline("a fox", generator=torch.Generator().manual_seed(7), **options).images[0]
        (image,) = ImageGenerator(pipeline, SamplingConfig(**options, batch_size=1))(["a fox"], [7])
        assert (np.asarray(image) == np.asarray(expected)).all()
        plain = {**options, "guidance_rescale": 0.0}
        (other,) = ImageGenerator(pipeline, SamplingConfig(**plain, batch_size=1))(["a fox"], [7])
        assert (np.asarray(image) != np.asarray(other)).any()


class TestCounts:
    """What is asked of the networks, with early rejection, on the tiny model."""

    @pytest.fixture
    def counted(self, pipeline, tiny, tmp_path):
        calls = {name: [] for name in ("unet", "text_encoder", "text_encoder_2", "vae", "hpsv2", "pickscore")}
        modules = {"vae": pipeline.vae.decoder} | {n: getattr(pipeline, n) for n in list(calls)[:3]}
        hooks = [
            module.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: calls[name].append(args[0] if args else kwargs["input_ids"]),
                with_kwargs=True,
            )
            for name, module in modules.items()
        ]
        scorers = {"hpsv2": HPSv2(tiny / "rewards" / "hps"), "pickscore": PickScore(tiny / "rewards" / "pick")}
        for name, scorer in scorers.items():
            forward = scorer.forward
            scorer.forward = lambda pixels, prompts, name=name, forward=forward: (
                calls[name].append(pixels) or forward(pixels, prompts)
            )
        yield calls, scorers
        for hook in hooks:
            hook.remove()

    @pytest.mark.parametrize("reject", [False, True])
    def test_counts(self, pipeline, counted, tmp_path, reject):
        calls, scorers = counted
        groups = make_groups(PROMPTS, [[f"{p}, sharp", f"{p}, best quality"] for p in PROMPTS])
        generator = ImageGenerator(pipeline, config())
        pool, batches = CandidatePool(tmp_path / "pool", scorers), []

        def generate(prompts, seeds):
            batches.append(list(prompts))
            return generator(prompts, seeds)

        reject_on = list(scorers) if reject else None
        generate_candidates(pool, groups, generate, scorers, 4, reject_on, draw_ahead=reject)
        texts = [text for batch in batches for text in batch]
        assert len(texts) == len(set(texts)) == 15 if not reject else len(texts) < 15
        # The denoiser is called once a step, with and without the prompt together, always on a whole batch.
        assert [len(rows) for rows in calls["unet"]] == [8] * 2 * len(batches)
        # Each prompt is encoded once, in one call a batch, and the negative prompt once for all.
        for name in ("text_encoder", "text_encoder_2"):
            assert sorted(len(rows) for rows in calls[name]) == [1] + [4] * len(batches)
        # Copies that fill a batch up are neither decoded nor stored.
        assert [len(rows) for rows in calls["vae"]] == [1] * len(texts)
        shards = len(list((tmp_path / "pool").glob("*.parquet")))
        for name in scorers:
            assert [len(rows) for rows in calls[name]] == [4] * shards
        assert len(pool) <= len(texts) and shards <= len(batches) + 1

        # Again: nothing is made; what is asked for once more needs no encoding.
        before = {name: len(values) for name, values in calls.items()}
        generate_candidates(CandidatePool(tmp_path / "pool", scorers), groups, generate, scorers, 4, reject_on)
        assert before == {name: len(values) for name, values in calls.items()}
        generator(PROMPTS[:1], [100])
        assert len(calls["text_encoder"]) == before["text_encoder"] and len(calls["unet"]) == before["unet"] + 2

    def test_the_vae_is_asked_once_for_its_precision(self, pipeline, monkeypatch):
        """For which diffusers looks at every module."""
        asked, dtype = [], diffusers.ModelMixin.dtype
        generator = ImageGenerator(pipeline, config())
        monkeypatch.setattr(diffusers.ModelMixin, "dtype", property(lambda m: asked.append(m) or dtype.fget(m)))
        generator(PROMPTS[:4], [1, 2, 3, 4])
        assert asked.count(pipeline.vae) == 1

    def test_what_is_remembered_is_bounded(self, pipeline, counted):
        calls, _ = counted
        generator = ImageGenerator(pipeline, config(batch_size=2))
        generator.remembered_bytes = 2 * 4 * (32 * 192 + 128)  # two prompts of the tiny model
        generator(["a", "b", "c"], [1, 2, 3])
        assert list(generator.encoded) == ["b", "c"]
        generator(["c", "a"], [1, 2])
        assert len(calls["text_encoder"]) == 4 and list(generator.encoded) == ["c", "a"]


class TestSixteenBits:
    @pytest.fixture
    def overflowing(self, tiny):
        """In its VAE values grow beyond what float16 can hold; a normalisation brings them back."""
        pipeline = load_pipeline(str(tiny / "pipeline"), torch.float16)
        with torch.no_grad():
            pipeline.vae.post_quant_conv.weight.mul_(2000)
            pipeline.vae.decoder.conv_in.weight.mul_(2000)
        return pipeline

    def test_broken_images_are_drawn_again_in_float32(self, overflowing):
        generator = ImageGenerator(overflowing, config(dtype="float16", batch_size=2))
        images = generator(PROMPTS[:2], range(2))
        assert [image.info["dtype"] for image in images] == ["float32"] * 2
        dtypes = {name: part.dtype for name, part in overflowing.components.items() if hasattr(part, "dtype")}
        assert set(dtypes.values()) == {torch.float16}
        again = generator(PROMPTS[1:2], [1])
        reference = ImageGenerator(overflowing.to(torch.float32), config(batch_size=1))(PROMPTS[:2], range(2))
        for image, expected in zip([*images, *again], [*reference, reference[1]], strict=True):
            assert (np.asarray(image) == np.asarray(expected)).all()
        assert len(np.unique(np.asarray(images[0]))) > 10

    @pytest.mark.parametrize("negative_prompt", [None, "blurry"])
    @pytest.mark.parametrize("family", ["sd", "sdxl"])
    def test_one_part_at_a_time_is_in_float32(self, tiny, family, negative_prompt):
        """A GPU that holds the pipeline in 16 bits need not hold it in float32, nor the text encoders beside the denoiser."""
        pipeline = make_pipeline(family, "epsilon", tiny).to(torch.float16)
        pipeline.vae.register_to_config(force_upcast=False)
        with torch.no_grad():
            pipeline.vae.post_quant_conv.weight.mul_(2000)
            pipeline.vae.decoder.conv_in.weight.mul_(2000)
        parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
        encoders, calls = parts.keys() - {"unet", "vae"}, []

        def note(name):
            wide = {other for other, part in parts.items() if part.dtype == torch.float32}
            if wide:
                calls.append((name, wide, {other for other in encoders if getattr(pipeline, other) is None}))

        for name, part in parts.items():
            called = part.decoder if name == "vae" else part
            called.register_forward_pre_hook(lambda *_, name=name: note(name))
        settings = config(dtype="float16", batch_size=1, negative_prompt=negative_prompt)
        (image,) = ImageGenerator(pipeline, settings)(["a fox"], [3])
        assert image.info["dtype"] == "float32" and len(np.unique(np.asarray(image))) > 10
        for name, wide, missing in calls:
            assert wide == (encoders if name in encoders else {name})
            assert missing == (encoders if name == "unet" else set())
        assert {name for name, _, _ in calls} == parts.keys()
        assert {part.dtype for part in parts.values()} == {torch.float16}
        assert all(getattr(pipeline, name) is part for name, part in parts.items())
        reference = ImageGenerator(pipeline.to(torch.float32), config(batch_size=1, negative_prompt=negative_prompt))
        assert (np.asarray(reference(["a fox"], [3])[0]) == np.asarray(image)).all()

    def test_a_vae_that_says_it_overflows_is_kept_in_float32(self, overflowing):
        overflowing.vae.register_to_config(force_upcast=True)
        generator = ImageGenerator(overflowing, config(dtype="float16", batch_size=2))
        assert overflowing.vae.dtype == torch.float32 and overflowing.unet.dtype == torch.float16
        (image,) = generator(["a fox"], [0])
        assert image.info["dtype"] == "float16" and len(np.unique(np.asarray(image))) > 10

    def test_float32_is_exact_while_drawing(self, overflowing, monkeypatch):
        """TF32 in the VAE, or in what is drawn again, would be the rounding that float32 is there to avoid."""
        overflowing.vae.register_to_config(force_upcast=True)
        generator, seen, decode = ImageGenerator(overflowing, config(dtype="float16")), [], overflowing.vae.decode

        def spy(*args, **kwargs):
            seen.append((torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision))
            return decode(*args, **kwargs)

        monkeypatch.setattr(overflowing.vae, "decode", spy)
        generator(PROMPTS[:2], range(2))
        assert set(seen) == {("ieee", "ieee")} and torch.backends.cudnn.conv.fp32_precision == "tf32"

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    @pytest.mark.parametrize("value", [0.0, float("nan")])
    def test_broken_in_float32_too(self, overflowing, dtype, value):
        overflowing.to(getattr(torch, dtype))
        with torch.no_grad():
            overflowing.vae.decoder.conv_out.weight.fill_(value)
        with pytest.raises(
            UsageError, match="The image of 'a fox' from seed 5 is broken in float32 too: its values are"
        ):
            ImageGenerator(overflowing, config(dtype=dtype, batch_size=1))(["a fox"], [5])


class TestVae:
    def test_another_one(self, tiny, tmp_path):
        pipeline = load_pipeline(str(tiny / "pipeline"))
        plain = ImageGenerator(pipeline, config())(["a fox"], [1])[0]
        with torch.no_grad():
            pipeline.vae.decoder.conv_out.bias.add_(0.5)
        pipeline.vae.save_pretrained(tmp_path / "vae")
        settings = config(vae_name_or_path=str(tmp_path / "vae"))
        brighter = ImageGenerator(load_pipeline(str(tiny / "pipeline")), settings)(["a fox"], [1])[0]
        assert np.asarray(brighter).mean() > np.asarray(plain).mean() + 20
        assert settings.sampling()["vae_name_or_path"] != str(tmp_path / "vae")
        assert "vae_name_or_path" not in config().sampling()
        hub = config(vae_name_or_path="madebyollin/sdxl-vae-fp16-fix").sampling()
        assert hub["vae_name_or_path"] == "madebyollin/sdxl-vae-fp16-fix@main"

    @pytest.mark.parametrize("vae", ["./nowhere", "/", "vae"])
    def test_none(self, vae):
        with pytest.raises(
            UsageError, match=f"vae_name_or_path {vae}: no folder with the config.json of a VAE, and no"
        ):
            config(vae_name_or_path=vae)


class TestSingleFile:
    @pytest.fixture
    def checkpoint(self, pipeline, tiny, tmp_path):
        """One file beside the configuration of its pipeline, without any other weights."""
        folder = tmp_path / "single"
        ignored = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(tiny / "pipeline", folder, ignore=ignored)
        save_file(original_weights(pipeline), folder / "model.safetensors")
        return folder / "model.safetensors"

    def test_same_pipeline(self, checkpoint, pipeline):
        check_model(str(checkpoint))
        loaded = load_pipeline(str(checkpoint))
        assert type(loaded) is type(pipeline) and loaded.watermark is None
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            expected, got = getattr(pipeline, name).state_dict(), getattr(loaded, name).state_dict()
            assert expected.keys() == got.keys() and all((expected[key] == got[key]).all() for key in expected), name
        assert loaded.scheduler.config == pipeline.scheduler.config
        a, b = (ImageGenerator(p, config())(["a fox"], [1])[0] for p in (pipeline, loaded))
        assert (np.asarray(a) == np.asarray(b)).all()
        before = model_hash(str(checkpoint))
        scheduler = checkpoint.parent / "scheduler" / "scheduler_config.json"
        scheduler.write_text(scheduler.read_text().replace('"epsilon"', '"v_prediction"'))
        assert load_pipeline(str(checkpoint)).scheduler.config.prediction_type == "v_prediction"
        assert model_hash(str(checkpoint)) != before

    def test_without_configuration_and_network(self, checkpoint, tmp_path):
        shutil.move(checkpoint, tmp_path / "model.safetensors")
        with pytest.raises(
            UsageError, match="Without a network, put the model_index.json and the configuration folders"
        ):
            load_pipeline(str(tmp_path / "model.safetensors"))

    def test_no_such_file(self):
        with pytest.raises(UsageError, match="Model model.safetensors: there is no such file"):
            check_model("./model.safetensors")

    def test_not_a_checkpoint(self, checkpoint):
        """Said before any work begins, and by the loader too."""
        whole = checkpoint.read_bytes()
        for content in (b"<html>", b"", whole[:-1]):
            checkpoint.write_bytes(content)
            for action in (check_model, load_pipeline):
                with pytest.raises(UsageError, match=f"Model {checkpoint}: not a safetensors file"):
                    action(str(checkpoint))
        save_file({"unet.to_q.lora_A.weight": torch.ones(2, 2)}, checkpoint)
        with pytest.raises(UsageError, match="no checkpoint of Stable Diffusion or SDXL as a whole"):
            check_model(str(checkpoint))

    def test_craft_generate(self, checkpoint, tiny, tmp_path, capsys):
        """The same pool as from the folder, through the commands and without a network."""
        pools = {}
        for name, model in (("folder", tiny / "pipeline"), ("file", checkpoint)):
            argv = ["--config", str(tiny / "candidates.yaml"), "--model_name_or_path", str(model)]
            argv += ["--output_dir", name, "--num_prompts", "2", "--num_inference_steps", "1"]
            for command in ("expand", "generate"):
                assert main([command, *argv]) == 0, capsys.readouterr().err
            pools[name] = CandidatePool(tmp_path / name / "pool", ["hpsv2", "pickscore", "aesthetic"])
        folder, file = pools.values()
        assert len(file) and file.scores.keys() == folder.scores.keys()
        assert list(file.images(folder.scores)) == list(folder.images(folder.scores))


class TestScheduler:
    MODEL = {
        "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    }  # fmt: skip

    @pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
    def test_settings_of_the_model_are_kept(self, name):
        scheduler = make_scheduler(name, self.MODEL)
        assert all(scheduler.config[key] == value for key, value in self.MODEL.items())
        assert scheduler.alphas_cumprod[-1] < 1e-6

    def test_zero_terminal_snr_is_not_dropped(self):
        with pytest.raises(
            UsageError, match="PNDMScheduler has no rescale_betas_zero_snr, which this model's scheduler"
        ):
            make_scheduler("PNDMScheduler", self.MODEL)


def test_torch_compile(tiny):
    """The blocks are compiled when they first run; on a CPU that takes a minute."""
    pipeline = load_pipeline(str(tiny / "pipeline"))
    ImageGenerator(pipeline, config(torch_compile=True))
    compiled = {type(m).__name__ for m in pipeline.unet.modules() if m._compiled_call_impl is not None}
    assert compiled == {"BasicTransformerBlock", "ResnetBlock2D"}
    assert config(torch_compile=True).sampling() == config().sampling()


@pytest.mark.parametrize("changes", [{"guidance_rescale": -0.1}, {"guidance_rescale": 1.5}])
def test_bad_settings(changes):
    with pytest.raises(UsageError, match="guidance_rescale must be from 0 to 1, got"):
        config(**changes)


def test_pipelines_lose_watermark_and_safety_checker(pipeline):
    assert getattr(pipeline, "watermark", None) is None and getattr(pipeline, "safety_checker", None) is None


class TestCheckModel:
    def test_good(self, tiny):
        check_model(str(tiny / "pipeline"))

    @pytest.mark.parametrize("source", ["./pipeline", "/no/such/folder", "sdxl", "runs/tiny/model/"])
    def test_missing_folder(self, source):
        with pytest.raises(UsageError, match="there is no such folder. A model on the Hub is named like org/name"):
            check_model(source)

    def test_folder_of_something_else(self, tiny):
        with pytest.raises(UsageError, match="it has no model_index.json"):
            check_model(str(tiny / "rewards"))


def test_model_hash_sees_components_only(tiny, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny / "pipeline", copy)
    (copy / "README.md").write_text("card")
    (copy / "checkpoint-5" / "unet").mkdir(parents=True)
    (copy / "checkpoint-5" / "unet" / "config.json").write_text("{}")
    assert model_hash(str(copy)) == model_hash(str(tiny / "pipeline"))
    for name in (
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "model_index.json",
    ):
        before, text = model_hash(str(copy)), (copy / name).read_text()
        (copy / name).write_text(text + " ")
        assert model_hash(str(copy)) != before, name
    assert model_hash("org/model", "abc") == "org/model@abc"


def test_every_scheduler_of_diffusers_can_be_named():
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    assert len(names) > 30
    SamplingConfig(scheduler="DDIMScheduler")
