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

"""The guard: its rule on made-up scores, and at work on a reward that can be hacked."""

import json
import re
import shutil

import numpy as np
import pytest
import scipy.stats
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value
from diffusers import StableDiffusionXLPipeline
from PIL import Image as PILImage
from safetensors.torch import load_file

from craft_trl import CraftConfig
from craft_trl.errors import UsageError
from craft_trl.scripts.train import main
from craft_trl.trainer.arguments import TrainArguments
from craft_trl.trainer.guard_config import GuardConfig
from craft_trl.trainer.image_statistics import PICTURE_METRICS, image_statistics, thumbnail_features
from craft_trl.trainer.verdict import find_hacking, judge, student_quantile

from ..helpers import config, make_dataset
from ..pipelines import make_pipeline


ROLES = {"hpsv2": "training", "mps": "held_out", "saturation": "image"}


def history(*means, prompts=16, noise=0.3, seed=0):
    """Scores of steps 0, 10, 20 ... around `(hpsv2, mps)` means; prompts differ more than steps do."""
    rng = np.random.default_rng(seed)
    of_prompt = rng.normal(0, 2, (prompts, 1))
    return {
        10 * i: {
            "hpsv2": training + of_prompt + rng.normal(0, noise, (prompts, 2)),
            "mps": held_out + of_prompt + rng.normal(0, noise, (prompts, 2)),
            "saturation": 0.3 + 0.1 * i + rng.normal(0, 0.01, (prompts, 2)),
        }
        for i, (training, held_out) in enumerate(means)
    }


class TestRule:
    def test_stops_when_held_out_falls_while_training_rises(self):
        finding = find_hacking(history((0, 0), (1, 0.6), (2, -0.6)), ROLES, num_measurements=5)
        assert (finding.reference, finding.fell, finding.rose, finding.stop) == (10, ["mps"], ["hpsv2"], True)

    @pytest.mark.parametrize(
        "means",
        [
            ((0, 0), (1, 0.6), (2, 0.6)),  # nothing fell
            ((0, 0), (1, 0.6), (2, 0.5)),  # less than chance does
            ((0, 0), (1, 0.6), (1, -0.6)),  # training rewards did not rise since: worse, not hacked
        ],
    )
    def test_goes_on(self, means):
        assert not find_hacking(history(*means), ROLES, num_measurements=5).stop

    def test_without_training_rewards_a_fall_is_enough(self):
        roles = {"mps": "held_out"}
        assert find_hacking(history((0, 0), (0, -0.6)), roles, num_measurements=2).stop

    def test_less_is_better(self):
        roles = {"hpsv2": "training", "mps": "held_out"}
        assert find_hacking(history((0, 0), (1, 0.6)), roles, {"mps"}, 2).stop
        assert not find_hacking(history((0, 0), (1, -0.6)), roles, {"mps"}, 2).stop

    def test_a_run_in_which_nothing_changes_is_seldom_stopped(self):
        """Eight measurements, two judges: five in a hundred may be stopped, whatever step happened to be best."""
        roles = {"a": "held_out", "b": "held_out"}
        rng = np.random.default_rng(0)
        stopped = 0
        for _ in range(400):
            scores = rng.normal(0, 1, (9, 2, 16, 2))
            steps = {i: {"a": scores[i, 0], "b": scores[i, 1]} for i in range(9)}
            stopped += any(
                find_hacking({s: steps[s] for s in range(last + 1)}, roles, num_measurements=9).stop
                for last in range(1, 9)
            )
        assert stopped <= 400 * 0.05

    @pytest.mark.parametrize("degrees", [7, 15, 31])
    @pytest.mark.parametrize("probability", [0.975, 0.999, 0.9999])
    def test_student_quantile(self, degrees, probability):
        assert student_quantile(probability, degrees) == pytest.approx(
            scipy.stats.t.ppf(probability, degrees), rel=4e-3
        )


class TestVerdict:
    def test_words(self):
        steps = history((0, 0), (1, 0.6), (2, -0.6))
        verdicts = [judge(dict(list(steps.items())[: i + 1]), ROLES, num_measurements=3) for i in range(3)]
        assert verdicts[0].sentence == "step 0: the base model, measured."
        assert verdicts[1].best == 10 and not verdicts[1].stop and verdicts[1].gain > 0
        pattern = (
            r"step 10: training hpsv2 \+\S+ \[.*\] better; held-out mps .* better; images saturation 0.\d+ -> 0.\d+; "
        )
        assert re.fullmatch(pattern + r"best is step 10\.", verdicts[1].sentence)
        assert verdicts[2].best == 10 and verdicts[2].stop
        assert "mps fell since step 10 while hpsv2 rose: the rewards are being hacked; best is step 10." in (
            verdicts[2].sentence
        )

    def test_nothing_happened(self):
        verdict = judge(history((0, 0), (0, 0)), ROLES, num_measurements=2)
        assert "no held-out change beyond chance" in verdict.sentence

    def test_words_are_beyond_chance_for_all_judges_together(self):
        """Of 200 runs in which nothing changes, one in twenty at most says of any of its six judges that it is better or worse."""
        rng, said = np.random.default_rng(0), 0
        roles = {f"training_{i}": "training" for i in range(3)} | {f"held_out_{i}": "held_out" for i in range(3)}
        for _ in range(200):
            history = {step: {name: rng.standard_normal((24, 2)) for name in roles} for step in (0, 10)}
            sentence = judge(history, roles).sentence
            said += " better" in sentence or " worse" in sentence
        assert said <= 16  # 10 expected at most, and 16 by chance once in forty

    def test_all_steps_are_worse(self):
        verdict = judge(history((0, 0), (0, -0.2)), ROLES, num_measurements=2)
        assert verdict.sentence.endswith("best is step 10, which the held-out judges do not prefer to the base model.")


