# SPDX-License-Identifier: Apache-2.0
"""Scores of pairs from the graph alone: the peers every model must beat. SciPy, on the host.

    cn        |N(u) & N(v)|
    aa        sum over common neighbours of 1 / log(degree), 0 for degree 1 (Adamic, Adar 2003)
    ra        sum over common neighbours of 1 / degree (Zhou, Lue, Zhang 2009)
    pa        degree(u) * degree(v)
    jaccard   cn / |N(u) | N(v)|, 0 where both are empty
    spd       1 / distance; 1/999 where there is no path, 999 for a pair of a node with itself
    katz      sum over lengths l >= 1 of beta^l * walks of length l; all of them (closed form), or
              those up to `length`
    ppr       p_u(v) + p_v(u), p_u being personalised PageRank: a walk from u that goes back to u
              with probability alpha at each step [our choice: sum, not product]

More is likelier for each of them. A pair is scored on the graph as it is given: take the edge out
first where it must not be seen.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spl

from graph import csr
from graph.csr import CSR
from graph.names import HEURISTICS as NAMES
from graph.names import TARGETS

BETA = 0.005
ALPHA = 0.15
NO_PATH = 999.0
CELLS = 1 << 22  # float64 or uint64 numbers held at a time by each working array
COLUMNS = 1 << 18  # the same of solved columns, which are passed over many times: kept in the cache
DENSE = 10_000  # nodes up to which values of all pairs are made


def scores(name: str, graph: CSR, pairs: np.ndarray, **options: float | int) -> np.ndarray:
    """float64 [..] for pairs int [.., 2] by one of NAMES.

    Args:
        options: of `katz` (beta, length) and `ppr` (alpha); the others have none.

    Raises:
        ValueError: an unknown name, ids out of range, or what `katz` and `ppr` refuse.
    """
    functions: dict[str, Callable[..., np.ndarray]] = {
        "cn": common_neighbors, "aa": adamic_adar, "ra": resource_allocation,
        "pa": preferential_attachment, "jaccard": jaccard, "spd": inverse_distance,
        "katz": katz, "ppr": ppr,
    }  # fmt: skip
    if name not in functions:
        raise ValueError(f"heuristic {name!r} is unknown; choose from {', '.join(NAMES)}")
    csr.check_ids(pairs, graph.num_nodes, "pairs")
    flat = pairs.reshape(-1, 2).astype(np.int64)
    return functions[name](graph, flat, **options).reshape(pairs.shape[:-1])


def adjacency(graph: CSR) -> sp.csr_array:
    """float64 [V, V] of ones."""
    ones = np.ones(len(graph.indices))
    return sp.csr_array((ones, graph.indices, graph.indptr), shape=(graph.num_nodes,) * 2)


# --------------------------------------------------------------------------- common neighbours


def _slices(weights: np.ndarray, total: int) -> Iterator[slice]:
    """Consecutive slices whose weights sum to about `total`, each of one item at least."""
    ends = np.cumsum(weights)
    start = 0
    while start < len(weights):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + total, "right")), start + 1)
        yield slice(start, stop)
        start = stop


def _shared(graph: CSR, pairs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of weights [V] over the common neighbours of each pair, [P]."""
    plain = adjacency(graph)
    weighted = sp.csr_array((weights[graph.indices], graph.indices, graph.indptr), plain.shape)
    degree = csr.degrees(graph).astype(np.int64)
    totals = np.zeros(len(pairs))
    for part in _slices(degree[pairs].sum(1), CELLS):
        u, v = pairs[part].T
        totals[part] = plain[u].multiply(weighted[v]).sum(axis=1)
    return totals


def common_neighbors(graph: CSR, pairs: np.ndarray) -> np.ndarray:
    """[P]; see the module."""
    return _shared(graph, pairs, np.ones(graph.num_nodes))


def _inverse(values: np.ndarray) -> np.ndarray:
    return np.divide(1.0, values, out=np.zeros(len(values)), where=values > 0)


def adamic_adar(graph: CSR, pairs: np.ndarray) -> np.ndarray:
    """[P]; see the module."""
    return _shared(graph, pairs, _inverse(np.log(np.maximum(csr.degrees(graph), 1))))


def resource_allocation(graph: CSR, pairs: np.ndarray) -> np.ndarray:
    """[P]; see the module."""
    return _shared(graph, pairs, _inverse(csr.degrees(graph).astype(float)))


