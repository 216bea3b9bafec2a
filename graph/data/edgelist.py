# SPDX-License-Identifier: Apache-2.0
"""Lists of edges: SNAP text files, and tables of your own (CSV or Parquet).

snap   <root>/graph/<name>.txt[.gz]: # comments, then two fields a line, or three with a time.
own    <root>/graph/<name>.csv, .tsv, either .gz, or .parquet: columns source and target, time if
       there is one (numbers, or dates), recognized or named, see graph.data.columns. Beside it,
       if wanted, one of
           <name>_nodes.csv, .csv.gz, .parquet   column node, all others are features
           <name>_features.npy                   [V, F] in node order; nodes are then 0 .. V - 1

Files may lie in <root> too. Nodes may have any name; names that are all numbers are put in their
order. With a table of nodes its order counts, nodes without edges stay, and an edge to a node it
does not hold is refused. Without one, the nodes are those that have an edge.
"""

import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from csv import reader as rows
from pathlib import Path
from typing import Any

import numpy as np

from graph import csr
from graph.data import arrays
from graph.data.columns import COMMON, choose
from graph.data.raw import Raw, featured, find, maybe, named, raw
from graph.data.text import (
    MOST_INFLATED,
    MOST_RATIO,
    lines,
    numbered,
    open_content,
    refuse_doubled,
)

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def read_snap(name: str, root: str | Path) -> Raw:
    """A SNAP edge list.

    Raises:
        ValueError: a missing or damaged file, a line of another number of fields, a negative id, a
            time that is no number; file and line are named.
    """
    path = find(root, f"{name}.txt", f"{name}.txt.gz")
    ends: list[str] = []
    times: list[float] = []
    width = 0
    for number, line in lines(path):
        fields = line.split()
        width = width or len(fields)
        if len(fields) != width or width not in (2, 3):
            raise ValueError(
                f"{path}:{number}: two fields (source, target) or three (and a time) are expected "
                f"in every line, got {len(fields)}"
            )
        negative = [x for x in fields[:2] if x.startswith("-") and x[1:].isdigit()]
        if negative:
            raise ValueError(f"{path}:{number}: node id {negative[0]} is negative")
        ends += fields[:2]
        if width == 3:
            try:
                times.append(float(fields[2]))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: time {fields[2]!r} is no number") from error
            if not np.isfinite(times[-1]):
                raise ValueError(f"{path}:{number}: time {fields[2]!r} is not finite")
    if not ends:
        raise ValueError(f"{path} has no edges")
    ids, names = numbered(np.array(ends))
    return raw(ids.reshape(-1, 2), len(names), np.array(times), None, names)


def read_own(
    name: str,
    root: str | Path,
    columns: Mapping[str, str] = {},
    node: str = "node",
) -> Raw:
    """A table of edges with what lies beside it.

    Args:
        columns: {role: column}, see graph.data.columns; others are recognized.
        node: column of the table of nodes that names them.

    Raises:
        ValueError: a missing or damaged file, a missing column, an empty cell, a node without a
            row, a node twice, features of the wrong length or kind.
    """
    path = find(root, *(f"{name}{end}" for end in TABLES))

    def choose_here(header: Sequence[str]) -> dict[str, str]:
        timed = "time" in columns or any(name.lower() in COMMON["time"] for name in header)
        return choose(path, header, ("source", "target", *(["time"] if timed else [])), columns)

    def ends_of(header: Sequence[str]) -> list[str]:
        chosen = choose_here(header)
        return [chosen["source"], chosen["target"]]

    table = _table(path, ends_of)
    chosen = choose_here(list(table))
    source = _names(table[chosen["source"]])
    target = _names(table[chosen["target"]])
    ends = np.array([source, target]).T.reshape(-1)
    if not len(ends):
        raise ValueError(f"{path} has no edges")
    ignored = [name for name in table if name not in chosen.values()]
    if ignored:
        print(f"{path}: not read: {', '.join(ignored)}", file=sys.stderr)
    times = _times(path, table[chosen["time"]], chosen["time"]) if "time" in chosen else None
    nodes = maybe(root, *(f"{name}_nodes{end}" for end in TABLES))
    array = maybe(root, f"{name}_features.npy")
    if nodes:
        return _with_nodes(nodes, node, path, ends, times)
    if array:
        features = _features(array)
        try:
            ids = np.array([int(x) for x in ends], np.int64)
        except (ValueError, OverflowError) as error:
            raise ValueError(
                f"{path}: with {array.name} nodes are the numbers 0 .. {len(features) - 1}: {error}"
            ) from error
        csr.check_ids(ids.reshape(-1, 2), len(features), str(path))
        features = featured(features, len(features), array)
        return raw(ids.reshape(-1, 2), len(features), times, features)
    ids, names = numbered(ends)
    return raw(ids.reshape(-1, 2), len(names), times, None, names)


