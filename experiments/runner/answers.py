# SPDX-License-Identifier: Apache-2.0
"""Answers of a trained system, printed or written as files: what --out means. Imports no JAX.

Every file is whole or not there: it is written under another name and renamed at the end.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runner.errors import UserError
from experiments.runner.pages import number
from experiments.runner.queries import Answer, Columns

TABLES = (".csv", ".parquet", ".jsonl")


def check_out(out: Path) -> None:
    """Refuses a place where an answer may not be written.

    Raises:
        UserError: inside a run folder, in a folder that does not exist, or not writable.
    """
    place = out.absolute()
    for folder in (place, *place.parents):
        if (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
            raise UserError(
                f"--out={out} lies in the run folder {folder}, which only its run writes; give a "
                "place outside of it"
            )
    if not place.parent.is_dir():
        raise UserError(f"--out={out}: the folder {place.parent} does not exist; make it first")
    if not os.access(place if place.is_dir() else place.parent, os.W_OK):
        raise UserError(f"--out={out} cannot be written: no permission")


def show(answer: Answer) -> None:
    """Prints an answer.

    Raises:
        UserError: it is made of files.
    """
    if isinstance(answer, str):
        print(answer)
        return
    if isinstance(answer, Mapping):
        raise UserError(f"this answer is made of files ({', '.join(answer)}): say where, --out=DIR")
    widths: list[int] = []
    for columns in answer:
        rows = [[_cell(value) for value in row] for row in _rows(columns)]
        if not widths:
            lines = [list(columns), *rows]
            widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
            rows = lines
        for row in rows:
            cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
            print("  ".join(cells).rstrip())


def write(answer: Answer, out: Path) -> str:
    """Writes an answer and says what was written.

    Args:
        out: a file; for several named contents a folder, made where it does not exist.

    Raises:
        UserError: `out` does not suit the answer, or cannot be written.
    """
    check_out(out)
    try:
        if isinstance(answer, str):
            return _write_one(out, answer.encode())
        if isinstance(answer, Mapping):
            return _write_files(answer, out)
        return _write_table(answer, out)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error}") from error


def check_suffix(out: Path) -> None:
    """Raises UserError for a file that is no table of a known form."""
    if out.suffix.lower() not in TABLES:
        raise UserError(f"--out={out}: a table is written as one of {', '.join(TABLES)}")


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """A path to write to, renamed to `out` if all went well, else removed."""
    if out.is_dir():
        raise UserError(f"--out={out} is a folder; give the name of a file")
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _write_one(out: Path, content: bytes) -> str:
    with _partial(out) as partial:
        partial.write_bytes(content)
    return f"{out}: {len(content):,} bytes"


def _write_files(files: Mapping[str, bytes], out: Path) -> str:
    for name in files:
        if name != Path(name).name or name in (".", ".."):
            raise ValueError(f"{name!r} is no name of a file")  # a system's mistake, not a user's
    if len(files) == 1 and out.suffix and not out.is_dir():
        return _write_one(out, next(iter(files.values())))
    if out.is_file():
        raise UserError(f"--out={out} is a file; the answer has {len(files)}: give a folder")
    out.mkdir(exist_ok=True)
    return "\n".join(_write_one(out / name, content) for name, content in files.items())


def _write_table(tables: Iterator[Columns], out: Path) -> str:
    check_suffix(out)
    writer = {".csv": _write_csv, ".parquet": _write_parquet, ".jsonl": _write_jsonl}
    with _partial(out) as partial:
        count = writer[out.suffix.lower()](tables, partial)
    return f"{out}: {count:,} rows"


def _write_csv(tables: Iterator[Columns], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for index, columns in enumerate(tables):
            if index == 0:
                writer.writerow(columns)
            for row in _rows(columns):
                writer.writerow(row)
                count += 1
    return count


def _write_jsonl(tables: Iterator[Columns], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for columns in tables:
            for row in _rows(columns):
                file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False))
                file.write("\n")
                count += 1
    return count


def _write_parquet(tables: Iterator[Columns], path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    writer = None
    try:
        for columns in tables:
            table = pa.table({name: pa.array(_values(column)) for name, column in columns.items()})
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            count += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        pq.write_table(pa.table({}), path)
    return count


def _values(column: Any) -> list[Any]:
    """A column as Python values; a float32 by the digits that identify it."""
    array = np.asarray(column)
    if array.dtype == np.float32:
        return [float(str(value)) for value in array]
    return array.tolist() if isinstance(column, np.ndarray) else list(column)


def _rows(columns: Columns) -> Iterator[tuple[Any, ...]]:
    return zip(*(_values(column) for column in columns.values()), strict=True)


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)
