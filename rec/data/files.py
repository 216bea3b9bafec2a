# SPDX-License-Identifier: Apache-2.0
"""Raw text files, plain or gzip, read line by line; what is wrong is named with file and line.

`graph.data.text` opens files alike: libraries share no code, one table of tests holds both.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

MOST_INFLATED = 1 << 26
"""Bytes a gzip file may always inflate to."""
MOST_RATIO = 200
"""Times the size of a larger gzip file that it may inflate to; deflate reaches 1030."""
CHUNK = 1 << 16
"""Bytes read at a time."""
LARGEST_TIME = 1 << 53
"""Times below it are whole numbers of float64 too."""


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


def find(folder: str | Path, *names: str) -> Path:
    """The first of `names` that lies in `folder`, as it is or with .gz.

    Raises:
        ValueError: none is there (names the folder and what was looked for), or one leaves the
            folder.
    """
    for name in names:
        inside(folder, name)
    for name in names:
        for candidate in (Path(folder) / name, Path(folder) / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    wanted = " or ".join(f"{name}[.gz]" for name in names)
    raise ValueError(f"missing file {Path(folder) / names[0]}: {wanted} is expected in {folder}")


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


def lines(path: str | Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(number from 1, text without its line end) of every line that is not blank.

    Raises:
        ValueError: a truncated or damaged gzip file, one that inflates out of all proportion, or
            bytes that are not `encoding`.
    """
    path = Path(path)
    number = 0
    try:
        with open_content(path) as file:
            for number, line in enumerate(file, 1):
                text = line.decode(encoding).rstrip("\r\n")
                if text.strip():
                    yield number, text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path} is a truncated or damaged gzip file (after line {number}): {error}; "
            "fetch it again"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}:{number}: not {encoding} text; convert it: iconv -t utf-8"
        ) from error


def read_json(path: str | Path) -> Any:
    """Content of a JSON file.

    Raises:
        ValueError: file and line where it does not parse.
    """
    text = "\n".join(line for _, line in lines(path))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON (near line {error.lineno}): {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
        raise ValueError(f"{path}: JSON that cannot be read: {error}") from error


def read_table(
    path: str | Path, columns: Sequence[str], separator: str = ","
) -> Iterator[tuple[int, list[str]]]:
    """(line number, the fields `columns`, in that order) of a CSV file with a header line.

    A header field may carry a type after a colon ("user_id:token").

    Raises:
        ValueError: a column is missing or stands there twice, or a line has another number of
            fields than the header.
    """
    numbered = lines(path)
    first = next(numbered, None)
    if first is None:
        raise ValueError(f"{path} is empty: a header line with {', '.join(columns)} is expected")
    names = _fields(path, *first, separator)
    header = [field.partition(":")[0] for field in names]
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(
            f"{path}:{first[0]}: no column {missing[0]!r} in the header ({', '.join(header)})"
        )
    refuse_doubled(path, header)
    at = [header.index(column) for column in columns]
    for number, line in numbered:
        fields = _fields(path, number, line, separator)
        if len(fields) != len(header):
            raise ValueError(
                f"{path}:{number}: {len(fields)} fields where the header has {len(header)}"
            )
        yield number, [fields[i] for i in at]


def refuse_doubled(path: str | Path, columns: Sequence[str]) -> None:
    """Raises ValueError naming a column that a table has twice."""
    doubled = next((column for at, column in enumerate(columns) if column in columns[:at]), None)
    if doubled is not None:
        raise ValueError(f"{path}: two columns are named {doubled!r}; rename or remove one")


def _fields(path: str | Path, number: int, line: str, separator: str) -> list[str]:
    try:
        return split_fields(line, separator)
    except csv.Error as error:
        raise ValueError(f"{path}:{number}: no fields of a CSV file: {error}") from error


def split_fields(line: str, separator: str) -> list[str]:
    """Fields of one line; quotes are understood in comma-separated lines alone."""
    if separator == "," and '"' in line:
        return next(csv.reader([line]))
    return line.split(separator)


def number_of(text: str, path: str | Path, line: int, what: str) -> float:
    """A finite number out of a field.

    Raises:
        ValueError: file, line and field that is not one.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise ValueError(f"{path}:{line}: {what} {text!r} is not a number")
    return value


def whole_number_of(text: str, path: str | Path, line: int, what: str) -> int:
    """The whole part of a time out of a field.

    Raises:
        ValueError: file, line and field that is none, or beyond 2^53.
    """
    value = number_of(text, path, line, what)
    try:
        return in_range(int(value))
    except ValueError as error:
        raise ValueError(f"{path}:{line}: {what} {text!r}: {error}") from error


def in_range(time: int) -> int:
    """Returns the time; raises ValueError where it is 2^53 or more, of either sign."""
    if abs(time) >= LARGEST_TIME:
        raise ValueError(f"a time between -2^53 and 2^53 is expected, got {time}")
    return time
