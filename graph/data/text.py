# SPDX-License-Identifier: Apache-2.0
"""Text files, plain or gzip, line by line; what is wrong is named with file and line.

`rec.data.files` opens files alike: libraries share no code, one table of tests holds both.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

MOST_INFLATED = 1 << 26
"""Bytes a gzip file may always inflate to."""
MOST_RATIO = 200
"""Times the size of a larger gzip file that it may inflate to; deflate reaches 1030."""
CHUNK = 1 << 16
"""Bytes read at a time."""
LONGEST_NUMBER = 1000
"""Digits of a name that is ordered as a number; int refuses 4,300."""


def inside(root: str | Path, *parts: str) -> Path:
    """The path of a file or folder below the data folder.

    Raises:
        ValueError: a part is absolute, or has a "..", a backslash or a NUL in it.
    """
    for part in parts:
        pure = PurePosixPath(part)
        if pure.is_absolute() or ".." in pure.parts or "\\" in part or "\0" in part:
            raise ValueError(
                f"{part!r} leaves the data folder {root}: a dataset is named without '..', "
                "backslash, NUL or a leading '/'"
            )
    return Path(root, *parts)


class _Inflated(io.RawIOBase):
    """Reads a gzip file and stops where it has grown out of all proportion."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._packed = path.open("rb")
        self._file = gzip.GzipFile(fileobj=self._packed)
        self._total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        self._total += len(content)
        if self._total > max(MOST_INFLATED, MOST_RATIO * self._packed.tell()):
            raise ValueError(
                f"{self._path} inflates to more than {MOST_RATIO} times its size, which no table "
                "or text does; if it is right, unzip it: gunzip"
            )
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        self._packed.close()
        super().close()


def open_content(path: str | Path) -> io.BufferedReader:
    """Opens a file, plain or gzip (told by its first bytes), without its byte-order mark.

    Reading raises EOFError, zlib.error or OSError where a gzip file is damaged, and ValueError
    where one inflates out of all proportion, which is known before memory fills.
    """
    path = Path(path)
    file: Any = path.open("rb")
    if file.peek(2)[:2] == b"\x1f\x8b":
        file.close()
        file = io.BufferedReader(_Inflated(path), CHUNK)
    if file.peek(len(codecs.BOM_UTF8))[: len(codecs.BOM_UTF8)] == codecs.BOM_UTF8:
        file.read(len(codecs.BOM_UTF8))
    return file


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line that is neither blank nor a # comment.

    Raises:
        ValueError: a truncated or damaged gzip file, one that inflates out of all proportion, or
            bytes that are no UTF-8.
    """
    number = 0
    try:
        with open_content(path) as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8").strip()
                if text and not text.startswith("#"):
                    yield number, text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path} is a truncated or damaged gzip file (after line {number}): {error}; "
            "fetch it again"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: not utf-8 text; convert it: iconv -t utf-8") from error


def refuse_doubled(path: str | Path, columns: Sequence[str]) -> None:
    """Raises ValueError naming a column that a table has twice."""
    doubled = next((column for at, column in enumerate(columns) if column in columns[:at]), None)
    if doubled is not None:
        raise ValueError(f"{path}: two columns are named {doubled!r}; rename or remove one")


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
    return name.isascii() and name.isdigit() and len(name) <= LONGEST_NUMBER
