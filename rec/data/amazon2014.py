# SPDX-License-Identifier: Apache-2.0
"""Amazon-2014 folders: sequences of ASINs in time order with tags, keywords and attributes.

`<root>/amazon2014/<name>/` holds, plain or gzip:

    user_sequence.txt       user ASIN ASIN ...         a user a line, oldest first, no times
    item_text_tag.txt       ASIN words                 a short text of each item
    item_keyword_path.txt   ASIN |piece|piece ...      keywords, as word pieces
    sequences_int.txt       user-number 1 2 3 ...      optional: the same rows as integers
    item_attributes.json    {"1": [4, 17], ...}        optional: categories and brands

Dates have the resolution of days and ties stand in ASIN order (`cards.card` measures it). Files
whose rows are sorted by ASIN throughout are in circulation; they are refused.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rec.data.events import Policy, from_rows
from rec.data.files import find, inside, lines, read_json
from rec.data.sequences import Corpus, Sequences

WORD_START = "\u2581"  # marks the first piece of a word
MIN_ITEMS = 3  # what leave-one-out needs of a user


def read(name: str, root: str | Path, policy: Policy | None = None) -> Corpus:
    """Corpus of `<root>/amazon2014/<name>`; text is the tag followed by the keywords.

    Raises:
        ValueError: a file is missing or damaged, a line does not parse, rows are sorted by item, a
            user is too short, an item occurs twice in a row or has no text.
    """
    folder = inside(root, "amazon2014", name)
    path = find(folder, "user_sequence.txt")
    users, rows = _rows(path)
    _refuse_sorted(path, rows)
    tags = _named(find(folder, "item_text_tag.txt"))
    keywords = _keywords(find(folder, "item_keyword_path.txt"))
    texts = {item: f"{tags.get(item, '')} {keywords.get(item, '')}" for item in {*tags, *keywords}}
    return from_rows(name, users, rows, texts, str(path), policy)


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    rows: dict[str, list[str]] = {}
    for number, line in lines(path):
        user, *items = line.split()
        if len(items) < MIN_ITEMS:
            raise ValueError(
                f"{path}:{number}: user {user} has {len(items)} items, at least {MIN_ITEMS} are "
                "expected after the user (history, validation, test); remove the line"
            )
        if user in rows:
            raise ValueError(f"{path}:{number}: user {user} has a second line; merge them")
        rows[user] = items
    return list(rows), list(rows.values())


def sorted_share(rows: Sequence[Sequence[str]]) -> float:
    """Share of rows of two items and more whose items ascend by name."""
    long = [row for row in rows if len(row) > 1]
    return sum(list(row) == sorted(row) for row in long) / max(len(long), 1)


def _refuse_sorted(path: Path, rows: Sequence[Sequence[str]]) -> None:
    share = sorted_share(rows)
    if share > 0.5:
        raise ValueError(
            f"{path}: {share:.0%} of the lines are sorted by item instead of by time, so their "
            "last item is not the newest one; take the sequences from another source (GRAM's "
            "user_sequence.txt keeps the order of time)"
        )


def _named(path: Path) -> dict[str, str]:
    """{ASIN: rest of its line, which may be empty}."""
    texts: dict[str, str] = {}
    for number, line in lines(path):
        item, _, text = line.partition(" ")
        if item in texts:
            raise ValueError(f"{path}:{number}: a second line of item {item}; keep one")
        texts[item] = text.strip()
    return texts


def _keywords(path: Path) -> dict[str, str]:
    return {
        item: " ".join(piece.strip(f"{WORD_START} ") for piece in text.split("|")).strip()
        for item, text in _named(path).items()
    }


def integer_rows(name: str, root: str | Path) -> Sequences:
    """Rows of `sequences_int.txt` (S3-Rec), ids from 0: the integer of the file minus 1.

    Raises:
        ValueError: missing, or a line that is not integers from 1.
    """
    path = find(inside(root, "amazon2014", name), "sequences_int.txt")
    rows = []
    for number, line in lines(path):
        try:
            row = np.array([int(word) for word in line.split()[1:]], np.int32)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}:{number}: 'user 1 2 3' is expected: {error}") from error
        if (row < 1).any():
            raise ValueError(f"{path}:{number}: item numbers start at 1")
        rows.append(row - 1)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    items = np.concatenate(rows) if rows else np.zeros(0, np.int32)
    return Sequences(items, offsets, int(items.max(initial=-1)) + 1, np.zeros(0, np.int64))


def renumbering(source: Sequences, target: Sequences) -> np.ndarray:
    """Finds the map from ids of `source` to ids of `target`, int32 [num_items], where rows are the
    same but for the numbers and their order: the cross check of two sources, and the join of what
    they know.

    Raises:
        ValueError: they are not the same sequences.
    """
    if source.num_items != target.num_items or sorted(source.lengths) != sorted(target.lengths):
        raise ValueError("different numbers of items, or different lengths of rows")
    if not np.array_equal(source.offsets, target.offsets):
        raise ValueError("rows are in another order: bring both into one order first")
    new = np.full(source.num_items, -1, np.int32)
    new[source.items] = target.items
    if not np.array_equal(new[source.items], target.items) or len(np.unique(new)) != len(new):
        raise ValueError("the same item has different numbers")
    return new


def attributes(name: str, root: str | Path, corpus: Corpus) -> list[list[int]]:
    """Attribute ids of every internal item ([] where the file has none).

    The file goes by the integers of `sequences_int.txt`, which are joined through the sequences.

    Raises:
        ValueError: missing files, or sequences that differ.
    """
    path = find(inside(root, "amazon2014", name), "item_attributes.json")
    by_integer = read_json(path)
    to_integer = renumbering(corpus.sequences, integer_rows(name, root))
    try:
        return [[int(a) for a in by_integer.get(str(i + 1), [])] for i in to_integer]
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: an object of lists of integers is expected") from error
