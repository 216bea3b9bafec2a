# SPDX-License-Identifier: Apache-2.0
"""LETTER's files: `<Name>.inter.json` {"user": [item, ...]} and `<Name>.index.json` with SIDs.

They hold no text. Texts of the corpus are the item numbers, good for nothing but a name; take the
texts of `amazon2014` for Beauty, whose items stand in the same order.
"""

from pathlib import Path

import numpy as np

from rec.data.events import from_rows
from rec.data.files import find, read_json
from rec.data.sequences import Corpus
from rec.data.sid_files import read_sids


def read(name: str, root: str | Path) -> Corpus:
    """Corpus of `<root>/letter/<name>.inter.json`; name "Beauty" or "Instruments".

    Raises:
        ValueError: a missing or damaged file, or rows that are not lists of numbers.
    """
    path = find(Path(root) / "letter", f"{name}.inter.json")
    table = read_json(path)
    rows = list(table.values()) if isinstance(table, dict) else []
    if not rows or not all(isinstance(row, list) and row for row in rows):
        raise ValueError(f"{path}: an object from user to a list of item numbers is expected")
    raw = [[str(item) for item in row] for row in rows]
    texts = {item: f"item {item}" for row in raw for item in row}
    return from_rows(name, list(table), raw, texts, str(path))


def sids(name: str, root: str | Path, corpus: Corpus) -> np.ndarray:
    """int32 [N, L] published semantic IDs of the items of a corpus that `read` gave.

    Raises:
        ValueError: a missing or damaged file, or an item without an ID.
    """
    path = find(Path(root) / "letter", f"{name}.index.json")
    table = read_sids(path)
    strange = next((item for item in corpus.items if not item.isdecimal()), None)
    if strange is not None:
        raise ValueError(f"{path}: item {strange!r} has no ID: items are numbers from 0 there")
    numbers = np.array([int(item) for item in corpus.items])
    if len(numbers) and numbers.max() >= len(table):
        raise ValueError(f"{path}: {len(table)} items, item {numbers.max()} has no ID")
    return table[numbers]