def read_pairs(path: str | Path, columns: Mapping[str, str] = {}) -> list[list[str]]:
    """Pairs of names out of a table of one's own, in order of its rows.

    Raises:
        ValueError: a missing or damaged file, a missing column, an empty cell.
    """
    path = Path(path)
    if not path.name.endswith(TABLES):
        raise ValueError(f"{path}: one of {', '.join(TABLES)} is expected")

    def ends_of(header: Sequence[str]) -> list[str]:
        chosen = choose(path, header, ("source", "target"), columns)
        return [chosen["source"], chosen["target"]]

    table = _table(path, ends_of)
    source, target = ends_of(list(table))
    return [list(pair) for pair in zip(_names(table[source]), _names(table[target]), strict=True)]


def _with_nodes(
    path: Path, node: str, edges: Path, ends: np.ndarray, times: np.ndarray | None
) -> Raw:
    table = _table(path, lambda header: _require(path, header, node))
    names = _names(table.pop(node))
    named(names, len(names), path)
    place = {name: i for i, name in enumerate(names)}
    unknown = next((x for x in ends.tolist() if x not in place), None)
    if unknown is not None:
        raise ValueError(f"{edges}: node {unknown!r} has no row in {path}")
    columns = []
    for column, values in table.items():
        numbers = values.to_numpy(zero_copy_only=False) if hasattr(values, "to_numpy") else values
        if np.asarray(numbers).dtype.kind not in "iufb":
            raise ValueError(f"{path}: column {column!r} holds no numbers; take it out")
        columns.append(np.asarray(numbers, np.float32))
    features = featured(np.stack(columns, axis=1), len(names), path) if columns else None
    ids = np.array([place[x] for x in ends.tolist()]).reshape(-1, 2)
    return raw(ids, len(names), times, features, names)


def _features(path: Path) -> np.ndarray:
    array = arrays.read_npy(path)
    if array.ndim != 2:
        raise ValueError(f"{path}: features [V, F] are expected, got {list(array.shape)}")
    return array


def _header(path: Path) -> list[str]:
    """Names of the columns of a text table, read from its first line."""
    with open_content(path) as content:
        line = content.readline().decode("utf-8")
    header = next(rows([line], delimiter=_delimiter(path)), [])
    refuse_doubled(path, header)
    return header


def _delimiter(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","


def _require(path: Path, header: Sequence[str], column: str) -> list[str]:
    """[column]; ValueError where the table lacks it."""
    if column not in header:
        raise ValueError(f"{path}: no column {column!r} (has {', '.join(header)})")
    return [column]


def _arrow_table(path: Path, pick: Callable[[Sequence[str]], Sequence[str]]) -> Any:
    """The Arrow table of a text or Parquet file; of a text file the columns that `pick` returns of
    the header stay text.

    Raises:
        ValueError: a damaged file, one that inflates out of all proportion, a doubled column.
    """
    import pyarrow as pa  # late: whoever reads FORMATS need not wait for it
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".parquet":
            with parquet.ParquetFile(path) as file:
                refuse_doubled(path, file.schema_arrow.names)
                cells = file.metadata.num_rows * file.metadata.num_columns
                if 8 * cells > max(MOST_INFLATED, MOST_RATIO * path.stat().st_size):
                    raise ValueError(
                        f"{path} claims {cells:,} cells in {path.stat().st_size:,} bytes, which no "
                        "table of edges needs; if it is right, write it as CSV"
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


def _table(path: Path, pick: Callable[[Sequence[str]], Sequence[str]]) -> dict[str, Any]:
    """Columns as Arrow arrays, without empty cells; what `pick` returns of a text file's header
    stays text."""
    import pyarrow as pa

    table = _arrow_table(path, pick)
    text = pick(table.column_names)
    for column in table.column_names:
        empty = table[column].null_count or (
            column in text
            and pa.types.is_string(table[column].type)
            and "" in table[column].to_pylist()
        )
        if empty:
            row = [x in (None, "") for x in table[column].to_pylist()].index(True)
            raise ValueError(f"{path}: column {column!r} is empty in row {row + 1} (no header)")
    return {column: table[column] for column in table.column_names}


def _names(column: Any) -> list[str]:
    return [str(value) for value in column.to_pylist()]


def _times(path: Path, column: Any, name: str) -> np.ndarray:
    """float64 [E]; dates as seconds."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy() / 1e6
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        times = column.to_numpy().astype(float)
        odd = np.flatnonzero(~(np.abs(times) < np.inf))
        if len(odd):
            raise ValueError(
                f"{path}: column {name!r} is {times[odd[0]]} in row {odd[0] + 1} (no header), "
                "a finite time is expected"
            )
        return times
    raise ValueError(f"{path}: column {name!r} is {kind}, finite numbers or dates are expected")
