"""Images: depth as PNG, TIFF, EXR or NPY, masks and colours. What a header promises is checked first.

TIFF goes through Pillow and not tifffile, which inflates a strip without a bound; its header is read
here, since Pillow would load every tag, and misreads packed floats in big-endian order.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.scans import arrays
from app.scans.scan import Bytes, ScanRefused

PNG, EXR = b"\x89PNG\r\n\x1a\n", b"\x76\x2f\x31\x01"
TIFF = (b"II*\0", b"MM\0*")
MILLIMETRES, METRES = 1000.0, 1.0

DEPTH_MODES = ("I;16", "I;16B", "I", "F")
MASK_MODES = ("L", "1")
COLOR_MODES = ("RGB", "RGBA", "L")


def is_depth_image(data: bytes) -> bool:
    """Whether the first bytes are those of an image format that holds depth."""
    return data.startswith((PNG, EXR, *TIFF))


def is_depth_array(data: bytes) -> bool:
    """Whether this is an NPY that holds no rows of points. Raises ScanRefused for a broken header."""
    if not data.startswith(arrays.MAGIC):
        return False
    shape = arrays.npy_header(data).shape
    return len(shape) == 2 and shape[1] not in (3, 6)


def depth_pixels(data: bytes, max_pixels: int) -> tuple[NDArray[Any], float]:
    """The values of a depth map (H, W) as they are stored, and how many make a metre unless told.

    Whole numbers are millimetres and floats are metres (REP 118). Raises ScanRefused.
    """
    what = "depth map"
    if data.startswith(EXR):
        pixels = _exr(data, max_pixels)
    elif data.startswith(TIFF):
        _check_tiff(data, max_pixels)
        pixels = _pixels(data, what, ("TIFF",), DEPTH_MODES, max_pixels)
    elif data.startswith(arrays.MAGIC):
        pixels = _npy(data, max_pixels)
    else:
        pixels = _pixels(data, what, ("PNG",), DEPTH_MODES, max_pixels)
    return pixels, METRES if pixels.dtype.kind == "f" else MILLIMETRES


def mask_pixels(data: bytes, shape: tuple[int, ...], max_pixels: int) -> NDArray[np.bool_]:
    """A mask (H, W) of a depth map of that shape: true on the object. Raises ScanRefused."""
    mask = _pixels(data, "mask", ("PNG",), MASK_MODES, max_pixels, shape)
    if not mask.any():
        raise ScanRefused("empty_mask", "The mask is black everywhere. Paint the object's pixels white.")
    return np.asarray(mask > 0)


def color_pixels(data: bytes, shape: tuple[int, ...], max_pixels: int) -> Bytes:
    """The colours (H, W, 3) beside a depth map of that shape. Raises ScanRefused."""
    pixels = _pixels(data, "colour image", ("PNG", "JPEG"), COLOR_MODES, max_pixels, shape)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels[..., :3]


def too_many_pixels(what: str, limit: int) -> ScanRefused:
    """A larger image than this service takes."""
    return ScanRefused(
        "too_many_pixels", f"The {what} has more than {limit} pixels. Scale it down.", status=413
    )


# PNG, JPEG, and the pixels of TIFF


def _pixels(
    data: bytes,
    what: str,
    formats: tuple[str, ...],
    modes: tuple[str, ...],
    max_pixels: int,
    shape: tuple[int, ...] | None = None,
) -> NDArray[Any]:
    """Decode an image once its header is known to be harmless."""
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _check_image(image, what, modes, max_pixels, shape)
            return np.asarray(image)
    except ScanRefused:
        raise
    except Image.DecompressionBombError:
        raise too_many_pixels(what, max_pixels) from None
    except Exception as error:  # a broken image raises half a dozen kinds of errors
        told = f"The {what} cannot be decoded as {' or '.join(formats)}: {str(error)[:200]}."
        raise ScanRefused(f"invalid_{formats[0].lower()}", told) from None


def _check_image(
    image: Image.Image, what: str, modes: tuple[str, ...], max_pixels: int, shape: tuple[int, ...] | None
) -> None:
    if image.width * image.height > max_pixels:
        raise too_many_pixels(what, max_pixels)
    if image.mode not in modes:
        wanted = {DEPTH_MODES: "16-bit greyscale", MASK_MODES: "8-bit greyscale", COLOR_MODES: "8-bit RGB"}
        told = f"The {what} must be {wanted[modes]}; this one is {image.mode}."
        raise ScanRefused("wrong_image_kind", told)
    if shape is not None and (image.height, image.width) != shape:
        told = f"The {what} has {image.size} pixels and the depth map {shape[::-1]}. Send equal sizes."
        raise ScanRefused("mask_size" if modes == MASK_MODES else "color_size", told)


# TIFF

TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
WIDTH, HEIGHT, BITS, PACKING, SAMPLES, TILE_WIDTH, TILE_HEIGHT, KIND = 256, 257, 258, 259, 277, 322, 323, 339
UNSIGNED, FLOAT, UNPACKED = 1, 3, 1


def _check_tiff(data: bytes, max_pixels: int) -> None:
    """Refuse what promises too much, and what Pillow would read wrongly."""
    try:
        tags, further = _tiff_tags(data)
    except struct.error:
        raise _bad_tiff("Its header ends too early.") from None
    sides = [(tags.get(WIDTH, 0), tags.get(HEIGHT, 0)), (tags.get(TILE_WIDTH, 0), tags.get(TILE_HEIGHT, 0))]
    if any(width * height > max_pixels for width, height in sides):
        raise too_many_pixels("depth map", max_pixels)
    kind = tags.get(BITS, 1), tags.get(KIND, UNSIGNED), tags.get(SAMPLES, 1)
    if kind not in ((16, UNSIGNED, 1), (32, FLOAT, 1)):
        told = "The depth map must be a TIFF of one uint16 or float32 a pixel."
        raise ScanRefused("wrong_image_kind", told)
    if further:
        raise _bad_tiff("It has several pages. Save the depth map alone.")
    if data.startswith(b"MM") and kind[1] == FLOAT and tags.get(PACKING, UNPACKED) != UNPACKED:
        raise _bad_tiff("Packed floats in big-endian order are not read. Save it unpacked.")


def _tiff_tags(data: bytes) -> tuple[dict[int, int], bool]:
    """The single whole numbers of the first page by tag, and whether a second page follows."""
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    entries = [struct.unpack_from(f"{order}HHI", data, at + 2 + 12 * i) for i in range(count)]
    if sum(TIFF_SIZES.get(kind, 1) * many for _, kind, many in entries) > len(data):
        raise _bad_tiff("Its tags promise more bytes than the file has.")
    if len({tag for tag, _, _ in entries}) < count:
        raise _bad_tiff("A tag is there twice.")
    tags = {}
    for i, (tag, kind, many) in enumerate(entries):
        if many == 1 and kind in (3, 4):
            (tags[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at + 10 + 12 * i)
        elif tag in (WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT):
            raise _bad_tiff("A side must be one whole number.")
    (further,) = struct.unpack_from(f"{order}I", data, at + 2 + 12 * count)
    return tags, further != 0


def _bad_tiff(detail: str) -> ScanRefused:
    return ScanRefused("invalid_tiff", f"The TIFF cannot be read. {detail}")


# EXR

MAX_EXR_CHANNELS, MAX_EXR_ATTRIBUTES = 64, 1000
EXR_PLAIN = 0x002, 0x402
"""Version 2 without flags but that of long names: one part of scan lines, not tiled, not deep."""


@dataclass(frozen=True)
class ExrHeader:
    """What we look at before the library does."""

    channels: list[str]
    data_window: tuple[int, int, int, int]
    display_window: tuple[int, int, int, int]

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height."""
        left, top, right, bottom = self.data_window
        return right - left + 1, bottom - top + 1


