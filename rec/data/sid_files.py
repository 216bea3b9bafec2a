# SPDX-License-Identifier: Apache-2.0
"""Semantic IDs as others publish them: {"0": ["<a_183>", "<b_70>", ...], ...}."""

import re
from pathlib import Path

import numpy as np

from rec.data.files import read_json

_TOKEN = re.compile(r"<[a-z]_(\d{1,9})>")  # so many digits fit int32


def read_sids(path: str | Path) -> np.ndarray:
    """int32 [N, L] of an index file; row i belongs to item "i" of the file.

    Raises:
        ValueError: items are not 0 to N - 1, levels differ, or a token is no <letter_number>.
    """
    table = read_json(path)
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{path}: an object from item number to a list of tokens is expected")
    rows = []
    for item in range(len(table)):
        tokens = table.get(str(item))
        if tokens is None:
            raise ValueError(f"{path}: items 0 to {len(table) - 1} are expected, {item} is missing")
        if not isinstance(tokens, list):
            raise ValueError(
                f"{path}: item {item} has {tokens!r:.40}, a list of tokens is expected"
            )
        codes = [_TOKEN.fullmatch(str(token)) for token in tokens]
        if None in codes or len(codes) != len(rows[0] if rows else codes) or not codes:
            raise ValueError(
                f"{path}: item {item} has {tokens}; the same number of tokens like <a_12> for "
                "every item is expected"
            )
        rows.append([int(code.group(1)) for code in codes if code])
    return np.array(rows, np.int32)
