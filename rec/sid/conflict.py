# SPDX-License-Identifier: Apache-2.0
"""Items of one SID told apart: a counter digit, or other codes (PSID). NumPy on the host."""

from typing import NamedTuple

import numpy as np

KEPT = 8  # nearest codes tried per level and beam entry by exhaustive candidate matching
WIDTH = 64  # of its beam over levels
BLOCK = 256  # items whose candidates are computed at once


def add_digit(codes: np.ndarray, limit: int) -> np.ndarray:
    """SIDs with a last digit: 0 for items alone with their codes, else 1 .. n in item order (GRID).

    Args:
        codes: int32 [N, L].
        limit: codes of the new digit; every group must be smaller.

    Returns:
        int32 [N, L + 1], all rows distinct.

    Raises:
        ValueError: a group of `limit` items or more; the largest is named.
    """
    groups, member, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    member = member.reshape(-1)
    largest = int(np.argmax(counts))
    if counts[largest] > 1 and counts[largest] >= limit:
        raise ValueError(
            f"{counts[largest]} items share the codes {groups[largest].tolist()}: a digit of "
            f"{limit} codes tells {limit - 1} apart; raise digit_limit, levels or codes"
        )
    order = np.argsort(member, kind="stable")
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    digit = np.empty(len(codes), np.int32)
    digit[order] = np.arange(len(codes)) - firsts + 1
    digit[counts[member] == 1] = 0
    return np.concatenate([codes.astype(np.int32), digit[:, None]], axis=1)


class Resolved(NamedTuple):
    """sids: int32 [N, L], all distinct; distortion, greedy: sums over items of the squared final
    residual, of these SIDs and of the nearest codes; moved: items that left their nearest codes."""

    sids: np.ndarray
    distortion: float
    greedy: float
    moved: int


