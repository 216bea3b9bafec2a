# SPDX-License-Identifier: Apache-2.0
"""SID-MLP: its size, its loss and logits by plain loops, what gets gradients, folding, decoding,
and its cost beside the teacher's."""

import dataclasses
import functools
import itertools
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benches import rec as bench
from experiments.configs.rec import sid_mlp as sid_mlp_config
from experiments.configs.rec import tiger as tiger_config
from rec.decode import beam, exact
from rec.models import generators, sid_mlp
from rec.models.config import TigerConfig
from rec.models.sid_mlp import SidMlp
from rec.models.student_config import DistillConfig
from rec.models.tiger import Tiger
from rec.sid import trie as tries
from tests.rec.tiger_test import SIZES, SMALL, histories
from tests.tiers import deep

REFERENCE = dataclasses.replace(
    sid_mlp_config.DISTILL, heads=4, inner=384, mlp_width=1024, head_width=512, dropout=0.2
)
TINY = dataclasses.replace(
    sid_mlp_config.DISTILL, heads=2, inner=8, mlp_width=12, head_width=20, dropout=0.0
)
ROWS = 3
TARGET = jnp.asarray([[1, 2, 3], [0, 4, 1], [5, 0, 2]], jnp.int32)
TEACHERS = {
    "encoder_decoder": dataclasses.replace(SMALL, layers=1, separators=True, scan=False),
    "decoder_only": dataclasses.replace(SMALL, layers=1, layout="decoder_only", scan=False),
    "packed": dataclasses.replace(
        tiger_config.PACKED, width=16, heads=2, head_dim=8, mlp_width=24, layers=1,
        fusion_width=12, max_items=6, dropout=0.0, digit_dropout=0.0,
    ),
}  # fmt: skip


def student(layout: str = "encoder_decoder", **changes: Any) -> SidMlp:
    return SidMlp(dataclasses.replace(TINY, **changes), generators.make(TEACHERS[layout], SIZES))


@cache
def made(layout: str = "encoder_decoder") -> Any:
    """Parameters, the teacher's among them, far from their small initial ones; nothing compiles."""
    model = student(layout)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(model.init, key, *histories(1), TARGET[:1])["params"]
    teacher = jax.eval_shape(model.teacher.init, key, *histories(1), TARGET[:1])["params"]
    draw = np.random.default_rng(0)

    def drawn(path: Any, leaf: Any) -> jax.Array:
        middle = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(middle + 0.3 * draw.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(drawn, {**shapes, "teacher": teacher})


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_size_of_the_paper() -> None:
    """1,663,744 trained parameters, by their parts, at width 128 and four levels of 256 codes."""
    model = SidMlp(REFERENCE, Tiger(bench.CONFIG, bench.SIZES))
    history = jnp.zeros((1, 2, 4), jnp.int32)
    inputs = (history, jnp.ones((1, 2), bool), jnp.zeros(1, jnp.int32), history[:, 0])
    params = dict(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])
    params.pop("teacher")
    D, inner, hidden, F, W = 128, 384, 1024, 512, 256
    read_out = D * D + D + 4 * D * inner + 2 * 2 * D + 2 * D * hidden + hidden + D
    heads = [t * D * F + F + 2 * F + F * W + W for t in (1, 2, 3, 4)]
    assert read_out == 476_928 == count(params["read_out"])
    assert heads == [198_400, 263_936, 329_472, 395_008]
    assert [count(params[f"heads_{t}"]) for t in range(4)] == heads
    assert count(params) == read_out + sum(heads) == 1_663_744


# ----------------------------------------------------------------------------------- by plain loops


