# SPDX-License-Identifier: Apache-2.0
"""Item vectors of any encoder of yours, as one .npy file."""

from pathlib import Path

import numpy as np


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
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
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
