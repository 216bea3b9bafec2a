# SPDX-License-Identifier: Apache-2.0
"""Raw text files, plain or gzip, read line by line; what is wrong is named with file and line."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def find(folder: str | Path, *names: str) -> Path:
    """The first of `names` that lies in `folder`, as it is or with .gz.

    Raises:
        ValueError: none is there; names the folder and what was looked for.
    """
    for name in names:
        for candidate in (Path(folder) / name, Path(folder) / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    wanted = " or ".join(f"{name}[.gz]" for name in names)
    raise ValueError(f"missing file {Path(folder) / names[0]}: {wanted} is expected in {folder}")


def lines(path: str | Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(number from 1, text without its line end) of every line that is not blank.

    Raises:
        ValueError: a truncated or damaged gzip file, or bytes that are not `encoding`.
    """
    path = Path(path)
    number = 0
    with path.open("rb") as probe:
        zipped = probe.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
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


def read_table(
    path: str | Path, columns: Sequence[str], separator: str = ","
) -> Iterator[tuple[int, list[str]]]:
    """(line number, the fields `columns`, in that order) of a CSV file with a header line.

    A header field may carry a type after a colon ("user_id:token").

    Raises:
        ValueError: a column is missing, or a line has another number of fields than the header.
    """
    numbered = lines(path)
    first = next(numbered, None)
    if first is None:
        raise ValueError(f"{path} is empty: a header line with {', '.join(columns)} is expected")
    header = [field.partition(":")[0] for field in split_fields(first[1], separator)]
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(
            f"{path}:{first[0]}: no column {missing[0]!r} in the header ({', '.join(header)})"
        )
    at = [header.index(column) for column in columns]
    for number, line in numbered:
        fields = split_fields(line, separator)
        if len(fields) != len(header):
            raise ValueError(
                f"{path}:{number}: {len(fields)} fields where the header has {len(header)}"
            )
        yield number, [fields[i] for i in at]


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
