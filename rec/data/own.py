# SPDX-License-Identifier: Apache-2.0
"""Bring your own: one table of (user, item, time) and one of (item, text), CSV or Parquet."""

import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from rec.data.events import Events, Policy, from_events
from rec.data.files import (
    LARGEST_TIME,
    MOST_INFLATED,
    MOST_RATIO,
    open_content,
    refuse_doubled,
)
from rec.data.sequences import Corpus


def read(
    interactions: str | Path,
    items: str | Path,
    user: str = "user",
    item: str = "item",
    time: str = "time",
    text: str = "text",
    policy: Policy | None = None,
) -> Corpus:
    """Corpus of two files; the other arguments are names of columns. Times are numbers (seconds)
    or dates; names of users and items may be numbers or text.

    Raises:
        ValueError: a missing or damaged file, a missing column, an empty cell (row named), a time
            that is none, an item described twice or not at all.
    """
    interactions, items = Path(interactions), Path(items)
    table = _table(interactions, (user, item, time), (user, item))
    described = _table(items, (item, text), (item,))
    names, texts = _names(described[item]), _names(described[text])
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"{items}: item {twice!r} has two rows; keep one")
    times = _times(interactions, table[time], time)
    events = Events(
        _names(table[user]), _names(table[item]), times,
        np.floor(times).astype(np.int64), str(interactions),
    )  # fmt: skip
    return from_events(
        interactions.name.partition(".")[0], events, dict(zip(names, texts, strict=True)), policy
    )


def _arrow_table(path: Path, text: tuple[str, ...]) -> Any:
    """The Arrow table of a CSV or Parquet file; the columns `text` of a CSV file stay text.

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
        options = csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()))
        with open_content(path) as content:
            table = csv.read_csv(content, convert_options=options)
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


def _table(path: Path, columns: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Any]:
    """The columns as Arrow arrays; those in `names` of a CSV file stay text, with leading zeros."""
    if not path.is_file():
        raise ValueError(f"missing file {path}: a CSV or Parquet file with {', '.join(columns)}")
    if not path.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise ValueError(f"{path}: .csv, .csv.gz or .parquet is expected")
    table = _arrow_table(path, names)
    for column in columns:
        if column not in table.column_names:
            raise ValueError(
                f"{path}: no column {column!r} (there are {', '.join(table.column_names)}); name "
                "yours with the argument of that name"
            )
        if table[column].null_count:
            row = table[column].is_null().to_pylist().index(True)
            raise ValueError(
                f"{path}: column {column!r} is empty in row {row + 1} (without header)"
            )
    return {column: table[column] for column in columns}


def _names(column: Any) -> list[str]:
    return [str(value) for value in column.to_pylist()]


def _times(path: Path, column: Any, name: str) -> np.ndarray:
    """float64 [E] seconds."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return column.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy() / 1e6
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        times = column.to_numpy().astype(float)
        odd = np.flatnonzero(~(np.abs(times) < LARGEST_TIME))
        if len(odd):
            raise ValueError(
                f"{path}: column {name!r} is {times[odd[0]]} in row {odd[0] + 1} (without header), "
                "a time between -2^53 and 2^53 is expected"
            )
        return times
    example = next((v for v in column.to_pylist() if not isinstance(v, int)), None)
    raise ValueError(
        f"{path}: column {name!r} holds {example!r}, numbers (seconds) or dates expected"
    )
