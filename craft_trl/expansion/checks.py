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
What keeps a variant from being one: it must say all that the prompt says, in its language, in what the text encoder reads.

The checks are rules on words, stated here in full. They find what is lost, not what is added; numbers, colours and
function words are those of the languages listed, and other languages pass.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..families import get_family
from ..families.files import find_files
from ..prompts.duplicates import normalise
from ..sources import loading


if TYPE_CHECKING:
    import transformers

COLOURS = {
    "beige", "black", "blue", "brown", "crimson", "cyan", "gold", "gray", "green", "magenta", "maroon", "navy",
    "orange", "pink", "purple", "red", "silver", "teal", "turquoise", "violet", "white", "yellow",
}  # fmt: skip
SAME_COLOUR = {"grey": "gray", "golden": "gold"}
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
SAME_NUMBER = {"pair": 2, "couple": 2, "both": 2, "twin": 2, "twins": 2, "trio": 3, "dozen": 12}
# A number that counts something: not a part of 4k, 85mm, 1970s, f/1.8 or 16:9, nor of "3 d" and "8 k".
DIGITS = re.compile(r"(?<![\w.,:/-])\d{1,3}(?![\w%°:/-]|[.,]\d|\s[dkDK]\b)")
QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|«([^»]+)»|(?<!\w)[\'‘]([^\'‘’]+)[\'’](?!\w)')
FUNCTION_WORDS = {
    "English": "the of and with an is are its from by at while on",
    "French": "le les des du une et avec dans sur est aux qui",
    "German": "der die das und mit ein eine auf im den ist von",
    "Spanish": "el los las una con del y sobre es por en",
    "Italian": "il gli con di una nel della sul che e un",
    "Portuguese": "os um uma com em do da no na e sobre",
    "Dutch": "het een en met van op de aan zijn bij",
}
FUNCTION_WORDS = {language: frozenset(words.split()) for language, words in FUNCTION_WORDS.items()}


def find_faults(
    prompt: str, variant: str, tokenizers: "Sequence[transformers.PreTrainedTokenizerBase]" = ()
) -> list[str]:
    """
    What is wrong with a variant of a prompt, each fault as `kind: detail`; empty if nothing is.

    - `unchanged`: equal to the prompt but for case and punctuation.
    - `too long`: more tokens than those of the tokenizers keep that keep most.
    - `language`: written in another script, or, as far as function words tell seven European languages apart, in
      another language.
    - `lost number`: a number from 2 on, in digits or, to twelve, as an English word, is not there in either
      form, nor as a word such as pair or dozen.
    - `lost colour`: an English basic colour word is not there.
    - `lost text`: text in quotation marks is not there letter for letter.

    Args:
        prompt (`str`):
            Original prompt.
        variant (`str`):
            Variant of it.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`, *optional*):
            Tokenizers of the image model, see [`load_tokenizers`].
    """
    faults = []
    if normalise(variant) == normalise(prompt):
        faults.append("unchanged: it says the same as the prompt")
    if fault := too_long(variant, tokenizers):
        faults.append(fault)
    if (expected := _script(prompt)) and (got := _script(variant)) and got != expected:
        faults.append(f"language: {got.title()} letters instead of {expected.title()}")
    elif (expected := _language(prompt)) and (got := _language(variant)) and got != expected:
        faults.append(f"language: {got} instead of {expected}")
    said = _numbers(variant) | {SAME_NUMBER[word] for word in normalise(variant).split() if word in SAME_NUMBER}
    faults += [f"lost number: {number}" for number in sorted(_numbers(prompt) - said)]
    faults += [f"lost colour: {colour}" for colour in sorted(_colours(prompt) - _colours(variant))]
    quoted = {" ".join(next(filter(None, match)).split()) for match in QUOTED.findall(prompt)}
    faults += [f"lost text: {text}" for text in sorted(quoted) if text not in variant]
    return faults


def too_long(text: str, tokenizers: "Sequence[transformers.PreTrainedTokenizerBase]") -> str | None:
    """
    The fault of a text that would be cut off. Where text encoders read different numbers of tokens, as CLIP 77 and T5 hundreds,
    a text is whole if the one reads it to its end that reads most.
    """
    most = max((tokenizer.model_max_length for tokenizer in tokenizers), default=0)
    for tokenizer in (tokenizer for tokenizer in tokenizers if tokenizer.model_max_length == most):
        # Quiet: a longer text is what this looks for.
        length = len(tokenizer(as_read(text, tokenizer), verbose=False).input_ids)
        if length > tokenizer.model_max_length:
            return f"too long: {length} tokens, the model reads {tokenizer.model_max_length}"
    return None


def as_read(text: str, tokenizer: "transformers.PreTrainedTokenizerBase") -> str:
    """The text that a pipeline tokenizes: a token that textual inversion made of several vectors stands for all of them."""
    added = tokenizer.added_tokens_encoder
    if not any(f"{token}_1" in added for token in added):
        return text
    from diffusers.loaders import TextualInversionLoaderMixin

    return TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer)


def load_tokenizers(
    model: str, revision: str | None = None, max_sequence_length: int | None = None
) -> "list[transformers.PreTrainedTokenizerBase]":
    """
    Tokenizers of a pipeline, of which nothing else is downloaded: a folder, a Hub id, or a single `.safetensors` file with
    the pipeline's configuration beside it. A file without is one of Stable Diffusion or SDXL, which read CLIP's tokens. Their
    `model_max_length` is what the model reads, of other encoders than CLIP's `max_sequence_length`, by default the family's.
    """
    import transformers

    path = Path(model)
    with loading(f"Model {model}: its tokenizers"):
        if path.suffix == ".safetensors" and not (path.parent / "model_index.json").is_file():
            return [transformers.AutoTokenizer.from_pretrained("openai/clip-vit-large-patch14")]
        source = str(path.parent) if path.suffix == ".safetensors" else model
        files, tokenizers = find_files(source, revision), []
        if max_sequence_length is None:
            max_sequence_length = get_family(files.index["_class_name"]).max_sequence_length
        for name in files.components:
            if name.startswith("tokenizer"):
                tokenizers.append(
                    transformers.AutoTokenizer.from_pretrained(source, subfolder=name, revision=revision)
                )
                tokenizers[-1].model_max_length = files.model_max_length(
                    name, tokenizers[-1].model_max_length, max_sequence_length
                )
        return tokenizers


def _numbers(text: str) -> set[int]:
    named = {NUMBERS.index(word) + 2 for word in normalise(text).split() if word in NUMBERS}
    return named | {int(digits) for digits in DIGITS.findall(text) if int(digits) >= 2}


def _colours(text: str) -> set[str]:
    words = (SAME_COLOUR.get(word, word) for word in normalise(text).split())
    return {word for word in words if word in COLOURS}


def _script(text: str) -> str | None:
    """Script of most of the letters, of at least three. Chinese and Japanese count as one."""
    scripts = Counter(unicodedata.name(c, "").partition(" ")[0] for c in text if c.isalpha())
    east_asian = sum(scripts.pop(name, 0) for name in ("CJK", "HIRAGANA", "KATAKANA"))
    scripts.update({"CHINESE OR JAPANESE": east_asian} if east_asian else {})
    script, count = max(scripts.items(), key=lambda item: item[1], default=("", 0))
    return script if count >= 3 else None


def _language(text: str) -> str | None:
    """Language with the most function words, of at least two and more than any other."""
    words = normalise(text).split()
    counts = Counter({name: sum(word in known for word in words) for name, known in FUNCTION_WORDS.items()})
    (first, most), (_, second) = counts.most_common(2)
    return first if most >= 2 and most > second else None
