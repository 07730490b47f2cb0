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


"""The images that are trained on, of whatever origin: the pixels that a viewer shows, or an error that names the row."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset
from PIL import Image, ImageCms, ImageOps

from ..errors import UsageError
from ..sources import first_line


# Those of Pillow's modes that say what is white. Numbers of 32 bits do not, and it converts no LAB.
MODES = {
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I;16B", "I;16L", "I;16N",
}  # fmt: skip
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")  # a JPEG of several pictures (MPO) holds previews and depth maps
TURNED = (5, 6, 7, 8)  # EXIF orientations in which width and height change places


class TrainingImages(Sequence[Image.Image]):
    """
    The images of a dataset's column in RGB, each read when it is asked for.

    They are as a viewer shows them on a white page: turned as their EXIF orientation says, what is transparent on white,
    16 bits scaled to 8, colours of an embedded profile (as in CMYK and wide-gamut files) brought to sRGB.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with the column.
        column (`str`, *optional*, defaults to `"image"`):
            A column of images.
        names (`Sequence[str]`, *optional*):
            What each image is called in errors. Defaults to row and column.

    Raises:
        [`UsageError`]: for one that cannot be read or has no such pixels; it names row and column.
    """

    def __init__(self, dataset: Dataset, column: str = "image", names: Sequence[str] | None = None):
        self.column, self.names = column, names
        plain = dataset.with_format(None) if dataset.format["type"] is not None else dataset
        self.rows = plain.select_columns(column).cast_column(column, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        with self._naming(row):
            image = _open(self.rows[row][self.column])
            return as_rgb(image)

    def check(self) -> dict[tuple[int, int], int]:
        """Look at every image, whole but without keeping or converting it; return the sizes, each with its first row."""
        sizes: dict[tuple[int, int], int] = {}
        for row, values in enumerate(self.rows):
            with self._naming(row):
                image = _open(values[self.column])
                size = size_shown(image)
                if image.format == "PNG":
                    image.verify()  # the checksum of every part: a twentieth of the time that decoding takes
                else:
                    image.draft(None, (1, 1))  # a JPEG is read to its end, at an eighth of its size
                    image.load()
            sizes.setdefault(size, row)
        return sizes

    @contextmanager
    def _naming(self, row: int) -> Iterator[None]:
        name = f"The {self.column} of row {row}" if self.names is None else self.names[row]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                yield
        except UsageError as error:
            raise UsageError(f"{name} {error}.") from error
        except Exception as error:  # Pillow has errors of its own for every format
            raise UsageError(f"{name} cannot be read: {first_line(error)}.") from error


def _open(stored: dict | None) -> Image.Image:
    """A stored image, of which as little is read as it takes."""
    if stored is None or (stored["bytes"] is None and not stored["path"]):
        raise UsageError("is missing")
    if stored["bytes"] is not None:
        image = Image.open(io.BytesIO(stored["bytes"]))
    elif Path(stored["path"]).is_file():
        image = Image.open(io.BytesIO(Path(stored["path"]).read_bytes()))
    else:
        image = datasets.Image().decode_example(stored)  # an address; or there is no such file, and it says so
    frames = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
    if frames > 1:
        raise UsageError(f"holds {frames} pictures and must be one")
    # The grey of Netpbm is in mode I, but scaled to 16 bits.
    if image.mode not in MODES and (image.format, image.mode) != ("PPM", "I"):
        raise UsageError(
            f"has pixels of mode {image.mode}, of which it is not known what is white: save it with 8 bits"
        )
    if image.mode.startswith("I;16") and image.format == "TIFF" and image.tag_v2.get(258) != (16,):
        raise UsageError(f"has {image.tag_v2.get(258)[0]} bits, which are not read: save it with 8 or 16")
    return image


def size_shown(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image that has been opened, as it is shown."""
    turned = image.format != "TIFF" and _orientation(image) in TURNED  # a TIFF has the size that it will be turned to
    return (image.height, image.width) if turned else image.size


def _orientation(image: Image.Image) -> int:
    try:
        # Not `image.getexif()`, for which a PNG without EXIF is decoded.
        return Image.Image.getexif(image).get(Image.ExifTags.Base.Orientation, 1)
    except Exception:  # a viewer passes over EXIF that is broken, in whatever way
        return 1


def as_rgb(image: Image.Image) -> Image.Image:
    """An image as a viewer shows it on a white page, in RGB."""
    image.load()
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    alpha = None
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if "transparency" in image.info:
            alpha = Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8))
        colors = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif image.has_transparency_data:
        whole = image.convert("RGBA")
        alpha, colors = whole.getchannel("A"), whole.convert("RGB")
        if image.mode in ("L", "LA", "La", "1"):
            colors = colors.convert("L")  # what a profile for grey is for
    else:
        colors = image.convert({"1": "L", "L": "L", "CMYK": "CMYK"}.get(image.mode, "RGB"))
    colors = _in_srgb(colors, profile) if profile else colors.convert("RGB")
    if alpha is None:
        return colors
    return Image.composite(colors, Image.new("RGB", colors.size, "white"), alpha)


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" not in ImageCms.getProfileDescription(given):
            return ImageCms.profileToProfile(image, given, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        pass  # a viewer passes over a profile that is broken or of another kind of pixels
    return image.convert("RGB")


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