def test_image_statistics():
    checkers = np.indices((32, 32)).sum(axis=0) % 2 * 255
    wave = np.tile(127.5 * (1 + np.cos(np.arange(32) * np.pi / 16)), (32, 1))
    images = [
        PILImage.new("RGB", (32, 32), "red"),
        PILImage.new("RGB", (32, 32), "white"),
        PILImage.fromarray(checkers.astype(np.uint8)),
        PILImage.fromarray(wave.astype(np.uint8)),
    ]
    statistics = image_statistics([image.convert("RGB") for image in images])
    np.testing.assert_allclose(statistics["saturation"], [1, 0, 0, 0])
    np.testing.assert_allclose(statistics["brightness"], [76 / 255, 1, 0.5, 0.5], atol=0.01)
    np.testing.assert_allclose(statistics["high_frequency"], [0, 0, 1, 0], atol=0.02)
    features = thumbnail_features([image.convert("RGB") for image in images])
    assert features.shape == (4, 768) and features[3] @ features[3] == pytest.approx(1)


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"guard_prompts": "a.txt"}, "name held_out_rewards"),
            ({"held_out_rewards": ["mps"]}, "name guard_prompts"),
            ({"held_out_rewards": ["mp"], "guard_prompts": "a.txt"}, "no reward 'mp'"),
            (
                {"held_out_rewards": ["mps"], "guard_rewards": ["mps"], "guard_prompts": "a.txt"},
                "'mps' is named twice",
            ),
            (
                {"held_out_rewards": ["mps"], "guard_prompts": "a.txt", "guard_num_prompts": 4},
                "guard_num_prompts must be at least 8, got 4",
            ),
        ],
    )
    def test_mistakes(self, settings, message):
        with pytest.raises(UsageError, match=message):
            GuardConfig(**settings)

    def test_too_few_prompts(self, tmp_path):
        (tmp_path / "a.txt").write_text("a fox\na star\n")
        config = GuardConfig(held_out_rewards=["mps"], guard_prompts=str(tmp_path / "a.txt"))
        with pytest.raises(UsageError, match="guard_num_prompts must be at most 2, the prompts in"):
            config.load_guard_prompts()


@pytest.fixture(scope="module")
def hacked(tiny, tmp_path_factory):
    """A run that is trained towards brightness on all but white pictures: what it was asked to show goes away."""
    folder = tmp_path_factory.mktemp("hacked")
    (folder / "whiteness.py").write_text(
        "import numpy as np\ndef whiteness(images, prompts): return [np.asarray(i).mean() for i in images]\n"
    )
    rows = [json.loads(line) for line in (tiny / "prompts" / "tiny-hpd-train.jsonl").read_text().splitlines()[:8]]
    rng = np.random.default_rng(0)
    pictures = [PILImage.fromarray(rng.integers(235, 256, (64, 64, 3), dtype=np.uint8)) for _ in rows]
    features = Features({"image": Image(), "prompt": Value("string"), "advantage": Value("float32")})
    columns = {"image": pictures, "prompt": [row["prompt"] for row in rows], "advantage": [1.0] * len(rows)}
    DatasetDict(train=Dataset.from_dict(columns, features=features)).save_to_disk(str(folder / "dataset"))
    arguments = TrainArguments(
        model_name_or_path=str(tiny / "pipeline"),
        dataset_name=str(folder / "dataset"),
        held_out_rewards=[f"alignment={tiny / 'inspector.py'}:alignment"],
        guard_rewards=[f"whiteness={folder / 'whiteness.py'}:whiteness"],
        guard_prompts=str(tiny / "prompts" / "tiny-parti.jsonl"),
        guard_num_prompts=8,
        guard_steps=3,
        guard_num_inference_steps=3,
        guard_guidance_scale=3.0,
    )
    main(arguments, training_config(folder / "model"))
    return folder, arguments


