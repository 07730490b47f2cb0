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
Tiny models with random weights, where HPSv3 and HPSv3++ look for theirs: in a cache of the Hub, and in the clone.

    python tiny_hpsv3.py hpsv3 CACHE
    python tiny_hpsv3.py hpsv3pp CACHE CLONE

Python is that of `examples/rewards/serve_*.py`: this file imports the packages themselves.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers


name, cache, *clone = sys.argv[1:]
sys.path[:0] = clone

SPECIAL = {f"{kind}_token_id": f"<|{kind}{pad}|>" for kind, pad in
           (("image", "_pad"), ("video", "_pad"), ("vision_start", ""), ("vision_end", ""))}  # fmt: skip
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}\
{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TEXT = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {"num_heads": 4, "depth": 3, "hidden_size": 32, "spatial_merge_size": 2, "temporal_patch_size": 2}


def place(repository):
    """The folder of a snapshot in the cache."""
    folder = Path(cache, "hub", f"models--{repository.replace('/', '--')}")
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    return snapshot


def make_tokenizer(folder):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([TEMPLATE], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    raw.model.save(str(folder))
    return transformers.Qwen2TokenizerFast(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", *SPECIAL.values()],
    )


def make_qwen2(tokenizer, special):
    from hpsv3.model.qwen2vl_trainer import Qwen2VLRewardModelBT

    images = transformers.Qwen2VLImageProcessor()
    processor = transformers.Qwen2VLProcessor(images, tokenizer, chat_template=TEMPLATE)
    rope = {"type": "mrope", "mrope_section": [1, 1, 2]}
    vision = VISION | {"embed_dim": 32, "mlp_ratio": 2, "patch_size": 14}
    config = transformers.Qwen2VLConfig(
        **TEXT, num_hidden_layers=2, rope_scaling=rope, vision_config=vision, **special
    )
    return processor, transformers.Qwen2VLForConditionalGeneration(config), Qwen2VLRewardModelBT


def make_qwen3(tokenizer, special):
    from hpsv3.model.qwen3vl_rm import Qwen3VLRewardModelFiLMHybrid

    images = transformers.Qwen2VLImageProcessorFast(patch_size=16, merge_size=2)
    processor = transformers.Qwen3VLProcessor(
        images, tokenizer, transformers.Qwen3VLVideoProcessor(), chat_template=TEMPLATE
    )
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = TEXT | {"num_hidden_layers": 3, "head_dim": 8, "rope_scaling": rope}
    vision = VISION | {"intermediate_size": 64, "patch_size": 16, "out_hidden_size": 32}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **special)
    return processor, transformers.Qwen3VLForConditionalGeneration(config), Qwen3VLRewardModelFiLMHybrid


torch.manual_seed(0)
base = place({"hpsv3": "Qwen/Qwen2-VL-7B-Instruct", "hpsv3pp": "Qwen/Qwen3-VL-8B-Instruct"}[name])
tokenizer = make_tokenizer(base)
special = {key: tokenizer.convert_tokens_to_ids(token) for key, token in SPECIAL.items()}
processor, model, reward_class = {"hpsv3": make_qwen2, "hpsv3pp": make_qwen3}[name](tokenizer, special)
processor.save_pretrained(base)
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(5)  # or all images look alike
model.to(torch.bfloat16).save_pretrained(base)

# What the packages load over it: the state of their own class, with a row more for <|Reward|>.
reward_model = reward_class.from_pretrained(
    base, output_dim=2, special_token_ids=[len(tokenizer)], rm_head_type="ranknet"
)
reward_model.resize_token_embeddings(len(tokenizer) + 1)
with torch.no_grad():
    for part in ("rm_head", "film_gen", "cond_encoder", "cap_encoder"):
        for parameter in getattr(reward_model, part, torch.nn.Module()).parameters():
            parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5)
    reward_model.rm_head[-1].bias.copy_(torch.tensor([5.0, -100.0]))  # the mean, and what is not the mean
state = {key: value.contiguous().clone() for key, value in reward_model.state_dict().items()}
if name == "hpsv3":
    save_file(state, place("MizzenAI/HPSv3") / "HPSv3.safetensors")
else:
    torch.save(state, Path(clone[0], "checkpoints", "hpsv3++.pth"))