def preferential_attachment(graph: CSR, pairs: np.ndarray) -> np.ndarray:
    """[P]; see the module."""
    return csr.degrees(graph).astype(float)[pairs].prod(axis=1)


def jaccard(graph: CSR, pairs: np.ndarray) -> np.ndarray:
    """[P]; see the module."""
    shared = common_neighbors(graph, pairs)
    union = csr.degrees(graph).astype(float)[pairs].sum(axis=1) - shared
    return np.divide(shared, union, out=np.zeros(len(pairs)), where=union > 0)


# ------------------------------------------------------------------------------------ distance


def distances(graph: CSR, pairs: np.ndarray) -> np.ndarray:
    """Edges on a shortest path, float64 [P]; infinite where there is none.

    Breadth-first search from the distinct first or second nodes, whichever are fewer; 64 of them
    share a machine word.
    """
    source, target = _sources(pairs)
    nodes, which = np.unique(source, return_inverse=True)
    steps = np.full(len(pairs), np.inf)
    width = max(CELLS // max(len(graph.indices), graph.num_nodes, 1), 1) * 64
    by_source = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[by_source], np.arange(0, len(nodes) + width, width))
    for at, (low, high) in enumerate(pairwise(bounds)):
        rows = by_source[low:high]
        roots = nodes[at * width : (at + 1) * width]
        steps[rows] = _levels(graph, roots, which[rows] - at * width, target[rows])
    return steps


