# SPDX-License-Identifier: Apache-2.0
"""Amazon-2018 item texts and published semantic IDs. No sequences come with them: the data serves
tokenizers, not recommenders."""

import ast
from pathlib import Path

import numpy as np

from rec.data.files import find, read_json
from rec.data.reviews import item_text
from rec.data.sid_files import read_sids


def texts(name: str, root: str | Path) -> list[str]:
    """Text of every item of `<root>/amazon2018_text/<name>.item.json`, in the order of its numbers.

    Raises:
        ValueError: a missing or damaged file, numbers with gaps, or an item without text.
    """
    path = find(Path(root) / "amazon2018_text", f"{name}.item.json")
    table = read_json(path)
    out = []
    for item in range(len(table)):
        record = table.get(str(item)) if isinstance(table, dict) else None
        if not isinstance(record, dict):
            raise ValueError(f"{path}: items 0 to {len(table) - 1} are expected, {item} is missing")
        text = item_text({**record, "description": _description(record.get("description", ""))})
        if not text:
            raise ValueError(f"{path}: item {item} has no text")
        out.append(text)
    return out


def _description(text: str) -> list[str] | str:
    """Descriptions are Python lists written as text, some of them cut short."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return [str(part) for part in value] if isinstance(value, list) else text


def sids(name: str, root: str | Path) -> np.ndarray:
    """int32 [N, L] published semantic IDs, in the order of `texts`."""
    return read_sids(find(Path(root) / "amazon2018_text", f"{name}.index.json"))
