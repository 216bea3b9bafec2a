# SPDX-License-Identifier: Apache-2.0
"""From raw events (user, item, time) or raw rows of item names to a Corpus."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from rec.data.sequences import Corpus, Sequences

Ties = Literal["file", "item", "shuffle"]
Repeats = Literal["refuse", "first", "keep"]
Textless = Literal["refuse", "drop"]
DatedParts = Literal["refuse", "read"]


class Events(NamedTuple):
    """Interactions in the order of the file.

    users, items: raw names; times: float64 [E], any unit, ascending in time; seconds: int64 [E]
    what Corpus keeps of them, or [0]; source: the file, for messages.
    """

    users: list[str]
    items: list[str]
    times: np.ndarray
    seconds: np.ndarray
    source: str


class Policy(NamedTuple):
    """What the file leaves open. Every choice changes test targets, so each is explicit.

    ties: order of a user's events with equal times: as in the file, by item name, or shuffled with
    `seed`. repeats: an item twice in one user's row is refused, kept, or kept the first time only
    (a repeat is never a target where history is masked). textless: items without text are refused
    or dropped with their events. dated_parts: files that someone divided at two points in time are
    refused, for leave-one-out would take other targets than theirs, or read, for a temporal split.
    """

    ties: Ties = "file"
    seed: int = 0
    repeats: Repeats = "refuse"
    textless: Textless = "refuse"
    dated_parts: DatedParts = "refuse"


def _numbered(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(distinct names by first appearance, int64 code of each entry)."""
    code: dict[str, int] = {}
    codes = np.fromiter((code.setdefault(n, len(code)) for n in names), np.int64, len(names))
    return list(code), codes


def _tie_keys(events: Events, policy: Policy) -> np.ndarray:
    """[E]: ascending among events of one user at one time."""
    if policy.ties == "file":
        return np.arange(len(events.items))
    if policy.ties == "item":
        return np.unique(np.asarray(events.items), return_inverse=True)[1]
    if policy.ties == "shuffle":
        return np.random.default_rng([policy.seed, 0x71E5]).permutation(len(events.items))
    raise ValueError(f"ties={policy.ties!r}: use file, item or shuffle")


def _repeated(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """bool [E]: the same user had the same item before (events in time order)."""
    pairs = users * (items.max(initial=0) + 1) + items
    again = np.ones(len(pairs), bool)
    again[np.unique(pairs, return_index=True)[1]] = False
    return again


def from_events(
    name: str, events: Events, texts: Mapping[str, str] | None, policy: Policy | None = None
) -> Corpus:
    """Users by first appearance in the file, each in time order; items numbered by first
    appearance in the result.

    Args:
        texts: {item: its text}; None where nothing reads them: those of the corpus are then empty.

    Raises:
        ValueError: no events, repeated or textless items that the policy refuses.
    """
    policy = policy or Policy()
    if not events.users:
        raise ValueError(f"{events.source}: no interactions")
    names, users = _numbered(events.users)
    order = np.lexsort((_tie_keys(events, policy), events.times, users))
    item_names, items = _numbered([events.items[e] for e in order])
    users = users[order]
    keep = _kept(events.source, names, users, item_names, items, texts, policy)
    users, items, order = users[keep], items[keep], order[keep]
    return _corpus(name, names, users, item_names, items, texts, events.seconds, order)


def _kept(
    source: str,
    names: list[str],
    users: np.ndarray,
    item_names: list[str],
    items: np.ndarray,
    texts: Mapping[str, str] | None,
    policy: Policy,
) -> np.ndarray:
    """bool [E]: what the policy lets through."""
    has_text = np.ones(len(item_names), bool)
    if texts is not None:
        has_text = np.array([bool(texts.get(item, "").strip()) for item in item_names])
    if policy.textless == "refuse" and not has_text.all():
        raise ValueError(
            f"{source}: {np.sum(~has_text)} items have no text, the first one is "
            f"{item_names[int(np.argmin(has_text))]!r}; give them one, or drop them with "
            "textless='drop'"
        )
    keep = has_text[items]
    if policy.repeats != "keep":
        again = _repeated(users, items)
        if policy.repeats == "refuse" and again.any():
            at = int(np.argmax(again))
            raise ValueError(
                f"{source}: user {names[users[at]]!r} has item {item_names[items[at]]!r} twice "
                f"({again.sum()} repeats in all); choose repeats='first' or repeats='keep'"
            )
        keep &= ~again
    if not keep.any():
        raise ValueError(f"{source}: no interaction is left, no item has a text")
    return keep


def _corpus(
    name: str,
    names: list[str],
    users: np.ndarray,
    item_names: list[str],
    items: np.ndarray,
    texts: Mapping[str, str] | None,
    seconds: np.ndarray,
    order: np.ndarray,
) -> Corpus:
    kept_items, first = np.unique(items, return_index=True)
    old = items[np.sort(first)]
    new = np.full(len(item_names), -1, np.int32)
    new[old] = np.arange(len(kept_items), dtype=np.int32)
    rows, lengths = np.unique(users, return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    times = seconds[order] if len(seconds) else np.zeros(0, np.int64)
    chosen = [item_names[i] for i in old]
    return Corpus(
        name,
        [names[u] for u in rows],
        chosen,
        Sequences(new[items], offsets, len(chosen), times.astype(np.int64)),
        [texts[item].strip() if texts is not None else "" for item in chosen],
    )


def from_rows(
    name: str,
    users: Sequence[str],
    rows: Sequence[Sequence[str]],
    texts: Mapping[str, str],
    source: str,
    policy: Policy | None = None,
) -> Corpus:
    """Corpus of rows that are in time order already and have no times.

    Raises:
        ValueError: see `from_events`.
    """
    events = Events(
        [user for user, row in zip(users, rows, strict=True) for _ in row],
        [item for row in rows for item in row],
        np.concatenate([np.zeros(0), *(np.arange(len(row), dtype=float) for row in rows)]),
        np.zeros(0, np.int64),
        source,
    )
    return from_events(name, events, texts, policy)
