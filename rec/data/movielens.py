# SPDX-License-Identifier: Apache-2.0
"""MovieLens, as GroupLens publishes it and as RecBole re-encodes 100K. Plain or gzip.

    ml-100k   u.data, u.item (tabs, bars, latin-1)       or ml-100k.inter, ml-100k.item
    ml-1m     ratings.dat, movies.dat (::, latin-1)
    ml-20m, ml-25m, ml-latest-small   ratings.csv, movies.csv

Every rating is an interaction, whatever its value. Times are seconds and tie often, because films
are rated in batches: `Policy.ties` decides. Terms: no redistribution without permission.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rec.data.events import Events, Policy, from_events
from rec.data.files import find, inside, lines, read_table, whole_number_of
from rec.data.sequences import Corpus

GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()
"""Columns 6 to 24 of u.item, in that order."""

Rating = tuple[str, str, int]
"""user, item, seconds."""


def read(name: str, root: str | Path, policy: Policy | None = None) -> Corpus:
    """Corpus of `<root>/<name>`; the layout is told by the files that lie there.

    Raises:
        ValueError: no known layout, a damaged file, or a line that does not parse.
    """
    folder = inside(root, name)
    path = find(folder, "ml-100k.inter", "u.data", "ratings.dat", "ratings.csv")
    kind = path.name.removesuffix(".gz")
    ratings = list(_ratings(path, kind))
    seconds = np.array([stamp for _, _, stamp in ratings], np.int64)
    events = Events(
        [user for user, _, _ in ratings],
        [item for _, item, _ in ratings],
        seconds.astype(float),
        seconds,
        str(path),
    )
    return from_events(name, events, _texts(folder, kind), policy)


def _ratings(path: Path, kind: str) -> Iterator[Rating]:
    if kind == "ml-100k.inter":
        rows = read_table(path, ("user_id", "item_id", "timestamp"), "\t")
    elif kind == "ratings.csv":
        rows = read_table(path, ("userId", "movieId", "timestamp"))
    else:
        separator = "\t" if kind == "u.data" else "::"
        rows = _unnamed(path, separator, 4, (0, 1, 3))
    for number, (user, item, stamp) in rows:
        yield user, item, whole_number_of(stamp, path, number, "timestamp")


def _unnamed(
    path: Path, separator: str, width: int, columns: tuple[int, ...]
) -> Iterator[tuple[int, list[str]]]:
    """Fields of a file without a header."""
    for number, line in lines(path, "latin-1"):
        fields = line.split(separator)
        if len(fields) != width:
            raise ValueError(
                f"{path}:{number}: {len(fields)} fields, {width} are expected, separated by "
                f"{separator!r}"
            )
        yield number, [fields[i] for i in columns]


def _texts(folder: Path, kind: str) -> dict[str, str]:
    if kind == "ml-100k.inter":
        columns = ("item_id", "movie_title", "release_year", "class")
        rows = read_table(find(folder, "ml-100k.item"), columns, "\t")
        return {i: _text(title, genres, year) for _, (i, title, year, genres) in rows}
    if kind == "u.data":
        width = 5 + len(GENRES)
        rows = _unnamed(find(folder, "u.item"), "|", width, (0, 1, *range(5, width)))
        named = lambda flags: " ".join(g for g, f in zip(GENRES, flags, strict=True) if f == "1")
        return {item: _text(title, named(flags)) for _, (item, title, *flags) in rows}
    if kind == "ratings.dat":
        rows = _unnamed(find(folder, "movies.dat"), "::", 3, (0, 1, 2))
    else:
        rows = read_table(find(folder, "movies.csv"), ("movieId", "title", "genres"))
    return {item: _text(title, genres.replace("|", " ")) for _, (item, title, genres) in rows}


def _text(title: str, genres: str, year: str = "") -> str:
    fields = {"Title": title.strip(), "Year": year.strip(), "Genres": genres.strip()}
    return "; ".join(f"{name}: {value}" for name, value in fields.items() if value)
