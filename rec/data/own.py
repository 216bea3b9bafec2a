# SPDX-License-Identifier: Apache-2.0
"""Bring your own: one table of (user, item, time) and, where texts are read, one of (item, text).

CSV, TSV or Parquet, plain or gzip; columns are recognized by name or named, see rec.data.columns.
"""

import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from csv import reader as rows
from pathlib import Path
from typing import Any

import numpy as np

from rec.data.columns import COMMON, choose, seconds
from rec.data.events import Events, Policy, from_events
from rec.data.files import (
    LARGEST_TIME,
    MOST_INFLATED,
    MOST_RATIO,
    open_content,
    refuse_doubled,
)
from rec.data.sequences import Corpus

ENDINGS = tuple(f".{kind}{packed}" for kind in ("csv", "tsv") for packed in ("", ".gz"))


def read(
    interactions: str | Path,
    items: str | Path | None,
    policy: Policy | None = None,
    columns: Mapping[str, str] = {},
) -> Corpus:
    """Corpus of a table of interactions and one of items. Times are numbers (seconds) or dates (ISO
    ones without a zone are UTC); names of users and items may be numbers or text.

    Args:
        items: None where nothing reads texts: those of the corpus are then empty.
        columns: {role: column}, see rec.data.columns; others are recognized.

    Raises:
        ValueError: a missing or damaged file, a missing column, an empty cell (row named), a time
            that is none, an item described twice or not at all.
    """
    interactions = Path(interactions)
    table = _table(interactions, ("user", "item", "time"), columns)
    times = _times(interactions, *table["time"])
    events = Events(
        _names(table["user"][0]), _names(table["item"][0]), times,
        np.floor(times).astype(np.int64), str(interactions),
    )  # fmt: skip
    texts = None if items is None else _texts(Path(items), columns)
    return from_events(interactions.name.partition(".")[0], events, texts, policy)


def read_histories(
    path: str | Path, columns: Mapping[str, str] = {}
) -> tuple[list[str], list[list[str]]]:
    """Users by first appearance and the items of each, oldest first; without a column of times in
    the order of the file.

    Raises:
        ValueError: as `read`.
    """
    path = Path(path)
    table = _table(path, ("user", "item"), columns, optional=("time",))
    items = _names(table["item"][0])
    order = np.arange(len(items))
    if "time" in table:
        order = np.argsort(_times(path, *table["time"]), kind="stable")
    users = _names(table["user"][0])
    histories: dict[str, list[str]] = {user: [] for user in users}
    for event in order.tolist():
        histories[users[event]].append(items[event])
    return list(histories), list(histories.values())


def _texts(path: Path, columns: Mapping[str, str]) -> dict[str, str]:
    """{item: its text}."""
    table = _table(path, ("item", "text"), columns)
    names = _names(table["item"][0])
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"{path}: item {twice!r} has two rows; keep one")
    return dict(zip(names, _names(table["text"][0]), strict=True))


def _header(path: Path) -> list[str]:
    """Names of the columns of a text table, read from its first line."""
    with open_content(path) as content:
        line = content.readline().decode("utf-8")
    header = next(rows([line], delimiter=_delimiter(path)), [])
    refuse_doubled(path, header)
    return header


def _delimiter(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","


def _arrow_table(path: Path, pick: Callable[[Sequence[str]], Sequence[str]]) -> Any:
    """The Arrow table of a text or Parquet file; of a text file the columns that `pick` returns of
    the header stay text.

    Raises:
        ValueError: a damaged file, one that inflates out of all proportion, a doubled column.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".parquet":
            with parquet.ParquetFile(path) as file:
                refuse_doubled(path, file.schema_arrow.names)
                cells = file.metadata.num_rows * file.metadata.num_columns
                if 8 * cells > max(MOST_INFLATED, MOST_RATIO * path.stat().st_size):
                    raise ValueError(
                        f"{path} claims {cells:,} cells in {path.stat().st_size:,} bytes, which no "
                        "table of interactions needs; if it is right, write it as CSV"
                    )
                return file.read()
        text = pick(_header(path))
        options = csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()))
        parsing = csv.ParseOptions(delimiter=_delimiter(path))
        with open_content(path) as content:
            table = csv.read_csv(content, parse_options=parsing, convert_options=options)
        names = table.column_names
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:1: not utf-8 text; convert it: iconv -t utf-8") from error
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    refuse_doubled(path, names)
    for column in names:
        if pa.types.is_binary(table[column].type):  # Arrow's guess for text it cannot decode
            raise ValueError(
                f"{path}: column {column!r} is not utf-8 text; convert it: iconv -t utf-8"
            )
    return table


def _table(
    path: Path, roles: tuple[str, ...], columns: Mapping[str, str], optional: tuple[str, ...] = ()
) -> dict[str, tuple[Any, str]]:
    """{role: (Arrow array, its name)}; names of a text file stay text, with leading zeros."""
    if not path.is_file():
        raise ValueError(f"missing file {path}: a CSV or Parquet file with {', '.join(roles)}")
    if not path.name.endswith((*ENDINGS, ".parquet")):
        raise ValueError(f"{path}: .csv, .tsv, .csv.gz, .tsv.gz or .parquet is expected")

    def choose_here(header: Sequence[str]) -> dict[str, str]:
        there = [r for r in optional if any(n.lower() in COMMON[r] for n in header) or r in columns]
        # One flag serves both tables, whose columns of items may be named differently.
        named = {r: name for r, name in columns.items() if r != "item" or name in header}
        return choose(path, header, (*roles, *there), named)

    def names_of(header: Sequence[str]) -> list[str]:
        chosen = choose_here(header)
        return [chosen[role] for role in ("user", "item") if role in chosen]

    table = _arrow_table(path, names_of)
    chosen = choose_here(table.column_names)
    for role, column in chosen.items():
        is_name = role in ("user", "item")
        if table[column].null_count or (is_name and "" in table[column].to_pylist()):
            row = [value in (None, "") for value in table[column].to_pylist()].index(True)
            raise ValueError(
                f"{path}: column {column!r} is empty in row {row + 1} (without header)"
            )
    ignored = [name for name in table.column_names if name not in chosen.values()]
    if ignored:
        print(f"{path}: not read: {', '.join(ignored)}", file=sys.stderr)
    return {role: (table[column], column) for role, column in chosen.items()}


def _names(column: Any) -> list[str]:
    return [str(value) for value in column.to_pylist()]


def _times(path: Path, column: Any, name: str) -> np.ndarray:
    """float64 [E] seconds."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy() / 1e6
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        times = column.to_numpy().astype(float)
        odd = np.flatnonzero(~(np.abs(times) < LARGEST_TIME))
        if len(odd):
            raise ValueError(
                f"{path}: column {name!r} is {times[odd[0]]} in row {odd[0] + 1} (without header), "
                "a time between -2^53 and 2^53 is expected"
            )
        return times
    values = column.to_pylist()
    times = np.zeros(len(values))
    for row, value in enumerate(values):
        try:
            times[row] = float(value) if _is_number(value) else seconds(str(value))
        except ValueError as error:
            raise ValueError(
                f"{path}: column {name!r} is {value!r} in row {row + 1} (without header), numbers "
                "(seconds) or dates expected, such as 2026-01-31T12:00:00"
            ) from error
    return times


def _is_number(value: Any) -> bool:
    return str(value).strip().lstrip("-").isdigit()