class _Space(NamedTuple):
    """Codebooks float32 [L, W, D] and whether residuals are normalized before every level."""

    codebooks: np.ndarray
    is_normalized: bool

    def residual(self, rest: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(residual [..., D], length taken out of it so far [...]) as a level sees them."""
        if not self.is_normalized:
            return rest, scale
        norm = np.maximum(np.linalg.norm(rest, axis=-1), 1e-12)
        return rest / norm[..., None], scale * norm

    def distances(self, rest: np.ndarray, level: int) -> np.ndarray:
        """[..., D] -> squared distances [..., W]."""
        book = self.codebooks[level]
        flat = rest.reshape(-1, rest.shape[-1])  # one matrix product, updated in place
        out = flat @ (-2 * book.T)
        out += np.einsum("nd,nd->n", flat, flat)[:, None]
        out += np.einsum("wd,wd->w", book, book)[None, :]
        return np.maximum(out, 0, out=out).reshape((*rest.shape[:-1], len(book)))

    def errors(self, start: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Squared final residual [N] of rows [N, D] under codes [N, L], in units of the rows."""
        rest, scale = start, np.ones(len(start), start.dtype)
        for level, book in enumerate(self.codebooks):
            rest, scale = self.residual(rest, scale)
            rest = rest - book[codes[:, level]]
        return np.sum(rest.astype(np.float64) ** 2, axis=-1) * scale.astype(np.float64) ** 2

    def greedy(self, start: np.ndarray) -> np.ndarray:
        """Nearest code level after level: [N, D] -> int32 [N, L]."""
        rest, scale, codes = start, np.ones(len(start), start.dtype), []
        for level, book in enumerate(self.codebooks):
            rest, scale = self.residual(rest, scale)
            codes.append(np.argmin(self.distances(rest, level), axis=-1).astype(np.int32))
            rest = rest - book[codes[-1]]
        return np.stack(codes, axis=-1)


def candidates(start: np.ndarray, space: _Space, nearest: int, width: int) -> np.ndarray:
    """Complete code tuples of each of B rows, least final residual first.

    Level after level every beam entry is continued with its `nearest` nearest codes and the `width`
    continuations with the smallest residual stay.

    Returns:
        int32 [B, M, L], M <= width.
    """
    rest, scale = start[:, None, :], np.ones((len(start), 1), start.dtype)
    codes = np.zeros((len(start), 1, 0), np.int32)
    for level, book in enumerate(space.codebooks):
        rest, scale = space.residual(rest, scale)
        gaps = space.distances(rest, level)  # [B, M, W]
        k = min(nearest, len(book))
        near = np.sort(np.argpartition(gaps, k - 1, axis=-1)[..., :k], axis=-1)
        costs = np.take_along_axis(gaps, near, axis=-1) * (scale**2)[..., None]
        flat = costs.reshape(len(start), -1)
        best = np.argsort(flat, axis=-1, kind="stable")[:, :width]
        parent, token = best // k, np.take_along_axis(near.reshape(len(start), -1), best, axis=-1)
        codes = np.take_along_axis(codes, parent[..., None], axis=1)
        codes = np.concatenate([codes, token[..., None].astype(np.int32)], axis=-1)
        rest = np.take_along_axis(rest, parent[..., None], axis=1) - book[token]
        scale = np.take_along_axis(scale, parent, axis=1)
    return codes


class _Taken:
    """SIDs given away, and how many under every prefix."""

    def __init__(self, levels: int, codes: int) -> None:
        self.room = [codes ** (levels - i) for i in range(levels + 1)]
        self.under: dict[tuple[int, ...], int] = {}

    def full(self, prefix: tuple[int, ...]) -> bool:
        return self.under.get(prefix, 0) >= self.room[len(prefix)]

    def add(self, sid: tuple[int, ...]) -> None:
        for length in range(1, len(sid) + 1):
            self.under[sid[:length]] = self.under.get(sid[:length], 0) + 1


def _recursive(row: np.ndarray, space: _Space, taken: _Taken) -> tuple[int, ...]:
    """RRS: depth-first from the greedy codes, next nearest code at the deepest level first."""

    def down(rest: np.ndarray, prefix: tuple[int, ...]) -> tuple[int, ...]:
        level = len(prefix)
        rest, _ = space.residual(rest, np.ones(1, rest.dtype))
        for code in np.argsort(space.distances(rest, level)[0], kind="stable").tolist():
            longer = (*prefix, code)
            if taken.full(longer):
                continue
            deepest = level + 1 == len(space.codebooks)
            return longer if deepest else down(rest - space.codebooks[level][code], longer)
        raise AssertionError("a prefix with room has a free code")

    return down(row[None], ())


def _matching(
    row: np.ndarray, space: _Space, taken: _Taken, first: np.ndarray | None
) -> tuple[int, ...]:
    """ECM: the best candidate nobody has; beams grow until there is one."""
    nearest, width = KEPT, WIDTH
    options = candidates(row[None], space, nearest, width)[0] if first is None else first
    while True:
        for sid in map(tuple, options.tolist()):
            if not taken.full(sid):
                return sid
        nearest, width = 2 * nearest, 4 * width
        options = candidates(row[None], space, nearest, width)[0]


def psid(start: np.ndarray, codebooks: np.ndarray, how: str, is_normalized: bool) -> Resolved:
    """Distinct SIDs without a counter: items whose nearest codes are taken get others (PSID).

    Items choose in ascending order of their greedy error, ties by id [our choice, the algorithms
    are published in words only]. "ecm", exhaustive candidate matching: the first free one among the
    tuples of a beam (`KEPT` codes per level, `WIDTH` entries) by final residual. "rrs", recursive
    residual search: the next nearest code at the deepest level, then one level up, and so on.

    Args:
        start: [N, D], what the first level quantizes.
        codebooks: [L, W, D].
        how: "ecm" or "rrs".
        is_normalized: residuals have length 1 before every level; errors are in units of `start`
            all the same.

    Raises:
        ValueError: more than W^L items.
    """
    levels, size, _ = codebooks.shape
    if len(start) > size**levels:
        raise ValueError(
            f"{len(start)} items for {size}^{levels} = {size**levels} SIDs: raise levels or codes"
        )
    if how not in ("ecm", "rrs"):
        raise ValueError(f"how={how!r}: must be 'ecm' or 'rrs'")
    space = _Space(codebooks, is_normalized)
    greedy = space.greedy(start)
    errors = space.errors(start, greedy)
    _, member, counts = np.unique(greedy, axis=0, return_inverse=True, return_counts=True)
    crowded = np.flatnonzero(counts[member.reshape(-1)] > 1)
    ahead: dict[int, np.ndarray] = {}
    if how == "ecm":
        for at in range(0, len(crowded), BLOCK):
            block = crowded[at : at + BLOCK]
            options = candidates(start[block], space, KEPT, WIDTH)
            ahead.update(zip(block.tolist(), options, strict=True))
    taken, sids, moved = _Taken(levels, size), greedy.copy(), 0
    for item in np.lexsort((np.arange(len(start)), errors)).tolist():
        sid = tuple(greedy[item].tolist())
        if taken.full(sid):
            moved += 1
            if how == "ecm":
                sid = _matching(start[item], space, taken, ahead.get(item))
            else:
                sid = _recursive(start[item], space, taken)
            sids[item] = sid
        taken.add(sid)
    total = float(space.errors(start, sids).sum())
    return Resolved(sids, total, float(errors.sum()), moved)