def training_config(output_dir):
    return CraftConfig(
        output_dir=str(output_dir), max_steps=30, per_device_train_batch_size=8, learning_rate=3e-4,
        lr_scheduler_type="constant", save_steps=3, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip


class TestAtWork:
    def test_stops_and_saves_the_best_step(self, hacked, tiny):
        folder = hacked[0] / "model"
        summary = json.loads((folder / "stage.json").read_text())["summary"]
        assert summary["stopped_by_guard"] and 3 <= summary["steps"] < 30
        best = summary["exported_step"]
        assert best in range(3, 30, 3)
        # A card speaks of a choice only where there was one, between several steps.
        assert json.loads((folder / "training.json").read_text())["guarded"] == (summary["steps"] > 3)
        file = "unet/diffusion_pytorch_model.safetensors"
        exported, base = load_file(folder / file), load_file(tiny / "pipeline" / file)
        kept = load_file(folder / f"checkpoint-{best}" / file)  # of the Trainer
        assert not list(folder.glob("best-checkpoint-*"))
        assert all((exported[name] == value).all() for name, value in kept.items())
        assert any((exported[name] != value).any() for name, value in base.items())
        assert (folder / "model_index.json").exists() and f"{best}" in (folder / "README.md").read_text()

    def test_says_why(self, hacked):
        guard = hacked[0] / "model" / "guard"
        lines = (guard / "verdict.txt").read_text().splitlines()
        assert lines[0] == "step 0: the base model, measured."
        assert (
            "alignment fell since" in lines[-1] and "while whiteness rose: the rewards are being hacked" in lines[-1]
        )
        assert "images" in lines[-1] and "brightness" in lines[-1]
        content = json.loads((guard / "measurements.json").read_text())
        assert content["seconds"] > 0 and set(content["steps"]["0"]) >= {
            "alignment", "whiteness", *PICTURE_METRICS,
        }  # fmt: skip
        # It draws what it is trained on.
        nearest = [
            np.mean(content["steps"][step]["nearest_training_image"]) for step in ("0", list(content["steps"])[-1])
        ]
        assert len(nearest) == 2 and nearest[0] < 1
        assert len(list(guard.glob("step-*.png"))) == len(lines)

    def test_cost_is_told(self, hacked, capsys):
        folder, arguments = hacked
        main(arguments, training_config(folder / "model"))
        out = capsys.readouterr().out
        assert "done before: " in out and "stopped by the guard, step" in out

    def test_goes_on_after_a_kill(self, hacked, tmp_path):
        """From the state in which a kill after step 3 leaves the folder, to the same verdicts and the same weights."""
        whole, copy = hacked[0] / "model", tmp_path / "model"
        shutil.copytree(whole, copy)
        record = json.loads((copy / "stage.json").read_text())
        (copy / "stage.json").write_text(json.dumps({**record, "finished": False}))
        for checkpoint in copy.glob("checkpoint-*"):
            if checkpoint.name != "checkpoint-3":
                shutil.rmtree(checkpoint)
        shutil.copytree(copy / "checkpoint-3" / "unet", copy / "best-checkpoint-3" / "unet")
        main(hacked[1], training_config(copy))
        assert (copy / "guard" / "verdict.txt").read_text() == (whole / "guard" / "verdict.txt").read_text()
        file = "unet/diffusion_pytorch_model.safetensors"
        expected, got = load_file(whole / file), load_file(copy / file)
        assert all((got[name] == value).all() for name, value in expected.items())


@pytest.mark.parametrize("kind", ["lora", "ema"])
def test_what_it_saw_is_what_is_saved(kind, tiny, tmp_path):
    """An adapter, or the moving average: the pipeline that is saved draws the picture that the guard kept of the best step."""
    make_pipeline("sdxl", "epsilon", tiny).save_pretrained(tmp_path / "pipeline")
    make_dataset().save_to_disk(str(tmp_path / "dataset"))
    (tmp_path / "darkness.py").write_text(
        "import numpy as np\ndef darkness(images, prompts): return [-np.asarray(i).mean() for i in images]\n"
    )
    prompts = tiny / "prompts" / "tiny-parti.jsonl"
    arguments = TrainArguments(
        model_name_or_path=str(tmp_path / "pipeline"), dataset_name=str(tmp_path / "dataset"), use_peft=kind == "lora",
        held_out_rewards=[f"darkness={tmp_path / 'darkness.py'}:darkness"], guard_prompts=str(prompts), guard_steps=1,
        guard_num_prompts=8, guard_num_images_per_prompt=1, guard_num_inference_steps=2, guard_stop=False,
    )  # fmt: skip
    settings = {"max_steps": 3, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1}
    main(arguments, config(tmp_path, use_ema=kind == "ema", ema_decay=0.5, **settings))

    out = tmp_path / "out"
    best = json.loads((out / "stage.json").read_text())["summary"]["exported_step"]
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "pipeline" if kind == "lora" else out)
    if kind == "lora":
        pipeline.load_lora_weights(out)
    generator, prompt = torch.Generator().manual_seed(0), arguments.load_guard_prompts()[0]
    drawn = pipeline(prompt, height=64, width=64, num_inference_steps=2, generator=generator).images[0]
    kept = {file.name: np.asarray(PILImage.open(file))[:, :64] for file in (out / "guard").glob("step-*.png")}
    np.testing.assert_array_equal(np.asarray(drawn), kept.pop(f"step-{best:05d}.png"))
    assert len(kept) == 3 and all((picture != np.asarray(drawn)).any() for picture in kept.values())
