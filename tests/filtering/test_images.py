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


"""Training images of every kind that Pillow writes: the pixels that a viewer shows, or one line with row and column."""

import io
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from PIL import ImageCms, PngImagePlugin

from craft_trl.errors import UsageError
from craft_trl.filtering.dataset import validate
from craft_trl.filtering.images import TrainingImages


RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
COLORS = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)  # (8, 8, 3)
ALPHA = np.where(np.arange(64).reshape(8, 8) % 3 == 0, 0, np.where(np.arange(64).reshape(8, 8) % 3 == 1, 128, 255))
ALPHA = ALPHA.astype(np.uint8)


def on_white(colors, alpha=ALPHA):
    share = alpha[..., None] / 255
    return colors * share + 255 * (1 - share)


def grey(values):
    return np.repeat(np.asarray(values, dtype=float)[..., None], 3, axis=2)


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def palette(alpha=None):
    """A palette image of 64 colours, with an alpha of each if it is given."""
    image = PILImage.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "P")
    image.putpalette(COLORS.reshape(-1).tolist())
    return image, ({} if alpha is None else {"transparency": bytes(alpha.reshape(-1))})


def turned(orientation):
    exif = PILImage.Exif()
    exif[PILImage.ExifTags.Base.Orientation] = orientation
    return exif


def deep(values, color_type):
    """A PNG of 16 bits, which Pillow writes only in grey."""
    height, width = values.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)

    def chunk(name, data):
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, color_type, 0, 0, 0])
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


