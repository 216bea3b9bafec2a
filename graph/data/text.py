# SPDX-License-Identifier: Apache-2.0
"""Text files, plain or gzip, line by line; what is wrong is named with file and line."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line that is neither blank nor a # comment.

    Raises:
        ValueError: a truncated or damaged gzip file, or bytes that are no UTF-8.
    """
    number = 0
    with path.open("rb") as probe:
        zipped = probe.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8").strip()
                if text and not text.startswith("#"):
                    yield number, text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path} is a truncated or damaged gzip file (after line {number}): {error}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: no UTF-8 text; convert it: iconv -t utf-8") from error


def numbered(names: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(ids int64 of names [N], the distinct names in order of their ids).

    Names that are all whole numbers are ordered as numbers, others as text.
    """
    distinct, ids = np.unique(names, return_inverse=True)
    listed = [str(x) for x in distinct]
    if distinct.dtype.kind not in "iu" and all(_whole(x) for x in listed):
        order = sorted(range(len(listed)), key=lambda i: (int(listed[i]), listed[i]))
        place = np.empty(len(listed), np.int64)
        place[order] = np.arange(len(listed))
        return place[ids.reshape(-1)], [listed[i] for i in order]
    return ids.reshape(-1).astype(np.int64), listed


def _whole(name: str) -> bool:
    return name.isascii() and name.isdigit()