def _exr(data: bytes, max_pixels: int) -> NDArray[Any]:
    header = _exr_header(data)
    width, height = header.sides
    if width < 1 or height < 1 or header.data_window != header.display_window:
        raise _bad_exr("Its data window must be its display window, which the intrinsics speak of.")
    # The library reads every channel.
    if width * height > max_pixels or width * height * len(header.channels) > 4 * max_pixels:
        raise too_many_pixels("depth map", max_pixels)
    name = _depth_channel(header.channels)

    import OpenEXR

    try:
        with OpenEXR.File(io.BytesIO(data), separate_channels=True, num_threads=0) as file:
            pixels = np.array(file.channels()[name].pixels)
    except Exception as error:  # of the library, which says RuntimeError, ValueError or KeyError
        raise _bad_exr(f"{str(error)[:200]}.") from None
    if pixels.dtype.kind != "f" or pixels.shape != (height, width):
        raise ScanRefused("wrong_image_kind", f"The EXR's channel {name!r} must hold a float for each pixel.")
    return pixels


def _depth_channel(names: list[str]) -> str:
    """`Z` by that name, else the only channel, else the first of B, G, R. Raises ScanRefused."""
    named = [name for name in names if name == "Z" or name.endswith(".Z")]
    if named or len(names) == 1 or sorted(names) == ["B", "G", "R"]:
        return (named or sorted(names))[0]
    raise ScanRefused("wrong_image_kind", f"The EXR has the channels {names[:9]}; name the depth `Z`.")


