# SPDX-License-Identifier: Apache-2.0
"""Questions to a trained system and its answers: what --query, --top and --out mean.

Imports no JAX.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runner.errors import UserError

ALL = "all"
TEXT_SUFFIXES = ("", ".txt")  # a --query=@FILE is read; any other reaches the action as a path

Columns = Mapping[str, Sequence[Any] | Any]
"""A table: {name: values}, a list or a NumPy array [rows] a column, all of one length."""
Answer = str | Iterator[Columns] | Mapping[str, bytes]
"""Text; tables with the same columns, one after the other; or {file name: content}."""


class Query(NamedTuple):
    """One question."""

    text: str = ""
    """What was asked; "all" for everything a run knows, "" where there is a path."""
    path: Path | None = None
    """A file or folder that the action reads itself."""
    top: int | None = None
    """How many answers to each; None: the action's own number."""

    @property
    def is_all(self) -> bool:
        return self.path is None and self.text == ALL


def read_query(query: str, top: int | None = None) -> Query:
    """Makes a Query of --query=TEXT, @FILE or all, and --top=K.

    Raises:
        UserError: the file is missing or no text; K is below 1.
    """
    if top is not None and top < 1:
        raise UserError(f"--top={top} must be at least 1")
    if not query.startswith("@"):
        return Query(query, None, top)
    path = Path(query[1:])
    if not path.exists():
        raise UserError(f"--query={query}: no such file")
    if path.is_dir() or path.suffix.lower() not in TEXT_SUFFIXES:
        return Query("", path, top)
    try:
        return Query(path.read_text(encoding="utf-8"), None, top)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--query={query}: {error}") from error


def text_of(query: Query, what: str) -> str:
    """The text of a query whose action reads no files.

    Raises:
        UserError: it has a path; `what` says what to give.
    """
    if query.path is not None:
        raise UserError(f"--query=@{query.path}: give {what}, in a .txt file or as it is")
    return query.text


def split_choice(query: Query, names: Sequence[str], example: str) -> tuple[list[str], Query]:
    """Splits "NAME: REST" into the one that is asked and the rest; where none is named, a file or
    "all" asks every one.

    Raises:
        UserError: a text that names none; `example` shows how.
    """
    name, colon, rest = query.text.partition(":")
    if colon and name.strip() in names:
        return [name.strip()], query._replace(text=rest.strip())
    if query.path is None and not query.is_all:
        raise UserError(
            f'--query={query.text!r}: say by what, "{example}"; there are {", ".join(names)}'
        )
    return list(names), query


def lookup(name: str, number: Mapping[str, int], what: str) -> int:
    """number[name].

    Raises:
        UserError: an unknown name; near ones are proposed, `what` says of what it should be one.
    """
    if name in number:
        return number[name]
    near = difflib.get_close_matches(name, number, 3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise UserError(
        f"--query: unknown {what} {name!r}{hint} (this run knows {len(number):,} {what}s, such as "
        f"{', '.join(list(number)[:3])})"
    )
