# SPDX-License-Identifier: Apache-2.0
"""Threshold differential attention in float64 NumPy, with gradients derived by hand.

Shares no line with the package: masks and row lengths are counted pair by pair.
"""

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One problem; `ids` names a layout of segments."""

    name: str
    T: int = 40
    S: int = 40
    H: int = 2
    K: int = 2
    D: int = 16
    Dv: int = 16
    causal: bool = True
    ids: str = ""
    offset: int | tuple[int, ...] | None = None
    p: int | float = 2
    block_q: int = 16
    block_kv: int = 32
    B: int = 2
    skip: bool = True


def problem(case: Case, seed: int = 0) -> dict[str, Any]:
    """float32 inputs with correlated queries and keys, beta and kappa per head, beta .3 to .7."""
    rng = np.random.default_rng(seed)
    B, T, S, H, K, D = case.B, case.T, case.S, case.H, case.K, case.D
    normal = lambda *shape: rng.normal(size=shape)
    k = normal(2, B, S, K, D)
    # Queries lean towards some key of their kv head, so that both views have strong matches.
    towards = k[:, :, rng.integers(0, S, T)].repeat(H // K, axis=3)
    q = 0.6 * towards + normal(2, B, T, H, D)
    out = dict(q=q, k=k, v=normal(B, S, K, case.Dv), lam=rng.uniform(0.2, 0.9, H))
    out |= dict(beta=rng.uniform(0.3, 0.7, H), kappa=rng.uniform(0.7, 1.6, H))
    out |= dict(g=normal(B, T, H, case.Dv))
    out = {name: x.astype(np.float32) for name, x in out.items()}
    return out | dict(zip(("q_ids", "kv_ids"), segments(case), strict=True))


def segments(case: Case) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Segment ids: "packed" documents with padding at the end, "mixed" in no order, or none."""
    rng = np.random.default_rng(1)
    if case.ids == "":
        return None, None
    if case.ids == "mixed":
        ids = [rng.integers(0, 4, (case.B, n)).astype(np.int32) for n in (case.T, case.S)]
        return ids[0], ids[1]
    cut, end = case.T // 3, case.T - case.T // 5
    at = np.arange(case.T)
    row = np.where(at < cut, 7, np.where(at < end, 3, 0)).astype(np.int32)
    rows = np.stack([row, np.where(at < case.T - 3, 5, 0).astype(np.int32)] * (case.B // 2))
    assert case.T == case.S
    return rows, rows


def mask(case: Case, x: dict[str, Any]) -> np.ndarray:
    """bool [B, T, S], pair by pair."""
    offsets = np.broadcast_to(case.S - case.T if case.offset is None else case.offset, case.B)
    seen = np.zeros((case.B, case.T, case.S), bool)
    for b, i, j in np.ndindex(seen.shape):
        ok = not case.causal or j <= i + offsets[b]
        if x["q_ids"] is not None:
            ok = ok and x["q_ids"][b, i] == x["kv_ids"][b, j] and x["q_ids"][b, i] != 0
        seen[b, i, j] = ok
    return seen


def solve(case: Case, x: dict[str, Any]) -> dict[str, np.ndarray]:
    """Output o, map a [B, H, T, S], and gradients of sum(o * g) in q, k, v, lam, beta, kappa."""
    q, k, v, lam, beta, kappa, g = (
        x[name].astype(np.float64) for name in ("q", "k", "v", "lam", "beta", "kappa", "g")
    )
    group, D = case.H // case.K, case.D
    norm_q, norm_k = (np.sqrt((a * a).sum(-1, keepdims=True)) for a in (q, k))
    unit_q, unit_k = q / norm_q, k / norm_k
    shared_k, shared_v = unit_k.repeat(group, axis=3), v.repeat(group, axis=2)
    seen = mask(case, x)[:, None]
    n = np.broadcast_to(seen.sum(-1), (case.B, case.H, case.T))
    above = n > kappa[:, None]
    logs = np.log(np.where(above, n / kappa[:, None], np.e))
    root = np.where(above, np.sqrt(2 * logs / D), 0)
    tau = beta[:, None] * root
    s = np.einsum("vbihd,vbjhd->vbhij", unit_q, shared_k)
    e = np.where(seen & (s > tau[..., None]), s - tau[..., None], 0)
    w, slope = e**case.p, case.p * e ** (case.p - 1) * (e > 0)
    L = lam[:, None, None]
    a = w[0] - L * w[1]
    dp = np.einsum("bihd,bjhd->bhij", g, shared_v)
    ds = np.stack([dp * slope[0], -L * dp * slope[1]])
    dtau = -ds.sum((0, 4))
    over_heads = lambda y: y.reshape(*y.shape[:-2], case.K, group, y.shape[-1]).sum(-2)
    dunit_q = np.einsum("vbhij,vbjhd->vbihd", ds, shared_k)
    dunit_k = over_heads(np.einsum("vbhij,vbihd->vbjhd", ds, unit_q))
    through = lambda unit, d, norm: (d - unit * (unit * d).sum(-1, keepdims=True)) / norm
    inner = np.where(above, -1 / (kappa[:, None] * D * np.where(above, root, 1)), 0)
    return dict(
        o=np.einsum("bhij,bjhd->bihd", a, shared_v),
        a=a,
        e=e,
        seen=np.broadcast_to(seen, a.shape),
        q=through(unit_q, dunit_q, norm_q),
        k=through(unit_k, dunit_k, norm_k),
        v=over_heads(np.einsum("bhij,bihd->bjhd", a, g)),
        lam=-(dp * w[1]).sum((0, 2, 3)),
        beta=(dtau * root).sum((0, 2)),
        kappa=(dtau * beta[:, None] * inner).sum((0, 2)),
    )