def _exr_header(data: bytes) -> ExrHeader:
    try:
        found = _exr_attributes(data)
        channels = _exr_channels(found["channels"])
        windows = [struct.unpack("<4i", found[name]) for name in ("dataWindow", "displayWindow")]
    except (struct.error, KeyError, IndexError, ValueError):
        raise _bad_exr("Its header is broken.") from None
    return ExrHeader(channels, *windows)


def _exr_attributes(data: bytes) -> dict[str, bytes]:
    """Name and value of each attribute of the header."""
    (version,) = struct.unpack_from("<I", data, 4)
    if version not in EXR_PLAIN:
        raise _bad_exr("It must be one part of scan lines, neither tiled nor deep.")
    at, found = 8, dict[str, bytes]()
    for _ in range(MAX_EXR_ATTRIBUTES):
        if data[at] == 0:
            return found
        name, kind = (text.decode("latin-1") for text in _exr_texts(data, at, 2))
        at += len(name) + len(kind) + 2
        (size,) = struct.unpack_from("<i", data, at)
        if not 0 <= size <= len(data) - at - 4:
            raise ValueError("an attribute longer than the file")
        found[name] = data[at + 4 : at + 4 + size]
        at += 4 + size
    raise ValueError("a header without end")


def _exr_channels(value: bytes) -> list[str]:
    at, names = 0, list[str]()
    while value[at] != 0:
        if len(names) == MAX_EXR_CHANNELS:
            raise _bad_exr(f"It has more than {MAX_EXR_CHANNELS} channels. Save the depth alone.")
        (name,) = _exr_texts(value, at, 1)
        names.append(name.decode("latin-1"))
        if struct.unpack_from("<2i", value, at + len(name) + 9) != (1, 1):
            raise ValueError("a channel that leaves out pixels")
        at += len(name) + 1 + 16
    return names


def _exr_texts(data: bytes, at: int, count: int) -> list[bytes]:
    """So many names of at most 255 bytes, each ended by a zero."""
    found = re.match(rb"([^\0]{1,255})\0" * count, data[at : at + 256 * count])
    if found is None:
        raise ValueError("a name without end")
    return list(found.groups())


def _bad_exr(detail: str) -> ScanRefused:
    return ScanRefused("invalid_exr", f"The EXR cannot be read. {detail}")


# NPY


def _npy(data: bytes, max_pixels: int) -> NDArray[Any]:
    header = arrays.npy_header(data)
    shape, dtype = header.shape, header.dtype
    if shape[0] * shape[1] > max_pixels:
        raise too_many_pixels("depth map", max_pixels)
    if dtype.kind != "f" and dtype.newbyteorder("=") != np.uint16:
        raise ScanRefused(
            "wrong_image_kind", f"The depth map must be an array of uint16 or float, not {dtype}."
        )
    return header.array(data)