def norm(x: np.ndarray, p: Any) -> np.ndarray:
    centered = x - x.mean()
    return centered / np.sqrt((centered**2).mean() + 1e-5) * p["scale"] + p["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def affine(x: np.ndarray, p: Any) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0.0)


def read_out(states: np.ndarray, p: Any, heads: int = TINY.heads) -> np.ndarray:
    """z of one history's valid states [S, D]: keys and values of every state, head by head."""
    query = affine(states.mean(axis=0), p["pool"])
    q, k, v = (
        affine(x, p[name]).reshape(-1, heads, TINY.inner // heads)
        for x, name in ((query, "query"), (states, "key"), (states, "value"))
    )
    mixed = []
    for head in range(heads):
        scores = k[:, head] @ q[0, head] / np.sqrt(TINY.inner // heads)
        weights = np.exp(scores) / np.exp(scores).sum()
        mixed.append(weights @ v[:, head])
    u = norm(query + affine(np.concatenate(mixed), p["out"]), p["attention_norm"])
    return norm(u + affine(np.maximum(affine(u, p["up"]), 0), p["down"]), p["mlp_norm"])


def head_logits(z: np.ndarray, digits: tuple[int, ...], p: Any, vectors: Any) -> np.ndarray:
    """Logits after some digits: the MLP of z and their vectors side by side."""
    head = p[f"heads_{len(digits)}"]
    joined = np.concatenate([z, *(vectors[j][code] for j, code in enumerate(digits))])
    return affine(gelu(norm(affine(joined, head["up"]), head["norm"])), head["down"])


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - z.max() - np.log(np.exp(z - z.max()).sum())


@cache
def taught(layout: str = "encoder_decoder") -> Any:
    """(states, ids, logits by level, code vectors) of the teacher, and its states and logits by the
    methods that decoding uses."""
    model, params = student(layout).teacher, made(layout)["teacher"]

    @jax.jit
    def call(params: Any) -> Any:
        apply = partial(model.apply, {"params": params})
        inputs = histories(ROWS)
        return (
            apply(*inputs, TARGET, method="teach"),
            apply(method="code_vectors"),
            apply(*inputs, method="history_states"),
            apply(*inputs, TARGET),
        )

    return jax.tree.map(np.asarray, call(params))


@pytest.mark.parametrize("layout", ["encoder_decoder", deep("decoder_only"), deep("packed")])
def test_a_teacher_teaches_what_it_decodes_with(layout: str) -> None:
    """States and logits of one pass are those of reading alone and of teacher forcing; vectors of
    codes are rows of the teacher's table."""
    (states, ids, logits), vectors, alone, wanted = taught(layout)
    valid = ids > 0
    np.testing.assert_allclose(states[valid], alone[0][valid], atol=1e-5)
    np.testing.assert_array_equal(ids, alone[1])
    offsets = np.cumsum([0, *SIZES])
    for level, (start, stop) in enumerate(itertools.pairwise(offsets)):
        np.testing.assert_allclose(logits[level], wanted[:, level, start:stop], atol=1e-5)
        table = made(layout)["teacher"]["write" if layout == "packed" else "codes"][start:stop]
        scale = 4.0 if layout == "packed" else 1.0  # sqrt(16)
        np.testing.assert_allclose(vectors[level], scale * np.asarray(table), rtol=1e-6)
    assert np.std(states[valid]) > 0.1 and np.std(logits[0]) > 0.1


@cache
def oracle_z(layout: str = "encoder_decoder") -> np.ndarray:
    (states, ids, _), _, _, _ = taught(layout)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), made(layout)["read_out"])
    rows = zip(states.astype(np.float64), ids > 0, strict=True)
    return np.stack([read_out(row[valid], p) for row, valid in rows])


@cache
def loss_and_grads(alpha: float, tau: float, control: str) -> Any:
    model = student(alpha=alpha, tau=tau, control=control)
    history, mask, users = histories(ROWS)
    batch = {"history": history, "mask": mask, "users": users, "target": TARGET}
    value = jax.value_and_grad(lambda p: sid_mlp.loss(model, p, batch), has_aux=True)
    return jax.jit(value)(made())


@pytest.mark.parametrize(
    ("alpha", "tau", "control"),
    [(0.7, 2.0, "none"), deep(0.7, 1.0, "shuffled_labels"), deep(0.0, 1.0, "none")],
)
def test_loss_is_that_of_numpy(alpha: float, tau: float, control: str) -> None:
    """Mean over rows of sum over digits of alpha tau^2 KL + (1 - alpha) cross-entropy."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), made())
    (_, _, by_teacher), vectors, _, _ = taught()
    total = 0.0
    for row, level in itertools.product(range(ROWS), range(3)):
        target = tuple(np.asarray(TARGET[row]).tolist())
        found = head_logits(oracle_z()[row], target[:level], p, vectors)
        other = row - 1 if control == "shuffled_labels" else row
        wanted = by_teacher[level][other].astype(np.float64)
        kl = 0.0
        for w, f in zip(log_softmax(wanted / tau), log_softmax(found / tau), strict=True):
            kl += np.exp(w) * (w - f)
        total += alpha * tau**2 * kl - (1 - alpha) * log_softmax(found)[target[level]]
    (value, parts), _ = loss_and_grads(alpha, tau, control)
    assert float(value) == pytest.approx(total / ROWS, rel=1e-4)
    assert (float(parts["kl"]) > 0.1) == (alpha > 0)


def test_nothing_of_the_teacher_gets_a_gradient() -> None:
    _, grads = loss_and_grads(0.7, 2.0, "none")
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads["teacher"]))
    own = {name: leaf for name, leaf in grads.items() if name != "teacher"}
    assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(own))
    assert count(grads["teacher"]) > 1000


def test_parts_of_the_loss_in_closed_form() -> None:
    """No KL between equals, whatever is added to all logits; tau^2 keeps the gradient's size as tau
    grows, and without it the gradient vanishes."""
    rng = np.random.default_rng(2)
    draw = lambda: [jnp.asarray(rng.normal(size=(ROWS, W)), jnp.float32) for W in SIZES]
    ours, theirs = draw(), draw()
    shifted = [logits + 3.0 for logits in ours]
    kl, nats = sid_mlp.digit_losses(shifted, ours, TARGET, 1.5)
    np.testing.assert_allclose(kl, 0.0, atol=1e-5)
    by_hand = [
        -sum(log_softmax(np.asarray(ours[t][row]))[TARGET[row, t]] for t in range(3))
        for row in range(ROWS)
    ]
    np.testing.assert_allclose(nats, by_hand, rtol=1e-5)
    none, _ = sid_mlp.digit_losses(ours, [], TARGET, 1.0)
    np.testing.assert_array_equal(none, 0.0)

    taus = (1.0, 10.0, 100.0)

    @jax.jit
    def gradients(ours: list[jax.Array]) -> list[Any]:
        loss = lambda ours, tau: sid_mlp.digit_losses(ours, theirs, TARGET, tau)[0].sum()
        return [jax.grad(loss)(ours, tau) for tau in taus]

    sizes = [sum(float(np.abs(leaf).sum()) for leaf in grads) for grads in gradients(ours)]
    slopes = [tau**2 * size for tau, size in zip(taus, sizes, strict=True)]
    assert max(slopes) < 3 * min(slopes), slopes
    assert slopes[2] == pytest.approx(slopes[1], rel=0.1)  # its limit is mean squared distance


# ----------------------------------------------------------------------------------------- decoding


def catalogue(seed: int, size: int) -> np.ndarray:
    every = np.array(list(itertools.product(*map(range, SIZES))), np.int32)
    sids = every[np.random.default_rng(seed).permutation(len(every))[:size]]
    return sids[np.lexsort(sids.T[::-1])]


CATALOGUE = catalogue(3, 50)
BEAMS = 56  # more than items


def brute(sids: np.ndarray, normaliser: str, layout: str) -> np.ndarray:
    """Log-probability of every SID, [rows, N] in float64 by plain loops."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), made(layout))
    vectors = taught(layout)[1]
    known = [tuple(sid) for sid in sids.tolist()]
    logits = functools.cache(lambda row, prefix: head_logits(z[row], prefix, p, vectors))
    z = oracle_z(layout)
    out = np.zeros((ROWS, len(known)))
    for row, column, level in itertools.product(range(ROWS), range(len(known)), range(3)):
        sid = known[column]
        scores = logits(row, sid[:level])
        pool = scores
        if normaliser == "children":
            pool = scores[sorted({s[level] for s in known if s[:level] == sid[:level]})]
        out[row, column] += scores[sid[level]] - np.log(np.exp(pool).sum())
    return out


@partial(jax.jit, static_argnames=("model", "shape", "beams", "normaliser", "children_only"))
def search(model: SidMlp, params: Any, trie: Any, **options: Any) -> beam.Beams:
    return beam.search(model, params, *histories(ROWS), trie, **options)


@cache
def folded_params(layout: str) -> Any:
    return jax.jit(partial(sid_mlp.fold, student(layout)))(made(layout))


@cache
def run(layout: str, *, folded: bool, **options: Any) -> beam.Beams:
    model = student(layout).clone(folded=folded)
    params = folded_params(layout) if folded else made(layout)
    trie, shape = tries.build(CATALOGUE, SIZES)
    found = search(model, params, trie, shape=shape, **options)
    return beam.Beams(*map(np.asarray, found))


@pytest.mark.parametrize(
    ("layout", "normaliser"),
    [
        ("encoder_decoder", "children"),
        deep("encoder_decoder", "digit"),
        deep("decoder_only", "children"),
        deep("packed", "digit"),
    ],
)
def test_wide_beams_are_the_brute_force(layout: str, normaliser: str) -> None:
    """More beams than items: all items, in the order of their probabilities."""
    wanted = brute(CATALOGUE, normaliser, layout)
    found = run(layout, folded=False, beams=BEAMS, normaliser=normaliser)
    N = len(CATALOGUE)
    for row in range(ROWS):
        order = np.argsort(-wanted[row])
        np.testing.assert_array_equal(found.codes[row, :N], CATALOGUE[order])
        np.testing.assert_allclose(found.scores[row, :N], wanted[row][order], atol=1e-4)
    assert (found.scores[:, N:] == -np.inf).all()
    if normaliser == "children":
        np.testing.assert_allclose(np.exp(wanted).sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.deep
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("normaliser", ["digit", "children"])
def test_exact_scores_are_the_brute_force(normaliser: str, folded: bool) -> None:
    layout = "encoder_decoder"
    trie, shape = tries.build(CATALOGUE, SIZES)
    model = student(layout).clone(folded=folded)
    score = partial(exact.exact_scores, model, normaliser=normaliser, shape=shape)
    params = folded_params(layout) if folded else made(layout)
    found = jax.jit(lambda *inputs: score(*inputs, trie=trie))(
        params, *histories(ROWS), jnp.asarray(CATALOGUE)
    )
    np.testing.assert_allclose(found, brute(CATALOGUE, normaliser, layout), atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "folded", "children_only", "beams"),
    [
        ("encoder_decoder", True, True, BEAMS),
        deep("encoder_decoder", True, False, BEAMS),
        deep("encoder_decoder", False, True, 7),
        deep("decoder_only", True, True, 7),
        deep("packed", True, True, 7),
    ],
)
def test_folded_heads_and_children_alone_change_no_list(
    layout: str, folded: bool, children_only: bool, beams: int
) -> None:
    """The same items in the same order, scores to 1e-5: with tables for the first layer, and where
    codes that are no children are never scored."""
    options: dict[str, Any] = {"beams": beams, "normaliser": "children"}
    plain = run(layout, folded=False, **options)
    other = run(layout, folded=folded, children_only=children_only, **options)
    np.testing.assert_array_equal(other.leaves, plain.leaves)
    np.testing.assert_allclose(other.scores, plain.scores, atol=1e-5)
    found = plain.scores[plain.leaves >= 0]
    assert len(found) >= ROWS * min(beams, 50) and np.ptp(found) > 1


@pytest.mark.deep
def test_scores_of_children_are_those_of_their_level() -> None:
    """Few children are scored by rows of the table, many by the whole level: one outcome."""
    head = sid_mlp.Head(TINY, 16, (80, 80), 0, False)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, 16)), jnp.float32)
    written = sid_mlp.Prefix(z, jnp.zeros((ROWS, 0), jnp.int32))

    def both(module: sid_mlp.Head, codes: jax.Array) -> Any:
        hidden = module.hidden(written, [])
        return module.logits(hidden), module.child_logits(hidden, codes)

    for children in (3, 30):
        codes = np.random.default_rng(children).integers(0, 80, (ROWS, children)).astype(np.int32)
        (logits, found), _ = jax.jit(partial(head.init_with_output, method=both))(
            jax.random.key(0), jnp.asarray(codes)
        )
        np.testing.assert_allclose(found, np.take_along_axis(logits, codes, axis=1), atol=1e-6)