DEEP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040  # 0 ... 65520: a clipped one is white from row 0 on
DEEP_COLORS = np.stack([DEEP, DEEP[::-1], DEEP.T], axis=-1)
WHOLE_ALPHA = np.concatenate([COLORS, ALPHA[..., None]], axis=-1)
CMYK = PILImage.fromarray(np.concatenate([COLORS, RAMP[..., None] // 2], axis=-1), "CMYK")
CMYK_SHOWN = (255 - COLORS.astype(float)) * (255 - (RAMP // 2)[..., None]) / 255

# By name: a picture and how it is saved, and what a viewer shows
KINDS = {
    "1": (saved(PILImage.fromarray(RAMP > 99), "PNG"), grey((RAMP > 99) * 255)),
    "L": (saved(PILImage.fromarray(RAMP), "PNG"), grey(RAMP)),
    "L, transparent": (saved(PILImage.fromarray(RAMP), "PNG", transparency=8), grey(np.where(RAMP == 8, 255, RAMP))),
    "LA": (saved(PILImage.fromarray(np.dstack([RAMP, ALPHA]), "LA"), "PNG"), on_white(grey(RAMP))),
    "P": (saved(palette()[0], "PNG"), COLORS),
    "P, GIF": (saved(palette()[0], "GIF"), COLORS),
    "P, transparent": (saved(palette()[0], "PNG", **palette(ALPHA)[1]), on_white(COLORS)),
    "P, one colour transparent": (saved(palette()[0], "GIF", transparency=5), np.where(np.arange(64).reshape(8, 8, 1) == 5, 255, COLORS)),
    "RGB": (saved(PILImage.fromarray(COLORS), "PNG"), COLORS),
    "RGB, TIFF": (saved(PILImage.fromarray(COLORS), "TIFF"), COLORS),
    "RGB, one colour transparent": (saved(PILImage.fromarray(COLORS), "PNG", transparency=tuple(COLORS[2, 3].tolist())), np.where((COLORS == COLORS[2, 3]).all(-1, keepdims=True), 255, COLORS)),
    "RGBA": (saved(PILImage.fromarray(WHOLE_ALPHA), "PNG"), on_white(COLORS)),
    "RGBA, WebP": (saved(PILImage.fromarray(WHOLE_ALPHA), "WEBP", lossless=True, exact=True), on_white(COLORS)),
    "RGBA, opaque": (saved(PILImage.fromarray(COLORS).convert("RGBA"), "PNG"), COLORS),
    "CMYK": (saved(CMYK, "TIFF"), CMYK_SHOWN),
    "YCbCr": (saved(PILImage.fromarray(COLORS).convert("YCbCr"), "TIFF"), COLORS),
    "grey of 16 bits": (saved(PILImage.fromarray(DEEP), "PNG"), grey(DEEP / 257)),
    "grey of 16 bits, TIFF": (saved(PILImage.fromarray(DEEP), "TIFF"), grey(DEEP / 257)),
    "grey of 16 bits, Netpbm": (b"P5 8 8 65535 " + DEEP.astype(">u2").tobytes(), grey(DEEP / 257)),
    "grey of 10 bits, Netpbm": (b"P5 8 8 1023 " + (DEEP >> 6).astype(">u2").tobytes(), grey((DEEP >> 6) / 1023 * 255)),
    "colours of 16 bits": (deep(DEEP_COLORS, 2), DEEP_COLORS / 257),
    "grey and alpha of 16 bits": (deep(np.dstack([DEEP, ALPHA * np.uint16(257)]), 4), on_white(grey(DEEP / 257))),
    "colours and alpha of 16 bits": (deep(np.dstack([DEEP_COLORS, ALPHA * np.uint16(257)]), 6), on_white(DEEP_COLORS / 257)),
    **{
        f"turned, {format}, {orientation}": (saved(PILImage.fromarray(COLORS), format, exif=turned(orientation)), shown)
        for format in ("PNG", "TIFF")
        for orientation, shown in ((3, COLORS[::-1, ::-1]), (6, np.rot90(COLORS, -1)), (7, COLORS[::-1, ::-1].transpose(1, 0, 2)))
    },
    "broken EXIF": (saved(PILImage.fromarray(COLORS), "PNG", exif=b"Exif\0\0II*\0\xff\xff"), COLORS),
}  # fmt: skip
# What datasets (5.2) drops, or writes with numbers of 32 bits, when it is given such a picture as an object.
NOT_AS_OBJECTS = ("transparent", "Netpbm", "turned")


def rows(images, **columns):
    data = {"image": images, "prompt": ["a"] * len(images), "advantage": [1.0] * len(images), **columns}
    features = {"image": Image(), "prompt": Value("string"), "advantage": Value("float64")}
    return Dataset.from_dict(data, features=Features(features))


@pytest.mark.parametrize("stored", ["bytes", "path", "PIL"])
@pytest.mark.parametrize("name", KINDS)
def test_as_a_viewer_shows_it(tmp_path, name, stored):
    data, shown = KINDS[name]
    if stored == "PIL" and any(word in name for word in NOT_AS_OBJECTS):
        return
    if stored == "path":
        (tmp_path / "image").write_bytes(data)
    given = {"bytes": data, "path": str(tmp_path / "image"), "PIL": PILImage.open(io.BytesIO(data))}[stored]
    if stored == "PIL":
        given.load()
        given.format = None  # else datasets keeps the file as it is
    dataset = rows([given])
    validate(dataset)
    image = TrainingImages(dataset)[0]
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image, dtype=float), shown, atol=1.01 if name != "YCbCr" else 3.01)


def test_webp_turned():
    lossless = saved(PILImage.fromarray(COLORS), "WEBP", exif=turned(6), lossless=True)
    np.testing.assert_array_equal(TrainingImages(rows([lossless]))[0], np.rot90(COLORS, -1))


def test_sizes_as_shown():
    """The size that counts is that of the picture as it is turned, of which no image is decoded."""
    wide = PILImage.fromarray(np.concatenate([COLORS, COLORS], axis=1))
    for format in ("PNG", "TIFF", "JPEG"):
        images = TrainingImages(rows([saved(wide, format, exif=turned(6)), saved(wide, format)]))
        assert images.check() == {(8, 16): 0, (16, 8): 1} and images[0].size == (8, 16), format


def test_a_profile():
    """Numbers of another colour space are brought to sRGB: here one in which red and green have changed places."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"?").replace(b"gXYZ", b"rXYZ").replace(b"?", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    colors = PILImage.fromarray(COLORS)
    for image, shown in (
        (colors, COLORS[..., [1, 0, 2]]),
        (PILImage.fromarray(WHOLE_ALPHA), on_white(COLORS[..., [1, 0, 2]])),
    ):
        images = TrainingImages(rows([saved(image, "PNG", icc_profile=swapped)]))
        np.testing.assert_allclose(np.asarray(images[0], dtype=float), shown, atol=2)
    for same in (srgb, b"no profile"):
        given = saved(colors, "PNG", icc_profile=same)
        np.testing.assert_array_equal(TrainingImages(rows([given]))[0], colors)


def animated(format, **options):
    frames = [PILImage.fromarray(COLORS), PILImage.fromarray(COLORS[::-1].copy())]
    return saved(frames[0], format, save_all=True, append_images=frames[1:], **options)


def with_text():
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "a" * 2**21, zip=True)
    return saved(PILImage.fromarray(COLORS), "PNG", pnginfo=text)


NOISE = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BROKEN = {
    "none": (None, "is missing"),
    "float": (PILImage.fromarray(RAMP.astype(np.float32)), "has pixels of mode F, of which it is not known what is white"),
    "32 bits": (PILImage.fromarray(RAMP.astype(np.int32)), "has pixels of mode I,"),
    "LAB": (PILImage.fromarray(COLORS, "LAB"), "has pixels of mode LAB,"),
    "GIF": (animated("GIF"), "holds 2 pictures and must be one"),
    "WebP": (animated("WEBP"), "holds 2 pictures and must be one"),
    "APNG": (animated("PNG"), "holds 2 pictures and must be one"),
    "pages": (animated("TIFF"), "holds 2 pictures and must be one"),
    "no image": (b"<html>", "cannot be read: cannot identify image file"),
    "nothing": (b"", "cannot be read: cannot identify image file"),
    "a file that is gone": ("nowhere.png", "cannot be read: .*nowhere.png"),
    "text": (with_text(), "cannot be read: Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK"),
    **{
        f"cut {format}": (saved(NOISE, format)[:-40], "cannot be read: .*[Tt]runcated|cannot be read: ")
        for format in ("PNG", "JPEG", "WEBP", "TIFF")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image(name):
    image, message = BROKEN[name]
    size = 64 if name.startswith("cut") else 8
    dataset = rows([PILImage.new("RGB", (size, size)), image])
    with pytest.raises(UsageError, match=message) as error:
        validate(dataset)
    said = str(error.value)
    assert "\n" not in said and said.startswith("The image of row 1 ") and len(said) < 200
    with pytest.raises(UsageError, match="^The image of row 1 "):
        TrainingImages(dataset)[1]


def test_a_decompression_bomb(monkeypatch):
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 100)
    for side in (12, 20):  # Pillow warns of the one and refuses the other
        with pytest.raises(UsageError, match=r"The image of row 1 cannot be read: Image size .* decompression bomb"):
            validate(rows([PILImage.new("RGB", (8, 8)), PILImage.new("RGB", (side, side))]))


def test_decoded_one_by_one(monkeypatch):
    """Checking them decodes none, and of those that are read none outlives its turn."""
    one = saved(PILImage.effect_noise((512, 512), 50).convert("RGB"), "PNG", compress_level=1)
    dataset = rows([one] * 20)
    decoded = []
    load = PngImagePlugin.PngImageFile.load_prepare
    monkeypatch.setattr(
        PngImagePlugin.PngImageFile, "load_prepare", lambda image: (decoded.append(weakref.ref(image)), load(image))[1]
    )
    validate(dataset)
    assert decoded == []
    for image in TrainingImages(dataset):
        assert image.size == (512, 512) and sum(alive() is not None for alive in decoded) <= 2
    assert len(decoded) == 20


def test_slices_and_formats():
    dataset = rows([saved(PILImage.fromarray(COLORS), "PNG")] * 3)
    images = TrainingImages(dataset.with_format("torch"))
    validate(dataset.with_format("torch"))
    assert len(images) == 3 and len(images[1:]) == 2 and len(list(images)) == 3
    assert Path(TrainingImages(rows(["nowhere.png"])).rows[0]["image"]["path"]).name == "nowhere.png"
