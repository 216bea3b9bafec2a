# SPDX-License-Identifier: Apache-2.0
"""Item vectors of any encoder of yours, as one .npy file."""

import math
import tokenize
from pathlib import Path

import numpy as np

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


def load(path: str | Path, num_items: int) -> np.ndarray:
    """float32 [num_items, d] of a .npy file; row i belongs to internal item i.

    Raises:
        ValueError: missing, not a plain .npy file of numbers, another number of rows, a value that
            is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"missing file {path}: a .npy file [{num_items}, d] is expected")
    try:
        _check_header(path)
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no .npy file of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: one array of numbers is expected (np.save)")
    if array.ndim != 2 or len(array) != num_items or not array.shape[1]:
        raise ValueError(
            f"{path}: shape {list(array.shape)}, [{num_items}, d] is expected: a row per item, in "
            "the order of Corpus.items"
        )
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array).all(1)))
        raise ValueError(f"{path}: row {row} holds a value that is not finite")
    return array.astype(np.float32)


def _check_header(path: Path) -> None:
    """Raises ValueError where the header of a .npy file is torn, speaks of objects, or claims
    another length than the file has; nothing else is read."""
    with path.open("rb") as file:
        try:
            shape, _, dtype = READERS[np.lib.format.read_magic(file)](file)
        except (KeyError, *TORN) as error:
            raise ValueError(f"one array is expected, as np.save writes it: {error}") from error
        held = path.stat().st_size - file.tell()
    claimed = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError("it holds objects")
    if claimed != held or min(shape, default=0) < 0:
        raise ValueError(f"it claims {dtype} {list(shape)}, {claimed:,} bytes, and holds {held:,}")