def test_padding_and_company_change_nothing() -> None:
    """More padding, garbage in it, and other rows of the batch leave a row's logits alone; another
    history does not."""
    model, params = student(), made()
    history, mask, users = histories(ROWS)
    turned = jnp.where(mask[:, :, None], (history + 1) % 4, history)
    apply = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))
    junk = jnp.concatenate([jnp.where(mask[:, :, None], history, 3), turned])
    longer = jnp.pad(junk, ((0, 0), (0, 2), (0, 0)), constant_values=2)
    wider = jnp.pad(jnp.concatenate([mask, mask]), ((0, 0), (0, 2)))
    twice = [jnp.concatenate([x, x]) for x in (users, TARGET)]
    base = np.asarray(apply(history, mask, users, TARGET))
    padded, other = np.split(np.asarray(apply(longer, wider, *twice)), 2)
    np.testing.assert_allclose(padded, base, atol=2e-5)
    assert (np.abs(other - base).max(axis=(1, 2)) > 1e-2).all()


@pytest.mark.deep
def test_a_blind_student_reads_nothing() -> None:
    model, params = student(control="blind"), made()
    history, mask, users = histories(ROWS)
    apply = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))
    one, other = (apply(h, mask, users, TARGET) for h in (history, (history + 1) % 4))
    np.testing.assert_array_equal(one, other)


