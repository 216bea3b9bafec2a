# SPDX-License-Identifier: Apache-2.0
"""Beam search over semantic IDs, free or along the trie of a catalogue; one program, no host loop.

The number of digits is static, so the search is unrolled. It starts from one beam, holds at most
`beams` after every digit, and breaks ties by the lowest (beam, code). Three ways to normalise the
scores of a digit, which give different orders:

    "full"      over all codes of all levels
    "digit"     over the codes of the level
    "children"  over the codes the trie allows after this prefix (sums to 1 over the catalogue)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rec.models.digits import level_offsets
from rec.models.generators import Model
from rec.names import NORMALISERS
from rec.sid import trie as tries
from rec.sid.trie import Trie, TrieShape


class Beams(NamedTuple):
    """Best first. codes: int32 [B, M, L]; scores: float32 [B, M], sums of log-probabilities, -inf
    for a beam that does not exist; leaves: int32 [B, M] of the trie, -1 where the codes are no item
    (or no trie was given)."""

    codes: jax.Array
    scores: jax.Array
    leaves: jax.Array


class Generator(NamedTuple):
    """What the search asks of a model.

    advance: (state, digits int32 [R], level) -> (hidden [R, D], state) after a digit of `level`;
    logits: (hidden [R, D], level or None) -> float32 [R, sizes[level]], or [R, sum(sizes)];
    take: (state, rows int32 [R']) -> state whose row i is the old row rows[i].
    children: (hidden [R, D], level, codes int32 [R, K]) -> float32 [R, K], logits of those codes
        alone; None where the model scores whole levels. Needs normaliser "children".
    """

    sizes: tuple[int, ...]
    advance: Callable[[Any, jax.Array, int], tuple[jax.Array, Any]]
    logits: Callable[[jax.Array, int | None], jax.Array]
    take: Callable[[Any, jax.Array], Any]
    children: Callable[[jax.Array, int, jax.Array], jax.Array] | None = None


def make_generator(model: Model, params: Any, children_only: bool = False) -> Generator:
    """A model as the search wants it; its state is what `start` gives beside the first digit's.

    Args:
        children_only: score no code that the trie does not allow; of a `SidMlp`.
    """

    def call(method: str, *inputs: Any) -> Any:
        return model.apply({"params": params}, *inputs, method=method)

    return Generator(
        model.sizes,
        lambda state, digits, level: call("advance", state, digits, level),
        lambda hidden, level: call("logits", hidden, level),
        lambda state, rows: state.take(rows),
        (lambda *inputs: call("child_logits", *inputs)) if children_only else None,
    )


def beam_search(
    generator: Generator,
    hidden: jax.Array,
    state: Any,
    *,
    beams: int,
    normaliser: str = "digit",
    trie: Trie | None = None,
    shape: TrieShape | None = None,
    constrained: bool = True,
) -> Beams:
    """The `beams` most likely SIDs that keeping that many after every digit finds.

    Args:
        hidden, state: of the first digit, one row per history [B, D].
        trie, shape: of the catalogue; without them the search is free and leaves are -1.
        constrained: False searches freely and looks its results up in the trie.

    Raises:
        ValueError: a normaliser that is unknown or needs a constrained search; beams < 1; a
            generator of children alone with another normaliser than "children".
    """
    _check(normaliser, beams, constrained and trie is not None)
    if generator.children is not None and normaliser != "children":
        raise ValueError(f'normaliser={normaliser!r}: scores of children alone need "children"')
    sizes, B = generator.sizes, hidden.shape[0]
    bound = trie if constrained else None
    scores, nodes = jnp.zeros((B, 1)), jnp.zeros((B, 1), jnp.int32)
    codes = jnp.zeros((B, 1, 0), jnp.int32)
    for level in range(len(sizes)):
        width = scores.shape[1]
        if generator.children is not None:
            assert bound is not None and shape is not None  # "children" is refused without them
            digits, children, logits = _children(generator, bound, shape, level, nodes, hidden)
        else:
            logits = _level_scores(generator, hidden, level, normaliser).reshape(B, width, -1)
            if bound is not None and shape is not None:
                digits, children, logits = _allowed(bound, shape, level, nodes, logits, normaliser)
            else:
                digits = jnp.broadcast_to(jnp.arange(logits.shape[2]), logits.shape)
                children = jnp.zeros(logits.shape, jnp.int32)
        total = (scores[:, :, None] + logits).reshape(B, -1)
        scores, best = jax.lax.top_k(total, min(beams, total.shape[1]))
        parent = best // logits.shape[2]

        def chosen(x: jax.Array, best: jax.Array = best) -> jax.Array:
            return jnp.take_along_axis(x.reshape(B, -1), best, axis=1)

        digit, nodes = chosen(digits).astype(jnp.int32), chosen(children)
        nodes = jnp.maximum(nodes, 0)  # beams that do not exist stand anywhere, at -inf
        before = jnp.take_along_axis(codes, parent[:, :, None], axis=1)
        codes = jnp.concatenate([before, digit[:, :, None]], axis=2)
        if level + 1 < len(sizes):
            rows = (jnp.arange(B)[:, None] * width + parent).reshape(-1)
            hidden, state = generator.advance(generator.take(state, rows), digit.reshape(-1), level)
    leaves = nodes
    if trie is None or shape is None:
        leaves = jnp.full_like(nodes, -1)
    elif bound is None:
        leaves = tries.walk(trie, shape, codes)
    leaves = jnp.where(scores > -jnp.inf, leaves, -1)
    missing = beams - scores.shape[1]
    return Beams(
        jnp.pad(codes, ((0, 0), (0, missing), (0, 0))),
        jnp.pad(scores, ((0, 0), (0, missing)), constant_values=-jnp.inf),
        jnp.pad(leaves, ((0, 0), (0, missing)), constant_values=-1),
    )


def _check(normaliser: str, beams: int, bound: bool) -> None:
    if normaliser not in NORMALISERS:
        raise ValueError(f"normaliser={normaliser!r}: must be one of {NORMALISERS}")
    if normaliser == "children" and not bound:
        raise ValueError('normaliser="children" needs a constrained search along a trie')
    if beams < 1:
        raise ValueError(f"beams={beams}: must be at least 1")


def _level_scores(
    generator: Generator, hidden: jax.Array, level: int, normaliser: str
) -> jax.Array:
    """[R, sizes[level]]: log-probabilities, or plain logits where children normalise later."""
    if normaliser == "full":
        start, stop = level_offsets(generator.sizes)[level : level + 2]
        return jax.nn.log_softmax(generator.logits(hidden, None), axis=-1)[:, start:stop]
    logits = generator.logits(hidden, level)
    return logits if normaliser == "children" else jax.nn.log_softmax(logits, axis=-1)


def _allowed(
    trie: Trie,
    shape: TrieShape,
    level: int,
    nodes: jax.Array,
    logits: jax.Array,
    normaliser: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(codes, child nodes, scores), each [B, M, K]: what the trie allows, -inf for the rest."""
    if shape.dense[level]:
        children = trie.dense[level][nodes]  # [B, M, W]
        digits = jnp.broadcast_to(jnp.arange(logits.shape[2]), logits.shape)
        valid = children >= 0
    else:
        digits, children, valid = tries.children(trie, shape, level, nodes)
        logits = jnp.take_along_axis(logits, digits, axis=2)
    logits = jnp.where(valid, logits, -jnp.inf)
    if normaliser == "children":
        logits = jax.nn.log_softmax(logits, axis=-1)
    return digits, children, logits


def _children(
    generator: Generator,
    trie: Trie,
    shape: TrieShape,
    level: int,
    nodes: jax.Array,
    hidden: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `_allowed` gives, normalised over the children, with no logit of any other code."""
    assert generator.children is not None
    digits, children, valid = tries.children(trie, shape, level, nodes)  # [B, M, K]
    codes = digits.reshape(len(hidden), -1)
    logits = generator.children(hidden, level, codes).reshape(digits.shape)
    logits = jax.nn.log_softmax(jnp.where(valid, logits, -jnp.inf), axis=-1)
    return digits, children, logits


def search(
    model: Model,
    params: Any,
    history: jax.Array,
    mask: jax.Array,
    users: jax.Array,
    trie: Trie | None = None,
    *,
    shape: TrieShape | None = None,
    beams: int,
    normaliser: str = "digit",
    constrained: bool = True,
    children_only: bool = False,
) -> Beams:
    """Beams of a generator for histories int32 [B, T, L] with mask bool [B, T] and users int32 [B].

    Pure; jit it with model, shape, beams, normaliser, constrained and children_only static.
    """
    hidden, cache = model.apply({"params": params}, history, mask, users, method="start")  # type: ignore[misc]
    return beam_search(
        make_generator(model, params, children_only),
        hidden,
        cache,
        beams=beams,
        normaliser=normaliser,
        trie=trie,
        shape=shape,
        constrained=constrained,
    )
