# SPDX-License-Identifier: Apache-2.0
"""Files of arrays, .npy and .npz, whose claims are checked before memory is taken for them.

A .npz file is a zip archive of .npy files. Its directory says how large each becomes and the header
of each says how large its array is: both are read first. Reads what `numpy.save`, `numpy.savez` and
`numpy.savez_compressed` write, arrays of objects excepted.
"""

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graph.data.text import MOST_INFLATED, MOST_RATIO

READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""What reads the header of a .npy file, by its version."""
TORN = (
    ValueError, TypeError, SyntaxError, AttributeError, IndexError, OverflowError, MemoryError,
    RecursionError, tokenize.TokenError,
)  # fmt: skip
"""What reading a torn header raises, which is a Python literal."""
METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflate"}
"""Ways of compression that NumPy writes; none of them inflates more than asked for."""
ENCRYPTED = 1
"""Bit of the flags of an entry of a zip archive."""


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a .npz file by name.

    Raises:
        ValueError: missing, torn, encrypted, compressed in an unknown way, larger than it can be,
            or with objects inside; the file is named.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_directory(entries, path.stat().st_size)
            found = {}
            for entry in entries:
                with archive.open(entry) as stream:
                    array = _read_array(stream, entry.file_size, entry.filename)
                found[entry.filename.removesuffix(".npy")] = array
            return found
    except FileNotFoundError as error:
        raise ValueError(f"missing file {path}") from error
    except (
        ValueError, OSError, EOFError, KeyError, RuntimeError, MemoryError, OverflowError,
        struct.error, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} cannot be read as a .npz file of arrays: {error}") from error


def _check_directory(entries: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Raises ValueError where what a zip archive of `size` bytes says of its entries is refused."""
    names = [entry.filename for entry in entries]
    for at, entry in enumerate(entries):
        if entry.flag_bits & ENCRYPTED:
            raise ValueError(f"{entry.filename} is encrypted; write it without a password")
        if entry.compress_type not in METHODS:
            raise ValueError(
                f"{entry.filename} is compressed by method {entry.compress_type}; choose from "
                f"{', '.join(METHODS.values())}: write it with numpy.savez_compressed"
            )
        if entry.filename in names[:at]:
            raise ValueError(f"two entries are named {entry.filename}")
    total = sum(entry.file_size for entry in entries)
    if total > max(MOST_INFLATED, MOST_RATIO * size):
        raise ValueError(
            f"its {size:,} bytes inflate to {total:,}, more than {MOST_RATIO} times as many; if it "
            "is right, write it with numpy.savez, without compression"
        )


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file.

    Raises:
        ValueError: missing, torn, of another length than its header says, or with objects inside;
            the file is named.
    """
    try:
        with path.open("rb") as file:
            return _read_array(file, path.stat().st_size, "the file")
    except FileNotFoundError as error:
        raise ValueError(f"missing file {path}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a .npy file of numbers: {error}") from error


def _read_array(stream: Any, size: int, name: str) -> np.ndarray:
    """Reads an array of .npy format that takes `size` bytes with its header.

    Raises:
        ValueError: a torn header, objects, or another length than the header says.
    """
    try:
        version = np.lib.format.read_magic(stream)
        shape, is_fortran, dtype = READERS[version](stream)
    except KeyError as error:
        raise ValueError(f"{name} has version {error} of the .npy format, read are 1 and 2") from (
            error
        )
    except TORN as error:
        raise ValueError(f"{name} has no header of a .npy file: {error}") from error
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects, numbers or text are expected")
    claimed = math.prod(shape) * dtype.itemsize
    held = size - stream.tell()
    if claimed != held or min(shape, default=0) < 0:
        raise ValueError(
            f"{name} claims {dtype} {list(shape)}, {claimed:,} bytes, and holds {held:,}"
        )
    content = bytearray(claimed)
    view = memoryview(content)
    filled = 0
    while filled < claimed:
        count = stream.readinto(view[filled:])
        if not count:
            raise ValueError(f"{name} ends after {filled:,} of {claimed:,} bytes")
        filled += count
    if not claimed:
        return np.empty(shape, dtype)
    array = np.frombuffer(content, dtype)
    return array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)
