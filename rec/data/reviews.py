# SPDX-License-Identifier: Apache-2.0
"""The review files Amazon users download: 2014 (JSON) and 2023 (CSV and JSONL), plain or gzip.

2014, in one folder: `reviews_<Category>_5.json.gz` (one JSON object a line with reviewerID, asin,
unixReviewTime) and `meta_<Category>.json.gz`, whose lines are Python literals and are read as such.
Times are days, so many events tie: `Policy.ties` decides, and moves test targets.

2023, in one folder: the 5-core of `last_out`, `<Category>.{train,valid,test}.csv` (a row per
interaction: user_id,parent_asin,rating,timestamp in ms; a history column is ignored, it repeats
other rows), or all of it in one `<Category>.csv`; and `meta_<Category>.jsonl`. The parts of a
`timestamp` folder, divided at two points in time, are read for a temporal split alone
(`Policy.dated_parts`).

Neither reader filters by k-core: `sequences.kcore` does, afterwards.
"""

import ast
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rec.data.events import Events, Policy, from_events
from rec.data.files import find, in_range, inside, lines, read_table, whole_number_of
from rec.data.sequences import Corpus

_PARTS = ("train", "valid", "test")
_LONGEST = 2_000  # characters of a description that are kept


def read_2014(category: str, folder: str | Path, policy: Policy | None = None) -> Corpus:
    """Corpus of `reviews_<category>_5.json` and `meta_<category>.json`; category "Beauty".

    Raises:
        ValueError: a missing or damaged file, or a line that does not parse.
    """
    inside(folder, category)
    path = find(folder, f"reviews_{category}_5.json", f"reviews_{category}.json")
    users, items, times = [], [], []
    for number, line in lines(path):
        record = _object(path, number, line, literal=False)
        try:
            users.append(str(record["reviewerID"]))
            items.append(str(record["asin"]))
            times.append(in_range(int(record["unixReviewTime"])))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{path}:{number}: reviewerID, asin and unixReviewTime (seconds) are expected: "
                f"{error}"
            ) from error
    stamps = np.array(times, np.int64)
    events = Events(users, items, stamps.astype(float), stamps, str(path))
    meta = find(folder, f"meta_{category}.json")
    return from_events(category, events, _texts(meta, "asin", True, set(items)), policy)


def read_2023(category: str, folder: str | Path, policy: Policy | None = None) -> Corpus:
    """Corpus of `<category>.{train,valid,test}.csv` (or `<category>.csv`) and
    `meta_<category>.jsonl`; the three parts stay in that order, whatever their times.

    Raises:
        ValueError: a missing or damaged file, a line that does not parse, or parts divided at two
            points in time that the policy refuses.
    """
    users, items, stamps, part_numbers = [], [], [], []
    paths = _csv_files(category, folder)
    for part, path in enumerate(paths):
        for number, (user, item, stamp) in read_table(path, _COLUMNS):
            users.append(user)
            items.append(item)
            stamps.append(whole_number_of(stamp, path, number, "timestamp"))
            part_numbers.append(part)
    milliseconds = np.array(stamps, np.int64)
    parts = np.array(part_numbers, np.int64)
    if policy is None or policy.dated_parts == "refuse":
        _refuse_dated_parts(paths[0], milliseconds, parts)
    order = np.lexsort((milliseconds, parts))
    # Equal (part, time) must stay a tie, so that the policy and not this line settles it.
    rank = np.zeros(len(order))
    if len(order):
        pairs = np.stack([parts, milliseconds], 1)[order]
        rank[order] = np.cumsum(np.r_[0, (np.diff(pairs, axis=0) != 0).any(1)])
    events = Events(users, items, rank, milliseconds // 1000, str(paths[0]))
    meta = find(folder, f"meta_{category}.jsonl")
    return from_events(category, events, _texts(meta, "parent_asin", False, set(items)), policy)


def _refuse_dated_parts(path: Path, milliseconds: np.ndarray, parts: np.ndarray) -> None:
    """Raises ValueError where no training event is later than any test event, which the last items
    of many users never give."""
    train, valid, test = (milliseconds[parts == part] for part in range(len(_PARTS)))
    if not len(train) or not len(test) or train.max() > test.min():
        return
    test_from = int(test.min()) // 1000
    valid_from = int(valid.min()) // 1000 if len(valid) else test_from - 1
    raise ValueError(
        f"{path}: no training event is later than any test event, so these parts were divided at "
        "two points in time (a timestamp folder) and leave-one-out would take other targets: use "
        f"--config.data.split=temporal --config.data.valid_from={valid_from} "
        f"--config.data.test_from={test_from} (in Python Policy(dated_parts='read') and "
        "temporal_split)"
    )


_COLUMNS = ("user_id", "parent_asin", "timestamp")


def _csv_files(category: str, folder: str | Path) -> list[Path]:
    whole = inside(folder, f"{category}.csv")
    if whole.is_file() or Path(f"{whole}.gz").is_file():
        return [find(folder, f"{category}.csv")]
    return [find(folder, f"{category}.{part}.csv") for part in _PARTS]


def _object(path: Path, number: int, line: str, literal: bool) -> dict[str, Any]:
    kind = "a Python literal" if literal else "a JSON object"
    try:
        record = ast.literal_eval(line) if literal else json.loads(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: {kind} a line is expected: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}:{number}: {kind} with fields is expected, found {record!r:.40}")
    return record


def _texts(path: Path, key: str, literal: bool, wanted: Collection[str]) -> dict[str, str]:
    """{item: its text} of the items that were reviewed; the files hold many more."""
    texts = {}
    for number, line in lines(path):
        record = _object(path, number, line, literal)
        item = record.get(key)
        if isinstance(item, str) and item in wanted:
            texts[item] = item_text(record)
    return texts


def item_text(record: Mapping[str, Any]) -> str:
    """ "Title: ...; Brand: ...; Categories: ...; Price: ...; Description: ...", without the fields
    that are absent or empty. Takes records of 2014, 2018 and 2023 [our choice of template]."""
    price = _words(record.get("price"))
    fields = {
        "Title": _words(record.get("title")),
        "Brand": _words(record.get("brand") or record.get("store")),
        "Categories": _words(record.get("categories") or record.get("category")),
        "Price": "" if price == "None" else price,
        "Description": _words(record.get("description"))[:_LONGEST],
    }
    return "; ".join(f"{name}: {value}" for name, value in fields.items() if value)


def _words(value: Any) -> str:
    """One line of a field: a text, a number, or lists of them, each entry once."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        parts = [_words(part) for part in value]
        return ", ".join(dict.fromkeys(part for part in parts if part))
    return " ".join(str(value).split())
