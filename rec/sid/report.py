# SPDX-License-Identifier: Apache-2.0
"""Quality of a table of codes: codebook use, collisions, reconstruction, collapse alarm."""

from collections.abc import Mapping

import numpy as np

from rec.sid import table

LEAST_USAGE = 0.5  # of the codes of a level (of the items, where they are fewer) [our choice]
LEAST_PERPLEXITY = 0.1  # exp(entropy) as a share of the same
MOST_SHARE = 0.5  # of the items under one code, where a level has more than two


def report(
    codes: np.ndarray,
    sizes: tuple[int, ...],
    x: np.ndarray | None = None,
    decoded: np.ndarray | None = None,
) -> dict[str, float]:
    """Figures of codes before any counter digit is added (that digit is mostly 0 by design).

    Args:
        codes: int32 [N, L].
        sizes: codes of every level.
        x: [N, D], the features, where reconstruction is wanted.
        decoded: [L, N, D] reconstructions from the first 1 .. L digits, or [N, D] of all.

    Returns:
        usage/level1 ..: share of a level's codes in use; usable/level1 ..: the same as a share of
        min(codes, items); entropy/level1 ..: in nats; perplexity/level1 ..: exp(entropy) / codes;
        top_share/level1 ..: share of items under the most frequent code; distinct: SIDs in use;
        uniqueness: distinct / items; largest_group: items of the most shared SID; collisions:
        share of items that share theirs; reconstruction/level1 .. and reconstruction: mean over
        items of |x - decoded|^2; alarm: 1.0 where codebooks have collapsed, see `reason`.

    Raises:
        ValueError: codes that do not fit sizes, features that do not fit codes.
    """
    table.check(codes, sizes)
    items, out = len(codes), {}
    for level, size in enumerate(sizes):
        counts = np.bincount(codes[:, level], minlength=size)
        shares = counts[counts > 0] / items
        entropy = float(-(shares * np.log(shares)).sum())
        name, used = f"level{level + 1}", int((counts > 0).sum())
        out[f"usage/{name}"] = used / size
        out[f"usable/{name}"] = used / min(size, items)
        out[f"entropy/{name}"] = abs(entropy)
        out[f"perplexity/{name}"] = float(np.exp(entropy)) / size
        out[f"top_share/{name}"] = float(shares.max())
    groups = np.unique(codes, axis=0, return_counts=True)[1]
    out["distinct"] = float(len(groups))
    out["uniqueness"] = len(groups) / items
    out["largest_group"] = float(groups.max())
    out["collisions"] = float(groups[groups > 1].sum()) / items
    if x is not None and decoded is not None:
        if x.shape != decoded.shape[-2:] or len(x) != items or decoded.ndim not in (2, 3):
            raise ValueError(
                f"{items} items, features {x.shape}, decoded {decoded.shape}: decoded must be "
                "[levels, items, width] or [items, width]"
            )
        gaps = ((x - decoded).astype(np.float64) ** 2).sum(axis=-1).mean(axis=-1)
        if decoded.ndim == 3:
            out.update({f"reconstruction/level{i + 1}": float(gap) for i, gap in enumerate(gaps)})
        out["reconstruction"] = float(gaps.reshape(-1)[-1])
    out["alarm"] = float(bool(_complaints(out, sizes, items)))
    return out


def _complaints(figures: Mapping[str, float], sizes: tuple[int, ...], items: int) -> list[str]:
    complaints = []
    for level, size in enumerate(sizes):
        name = f"level{level + 1}"
        usable = min(size, items)
        words = []
        if figures[f"usable/{name}"] < LEAST_USAGE:
            used = round(figures[f"usage/{name}"] * size)
            words.append(f"only {used} of {size} codes are in use")
        if figures[f"perplexity/{name}"] * size < LEAST_PERPLEXITY * usable:
            effective = figures[f"perplexity/{name}"] * size
            words.append(f"items are spread as over {effective:.1f} of {size} codes")
        if size > 2 and items > 2 and figures[f"top_share/{name}"] > MOST_SHARE:
            words.append(f"{figures[f'top_share/{name}']:.0%} of the items have the same code")
        if words:
            complaints.append(f"level {level + 1}: " + ", ".join(words))
    return complaints


def reason(figures: Mapping[str, float], sizes: tuple[int, ...]) -> str:
    """Why the alarm of a report went off, in words; empty where it did not."""
    items = round(figures["distinct"] / figures["uniqueness"])
    complaints = _complaints(figures, sizes, items)
    if not complaints:
        return ""
    return (
        "codebooks have collapsed ("
        + "; ".join(complaints)
        + "): standardise the features, start from "
        "k-means, reset dead codes, lower the learning rate"
    )
