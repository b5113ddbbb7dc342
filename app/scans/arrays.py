"""NumPy's files: an NPY of numbers and an NPZ of such arrays, opened only once their sizes are known."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from app.scans.scan import ScanRefused

MAGIC = b"\x93NUMPY"
MAX_NPZ_ENTRIES = 32


@dataclass(frozen=True)
class NpyHeader:
    """What an NPY says of the numbers in it."""

    shape: tuple[int, ...]
    by_columns: bool  # as Fortran lays them out
    dtype: np.dtype[Any]
    start: int  # bytes before the numbers

    def array(self, data: bytes) -> NDArray[Any]:
        """The numbers, not to be written to. Raises ScanRefused when there are fewer than it says."""
        count = math.prod(self.shape)
        if count * self.dtype.itemsize > len(data) - self.start:
            sides = " x ".join(map(str, self.shape))
            promised = f"The header promises {sides} numbers of {self.dtype.itemsize} bytes"
            raise ScanRefused("truncated_npy", f"{promised}; the file has fewer. Send the whole file.")
        numbers = np.frombuffer(data, self.dtype, count, self.start)
        return numbers.reshape(self.shape, order="F" if self.by_columns else "C")


def npy_header(data: bytes) -> NpyHeader:
    """What an NPY says of itself. Raises ScanRefused."""
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read(file)
    except Exception as error:  # numpy evaluates the header: more than ValueError can come out of it
        raise ScanRefused("invalid_npy", f"The NPY header cannot be read: {str(error)[:200]}.") from None
    if any(not isinstance(side, int) or side < 0 for side in shape):
        raise ScanRefused("invalid_npy", f"The array has the impossible shape {shape}.")
    if dtype.kind not in "fiu" or dtype.hasobject:
        raise ScanRefused("invalid_npy", f"The array must hold numbers, not {str(dtype)[:80]}.")
    return NpyHeader(shape, by_columns, dtype, file.tell())


def npz_entries(data: bytes, max_bytes: int) -> dict[str, bytes]:
    """Names and bytes of the NPYs in an NPZ, unpacked only once their sizes are known."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
            _check_npz_sizes(entries, max_bytes)
            return {entry.filename.removesuffix(".npy"): _unpacked(archive, entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise ScanRefused("invalid_npz", f"The NPZ cannot be unpacked: {str(error)[:200]}.") from None


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as file:
        # ZipFile.read() would unpack up to 2 GiB at once, whatever size the archive states.
        data = file.read(entry.file_size)
        file.read(1)  # at the end the checksum is looked at
        return data


def _check_npz_sizes(entries: list[zipfile.ZipInfo], max_bytes: int) -> None:
    if not entries or len(entries) > MAX_NPZ_ENTRIES:
        raise ScanRefused("invalid_npz", f"The NPZ holds {len(entries)} arrays; send `points` and `normals`.")
    plain = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack without a bound
    if any(entry.flag_bits & 0x1 or entry.compress_type not in plain for entry in entries):
        raise ScanRefused("invalid_npz", "The NPZ is encrypted or packed in an unusual way. Use numpy.savez.")
    if (unpacked := sum(entry.file_size for entry in entries)) > max_bytes:
        detail = f"The NPZ would unpack to {unpacked} bytes and the limit is {max_bytes}. Send fewer points."
        raise ScanRefused("unpacks_too_large", detail, status=413)