def _sources(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns of pairs, that of fewer distinct nodes first."""
    u, v = pairs.T
    return (u, v) if len(np.unique(u)) <= len(np.unique(v)) else (v, u)


def _levels(graph: CSR, roots: np.ndarray, which: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Distance from roots[which] to target, [P], one level of all searches at a time."""
    words = -(-len(roots) // 64)
    column = np.arange(len(roots))
    reached = np.zeros((graph.num_nodes, words), np.uint64)
    np.bitwise_or.at(
        reached, (roots, column // 64), np.uint64(1) << (column % 64).astype(np.uint64)
    )
    filled = np.flatnonzero(csr.degrees(graph))
    starts = graph.indptr[filled]
    word, bit = which // 64, (which % 64).astype(np.uint64)
    steps = np.full(len(which), np.inf)
    open_, level = np.arange(len(which)), 0
    frontier = reached
    while len(open_):
        hit = (reached[target[open_], word[open_]] >> bit[open_]) & np.uint64(1) > 0
        steps[open_[hit]] = level
        open_ = open_[~hit]
        if not len(open_) or not frontier.any():
            break
        level += 1
        grown = np.zeros_like(reached)
        if len(filled):
            grown[filled] = np.bitwise_or.reduceat(frontier[graph.indices], starts, axis=0)
        frontier = grown & ~reached
        reached = reached | frontier
    return steps


def inverse_distance(graph: CSR, pairs: np.ndarray) -> np.ndarray:
    """[P] (`spd`); see the module."""
    far = distances(graph, pairs)
    far[np.isinf(far)] = NO_PATH
    return np.where(far == 0, NO_PATH, 1 / np.maximum(far, 1))


# ------------------------------------------------------------------------------------ all walks


def largest_eigenvalue(graph: CSR) -> float:
    """Computes it of the adjacency, 0 without edges; Katz sums exist for beta below its inverse."""
    if graph.num_nodes <= 64 or not len(graph.indices):
        return float(np.linalg.eigvalsh(adjacency(graph).toarray()).max(initial=0.0))
    start = np.ones(graph.num_nodes)  # has a share in the largest one's vector; makes it repeatable
    return float(
        spl.eigsh(adjacency(graph), k=1, which="LA", v0=start, return_eigenvectors=False)[0]
    )


def _columns(
    graph: CSR, sources: np.ndarray, solve: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[slice, np.ndarray]]:
    """(slice of sources, solve(unit columns [V, C])) in chunks that fit."""
    width = max(COLUMNS // max(graph.num_nodes, 1), 1)
    for at in range(0, len(sources), width):
        part = slice(at, at + width)
        unit = np.zeros((graph.num_nodes, len(sources[part])))
        unit[sources[part], np.arange(unit.shape[1])] = 1
        yield part, solve(unit)


def _by_source(
    graph: CSR, pairs: np.ndarray, solve: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(value of `solve` from one end at the other [P], that end [P], the other [P])."""
    source, target = _sources(pairs)
    nodes, which = np.unique(source, return_inverse=True)
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(len(nodes) + 1))
    values = np.zeros(len(pairs))
    for part, solved in _columns(graph, nodes, solve):
        rows = order[bounds[part.start] : bounds[min(part.stop, len(nodes))]]
        values[rows] = solved[target[rows], which[rows] - part.start]
    return values, source, target


def _walks(graph: CSR, beta: float, length: int) -> Callable[[np.ndarray], np.ndarray]:
    """Unit columns -> their Katz columns; until nothing changes where length is 0."""
    matrix = beta * adjacency(graph)

    def solve(unit: np.ndarray) -> np.ndarray:
        total, term, steps = np.zeros_like(unit), unit, 0
        while steps < length or not length:
            term = matrix @ term
            total += term
            steps += 1
            # Each entry to its own last bit, however small: pairs far apart differ only there.
            if not length and steps % 4 == 0 and not (term > 1e-17 * total).any():
                break
        return total

    return solve


def katz(graph: CSR, pairs: np.ndarray, beta: float = BETA, length: int = 0) -> np.ndarray:
    """[P]; see the module. The closed form (I - beta A)^-1 - I is summed from its series, which
    keeps the relative accuracy of pairs far apart.

    Args:
        length: longest walk that counts; 0 for all of them.

    Raises:
        ValueError: beta not positive, length negative, or, with length 0, a beta at which the sum
            does not exist.
    """
    if not beta > 0 or length < 0:
        raise ValueError(f"katz: beta={beta} must be positive and length={length} not negative")
    if not length:
        largest = largest_eigenvalue(graph)
        if beta * largest >= 1:
            raise ValueError(
                f"katz: the sum over all walks does not exist for beta={beta} on this graph: "
                f"choose beta below {1 / largest:.6f} (1 / largest eigenvalue), or length >= 1"
            )
    return _by_source(graph, pairs, _walks(graph, beta, length))[0]


def _restarts(graph: CSR, alpha: float, tolerance: float) -> Callable[[np.ndarray], np.ndarray]:
    """Unit columns of nodes u -> p_u, each summing to one."""
    degree = csr.degrees(graph).astype(float)
    step = adjacency(graph) @ sp.diags_array(_inverse(degree))
    step = sp.csr_array((1 - alpha) * (step + sp.diags_array((degree == 0).astype(float))))

    # Chebyshev semi-iteration (Varga 1962): the step's eigenvalues are real, within +-(1 - alpha).
    bound = (1 - alpha) ** 2
    shrink = (1 - alpha) / (1 + np.sqrt(1 - bound))
    steps = int(np.ceil(np.log(tolerance / 2) / np.log(shrink)))

    def solve(unit: np.ndarray) -> np.ndarray:
        source = (unit.argmax(axis=0), np.arange(unit.shape[1]))
        before, walk, weight = np.zeros_like(unit), alpha * unit, 2.0
        for _ in range(steps):
            weight = 1 / (1 - bound * weight / 4)
            after = step @ walk
            after[source] += alpha
            after -= before  # in place: these passes, not the product, are what costs
            after *= weight
            after += before
            before, walk = walk, after
        return walk

    return solve


def ppr_rows(
    graph: CSR, sources: np.ndarray, alpha: float = ALPHA, tolerance: float = 1e-10
) -> np.ndarray:
    """float64 [S, V]: personalised PageRank of each source, rows summing to one. A walk stays at a
    node without neighbours. At most `tolerance` of a row is in the wrong place."""
    if not 0 < alpha < 1:
        raise ValueError(f"ppr: alpha={alpha} must lie between 0 and 1")
    rows = np.empty((len(sources), graph.num_nodes))
    for part, solved in _columns(graph, sources, _restarts(graph, alpha, tolerance)):
        rows[part] = solved.T
    return rows


def ppr(
    graph: CSR, pairs: np.ndarray, alpha: float = ALPHA, tolerance: float = 1e-10
) -> np.ndarray:
    """[P]; see the module. One end is enough: degree(u) p_u(v) = degree(v) p_v(u).

    Raises:
        ValueError: alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"ppr: alpha={alpha} must lie between 0 and 1")
    there, source, target = _by_source(graph, pairs, _restarts(graph, alpha, tolerance))
    degree = csr.degrees(graph).astype(float)
    back = there * degree[source] * _inverse(degree)[target]
    return there + np.where(source == target, there, back)


def ppr_push(
    graph: CSR, sources: np.ndarray, alpha: float = ALPHA, epsilon: float = 1e-7
) -> sp.csr_array:
    """Approximate personalised PageRank, sparse [S, V] (Andersen, Chung, Lang 2006).

    Residue r(v) starts at the source; while some r(v) > epsilon * degree(v), alpha of it settles
    at v and the rest goes to the neighbours in equal shares. So each entry falls short of the exact
    one by at most epsilon * degree(v). All nodes above the bound are pushed at once. Sources
    without neighbours keep everything.
    """
    degree = csr.degrees(graph).astype(float)
    step = sp.csr_array(sp.diags_array((1 - alpha) * _inverse(degree)) @ adjacency(graph))
    shape = (len(sources), graph.num_nodes)
    ones = (np.ones(len(sources)), (np.arange(len(sources)), sources))
    alone = degree[sources] == 0
    settled = sp.csr_array(ones, shape=shape) * alone[:, None]
    residue = sp.csr_array(sp.csr_array(ones, shape=shape) * ~alone[:, None])
    while True:
        residue = sp.csr_array(residue)
        pushed = residue.copy()
        pushed.data[pushed.data <= epsilon * degree[pushed.indices]] = 0
        pushed.eliminate_zeros()
        if not pushed.nnz:
            return sp.csr_array(settled)
        settled = settled + alpha * pushed
        residue = residue - pushed + pushed @ step


# ------------------------------------------------------------------- targets of regression


def regression_targets(
    name: str, graph: CSR, pairs: np.ndarray, beta: float = BETA, damping: float = 0.85
) -> np.ndarray:
    """float64 [..]: what a model is asked to regress for pairs int [.., 2]; name is of TARGETS.

    The scale comes from all unordered pairs i <= j of the graph, whose edges are not taken out:
    cn, aa, ra: log(1 + x), from 0 .. its 99.99th percentile to 0 .. 1, clipped; katz and pagerank
    (product of the ends' scores): log(x + 1e-20), made of mean 0 and deviation 1, clipped above at
    its 99th percentile; spd: log(1 + distance), 1.5 times the longest where there is no path.

    Raises:
        ValueError: an unknown name, ids out of range, more than DENSE nodes.
    """
    if name not in TARGETS:
        raise ValueError(f"target {name!r} is unknown; choose from {', '.join(TARGETS)}")
    if graph.num_nodes > DENSE:
        raise ValueError(
            f"targets are scaled by all pairs of nodes: {graph.num_nodes} nodes are more than "
            f"{DENSE}"
        )
    csr.check_ids(pairs, graph.num_nodes, "pairs")
    every = np.stack(np.triu_indices(graph.num_nodes), axis=1)
    low, high = pairs.min(-1).astype(np.int64), pairs.max(-1)
    at = low * graph.num_nodes - low * (low - 1) // 2 + high - low  # of (low, high) in `every`
    if name == "spd":
        far = distances(graph, every)
        return np.log1p(np.where(np.isinf(far), 1.5 * far[np.isfinite(far)].max(), far))[at]
    if name in ("cn", "aa", "ra"):
        values = np.log1p(scores(name, graph, every))
        floor, top = values.min(), np.percentile(values, 99.99)
        return np.clip((values[at] - floor) / max(top - floor, np.finfo(float).tiny), 0, 1)
    if name == "katz":
        values = katz(graph, every, beta)
    else:
        values = pagerank(graph, damping)[every].prod(axis=1)
    values = np.log(values + 1e-20)
    values = (values - values.mean()) / max(values.std(), np.finfo(float).tiny)
    return np.minimum(values[at], np.percentile(values, 99))


def pagerank(graph: CSR, damping: float = 0.85, tolerance: float = 1e-12) -> np.ndarray:
    """float64 [V], summing to one; from a node without neighbours the walk goes anywhere."""
    degree = csr.degrees(graph).astype(float)
    step = sp.csr_array(damping * adjacency(graph) @ sp.diags_array(_inverse(degree)))
    rank = np.full(graph.num_nodes, 1 / graph.num_nodes)
    for _ in range(int(np.ceil(np.log(tolerance) / np.log(damping)))):
        lost = damping * rank[degree == 0].sum()
        rank = step @ rank + (lost + 1 - damping) / graph.num_nodes
    return rank