# --------------------------------------------------------------------------------------------- cost


def flops(model: Any, cfg: TigerConfig, **options: Any) -> float:
    """What XLA counts for one user: encoder, and a search by 50 beams among 10,000 SIDs."""
    sids = np.random.default_rng(0).integers(0, bench.SIZES, (10_000, 4)).astype(np.int32)
    trie, shape = tries.build(sids, bench.SIZES)
    B = 4
    history = jax.ShapeDtypeStruct((B, bench.ITEMS, 4), jnp.int32)
    inputs = (history, jax.ShapeDtypeStruct((B, bench.ITEMS), bool))
    users = jax.ShapeDtypeStruct((B,), jnp.int32)
    target = jax.ShapeDtypeStruct((B, 4), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key, *inputs, users, target)["params"]
    run = partial(beam.search, model, shape=shape, beams=bench.BEAMS, **options)
    compiled = jax.jit(run).lower(params, *inputs, users, trie).compile()
    counted: Any = compiled.cost_analysis()
    counted = counted[0] if isinstance(counted, list) else counted
    assert cfg.scan is False  # XLA counts the body of a scan once
    return float(counted["flops"]) / B


@pytest.mark.deep
def test_a_student_decodes_for_less_than_its_teacher() -> None:
    """At the paper's sizes, against a teacher whose keys and values are shared by its beams."""
    cfg = bench.CONFIG
    teacher = Tiger(cfg, bench.SIZES)
    model = SidMlp(REFERENCE, teacher)
    of_teacher = flops(teacher, cfg)
    of_student = flops(model, cfg)
    of_folded = flops(model.clone(folded=True), cfg, normaliser="children", children_only=True)
    print(f"GFLOP a user: teacher {of_teacher / 1e9:.3f}, student {of_student / 1e9:.3f}, "
          f"folded, children alone {of_folded / 1e9:.3f}")  # fmt: skip
    assert of_teacher / of_student >= 2.4
    assert of_teacher / of_folded >= 2.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.1}, r"alpha=1.1: must be in \[0, 1\]"),
        ({"tau": 0.0}, "tau=0.0: must be > 0"),
        ({"inner": 9}, "inner=9: must be a multiple of heads=2"),
        ({"head_width": 0}, "head_width=0: must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
        ({"control": "deaf"}, "control='deaf': must be one of"),
        ({"control": "scratch"}, "give alpha=0"),
    ],
)
def test_configs_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**{**dataclasses.asdict(TINY), **changes})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normaliser": "full"}, "scores level by level"),
        (
            {"normaliser": "digit", "children_only": True},
            'scores of children alone need "children"',
        ),
    ],
)
def test_searches_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run("encoder_decoder", folded=False, beams=3, **options)
