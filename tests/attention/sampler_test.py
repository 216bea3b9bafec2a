# SPDX-License-Identifier: Apache-2.0
"""Sampling and beam search: what is drawn, from what distribution, and independence of rows."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.lm import beam, model, sampler
from attention.lm.config import LMConfig

V = 7
CFG = LMConfig(
    vocab_size=V, layers=2, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=24, qk_norm=True
)
PARAMS = jax.tree.map(lambda x: 12 * x if x.ndim == 3 else x, model.init(jax.random.key(0), CFG))
PARAMS["embed"] = 20 * PARAMS["embed"]
KEY = jax.random.key(5)
PROMPTS = [[3, 1], [2, 6, 5, 1, 1], [4]]


def log_probability(rows: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log p of every next token, [B, T, V] float64, without any cache."""
    logits = np.asarray(FORWARD(jnp.asarray(rows)), np.float64) / temperature
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


FORWARD = jax.jit(lambda ids: model.forward(PARAMS, CFG, ids).logits)


def draw(
    prompts: list[list[int]],
    *,
    rows: Any = None,
    constraint: sampler.Constraint | None = None,
    carry: Any = None,
    **knobs: Any,
) -> sampler.Samples:
    ids, mask = sampler.pad_prompts(prompts, least=8)
    state = sampler.start(PARAMS, CFG, ids, mask, capacity=24)
    sampling = sampler.Sampling(**{"max_new": 8, **knobs})
    rows = np.arange(len(prompts)) if rows is None else rows
    return sampler.sample(
        PARAMS, CFG, state, KEY, sampling, rows=rows, constraint=constraint, carry=carry
    )


def test_prompts_are_padded_at_the_left_to_few_lengths() -> None:
    ids, mask = sampler.pad_prompts([[1, 2], [3, 4, 5, 6, 7]], pad_id=9, least=2)
    assert ids.tolist() == [[9] * 6 + [1, 2], [9] * 3 + [3, 4, 5, 6, 7]]
    np.testing.assert_array_equal(mask, ids != 9)
    for bad in ([], [[1], []]):
        with pytest.raises(ValueError, match="prompts"):
            sampler.pad_prompts(bad)


def test_rows_do_not_depend_on_their_batch() -> None:
    """A row alone, or in another place beside others, draws the same tokens."""
    together = draw(PROMPTS, temperature=0.8)
    moved = draw([PROMPTS[2], PROMPTS[0], PROMPTS[1]], temperature=0.8, rows=np.array([2, 0, 1]))
    alone = draw(PROMPTS[1:2], temperature=0.8, rows=np.array([1]))
    np.testing.assert_array_equal(moved.ids, together.ids[jnp.asarray([2, 0, 1])])
    np.testing.assert_array_equal(alone.ids, together.ids[1:2])
    np.testing.assert_allclose(alone.logp, together.logp[1:2], atol=1e-5)
    assert len({tuple(row) for row in draw([[3]] * 3, temperature=0.8).ids.tolist()}) == 3


def test_logp_is_that_of_the_whole_distribution_under_the_temperature() -> None:
    """Whatever truncation chose the token; and greedy takes the most likely."""
    for options in ({"temperature": 0.7, "top_k": 3, "top_p": 0.99}, {"temperature": 0}):
        worst, out = 0, draw(PROMPTS, **options)
        for row, prompt in enumerate(PROMPTS):
            tokens = np.asarray(out.ids[row])
            logp = log_probability(np.array([[*prompt, *tokens]]), options["temperature"] or 1)
            logp = logp[0, len(prompt) - 1 : -1]
            np.testing.assert_allclose(out.logp[row], logp[np.arange(8), tokens], atol=1e-4)
            ranks = (logp > logp[np.arange(8), tokens][:, None]).sum(-1)
            worst = max(worst, ranks.max())
        assert worst == 0 if options["temperature"] == 0 else worst in (1, 2)


def test_draws_follow_the_distribution() -> None:
    """20,000 draws of one token: chi-square of 7 cells below its 99.9 % point."""
    logits = jnp.asarray([1.0, 0.5, 0.0, -0.5, -1.0, -2.0, 2.0])
    keys = jax.random.split(jax.random.key(7), 20_000)
    rows = jnp.broadcast_to(logits, (20_000, V))
    sampling = sampler.Sampling(max_new=1, temperature=0.7)
    tokens, _ = jax.jit(lambda r, k: sampler._choose(r, k, sampling, None))(rows, keys)
    want = np.exp(np.asarray(logits, np.float64) / 0.7)
    want *= 20_000 / want.sum()
    got = np.bincount(np.asarray(tokens), minlength=V)
    assert ((got - want) ** 2 / want).sum() < 22.5


def test_truncation_keeps_exactly_what_it_says() -> None:
    p = np.array([0.4, 0.05, 0.25, 0.2, 0.1])
    logits = jnp.asarray(np.log(p))[None]

    def kept(**options: Any) -> list[int]:
        return np.flatnonzero(np.isfinite(sampler.truncate(logits, **options)[0])).tolist()

    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [0, 2]
    assert kept(top_p=0.39) == [0]
    assert kept(top_p=0.41) == [0, 2]
    assert kept(top_p=0.849) == [0, 2, 3]
    assert kept(top_p=0.86) == [0, 2, 3, 4]
    assert kept(top_k=3, top_p=0.45) == [0]  # 0.4 / 0.85 of what is left
    assert kept(top_k=3, top_p=0.5) == [0, 2]


def test_stopping_and_further_turns() -> None:
    """Rows end at their stop; what is drawn is in the cache: appended text continues from it."""
    free = draw(PROMPTS, temperature=0.8)
    stop = int(free.ids[0, 2])
    out = draw(PROMPTS, temperature=0.8, stop_ids=(stop,), pad_id=0)
    for row in range(3):
        tokens = np.asarray(free.ids[row]).tolist()
        length = tokens.index(stop) + 1 if stop in tokens else 8
        assert int(out.lengths[row]) == length
        assert np.asarray(out.ids[row]).tolist() == tokens[:length] + [0] * (8 - length)
        assert (np.asarray(out.logp[row, length:]) == 0).all()
    assert len(set(np.asarray(out.lengths).tolist())) > 1
    tools, tool_mask = sampler.pad_prompts([[1, 2], [5], [6]], least=2)
    tool_mask[2] = False  # nothing to append to the last row
    state = sampler.append(PARAMS, CFG, out.state, tools, tool_mask)
    for row in range(3):
        drawn = np.asarray(out.ids[row, : int(out.lengths[row])]).tolist()
        text = PROMPTS[row] + drawn + tools[row][tool_mask[row]].tolist()
        want = log_probability(np.array([text]))[0, -1]
        got = jax.nn.log_softmax(state.logits[row])
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_constraint_gives_permutations() -> None:
    """Tokens that were used may not come again: four draws of tokens 0 to 3 are a permutation."""
    constraint = sampler.Constraint(
        allowed=lambda left: left,
        advance=lambda left, token: left & ~jax.nn.one_hot(token, V, dtype=bool),
    )
    carry = jnp.broadcast_to(jnp.arange(V) < 4, (3, V))
    out = draw(PROMPTS, max_new=4, constraint=constraint, carry=carry)
    assert np.sort(out.ids, axis=1).tolist() == [[0, 1, 2, 3]] * 3
    assert len({tuple(row) for row in np.asarray(out.ids).tolist()}) > 1


def brute(prompt: list[int], length: int, sequences: Any = None) -> list[tuple[float, list[int]]]:
    """All continuations (or those given) with their log-probability, best first."""
    found = list(sequences or itertools.product(range(V), repeat=length))
    longest = max(map(len, found))
    rows = np.array([[*prompt, *s, *[0] * (longest - len(s))] for s in found])
    logp = log_probability(rows)
    start = len(prompt) - 1
    scores = [
        sum(logp[i, start + j, token] for j, token in enumerate(s)) for i, s in enumerate(found)
    ]
    order = np.argsort(-np.array(scores), kind="stable")
    return [(scores[i], list(found[i])) for i in order]


def test_beams_are_the_best_of_all_sequences() -> None:
    """Three tokens of 7: with 7 beams of two prompts, the best ones of all 343 continuations."""
    prompts = [[3, 1], [2, 6, 5]]
    ids, mask = sampler.pad_prompts(prompts, least=4)
    out = beam.beam_search(PARAMS, CFG, ids, mask, beams=7, max_new=3)
    for row, prompt in enumerate(prompts):
        best = brute(prompt, 3)
        np.testing.assert_allclose(out.scores[row, :3], [s for s, _ in best[:3]], atol=1e-4)
        assert out.ids[row, :3].tolist() == [s for _, s in best[:3]]
    assert (np.asarray(out.lengths) == 3).all() and (np.diff(out.scores, axis=1) <= 0).all()


def test_trie_beams_are_valid_and_all_of_them() -> None:
    """Sequences of several lengths: all of the trie is found, in order, and nothing else."""
    sequences = [(1, 2, 3), (1, 2, 4), (5,), (6, 0), (6, 1, 1)]
    trie = beam.make_trie(sequences, V)
    assert trie.shape == (10, V) and (trie >= 0).sum() == 9
    ids, mask = sampler.pad_prompts([[3, 1], [2, 6, 5]], least=4)
    out = beam.beam_search(PARAMS, CFG, ids, mask, beams=7, max_new=3, trie=trie)
    for row, prompt in enumerate([[3, 1], [2, 6, 5]]):
        best = brute(prompt, 3, sequences)
        got = [out.ids[row, i, : int(out.lengths[row, i])].tolist() for i in range(7)]
        assert got == [s for _, s in best] + [[], []]
        np.testing.assert_allclose(out.scores[row, :5], [s for s, _ in best], atol=1e-4)
        assert (np.asarray(out.scores[row, 5:]) == -np.inf).all()
    for bad, named in (([[7]], "tokens in 0 to 6"), ([[]], "sequence"), ([], "sequences")):
        with pytest.raises(ValueError, match=named):
            beam.make_trie(bad, V)


def test_beams_stop_and_can_prefer_length() -> None:
    ids, mask = sampler.pad_prompts([[3, 1], [2, 6, 5]], least=4)
    plain = beam.beam_search(PARAMS, CFG, ids, mask, beams=7, max_new=3)
    stop = int(plain.ids[0, 0, 1])
    out = beam.beam_search(PARAMS, CFG, ids, mask, beams=7, max_new=3, stop_ids=(stop,))
    ended = [s for s in itertools.product(range(V), repeat=3) if stop not in s]
    for length in (1, 2, 3):
        heads = itertools.product([t for t in range(V) if t != stop], repeat=length - 1)
        ended += [(*head, stop) for head in heads]
    best = brute([3, 1], 3, sorted(set(ended)))
    got = [out.ids[0, i, : int(out.lengths[0, i])].tolist() for i in range(3)]
    assert got == [s for _, s in best[:3]]
    np.testing.assert_allclose(out.scores[0, :3], [s for s, _ in best[:3]], atol=1e-4)
    assert len({tuple(s) for s in out.ids[0].tolist()}) == 7  # an ended beam does not multiply
    assert len(set(np.asarray(out.lengths[0]).tolist())) > 1
    long = beam.beam_search(
        PARAMS, CFG, ids, mask, beams=7, max_new=3, stop_ids=(stop,), length_penalty=5.0
    )
    ranked = np.asarray(long.scores[0]) / np.asarray(long.lengths[0], np.float64) ** 5
    assert (np.diff(ranked) <= 0).all() and set(np.asarray(long.scores[0]).tolist()) == set(
        np.asarray(out.scores[0]).tolist()
    )
    assert long.ids[0, 0].tolist() != out.ids[0, 0].tolist()


def test_bad_calls_are_named() -> None:
    ids, mask = sampler.pad_prompts([[3, 1]], least=8)
    state = jax.eval_shape(lambda: sampler.start(PARAMS, CFG, ids, mask, capacity=16))
    for knobs, named in (
        ({"max_new": 0}, "max_new=0: must be at least 1"),
        ({"temperature": -1}, "temperature=-1: must be >= 0"),
        ({"top_k": -1}, "top_k=-1: must be >= 0"),
        ({"top_p": 0.0}, r"top_p=0.0: must be in \(0, 1\]"),
        ({"top_p": float("nan")}, "top_p=nan"),
        ({"stop_ids": (3, -1)}, r"stop_ids=\(3, -1\)"),
        ({"pad_id": -1}, "pad_id=-1"),
    ):
        with pytest.raises(ValueError, match=named):
            sampler.Sampling(**{"max_new": 2, **knobs})
    for knobs, carry, named in (
        ({"max_new": 17}, None, "max_new=17: must be 1 to 16"),
        ({"top_k": 8}, None, "top_k=8: must be 0 to 7"),
        ({}, 1, "carry: given without"),
    ):
        sampling = sampler.Sampling(**{"max_new": 2, **knobs})
        with pytest.raises(ValueError, match=named):
            jax.eval_shape(
                lambda s, n=sampling, c=carry: sampler.sample(PARAMS, CFG, s, KEY, n, carry=c),
                state,
            )
    with pytest.raises(ValueError, match="capacity=4"):
        sampler.start(PARAMS, CFG, ids, mask, capacity=4)
    for options, named in (
        ({"beams": 8}, "beams=8: must be 1 to 7"),
        ({"max_new": 0}, "max_new=0"),
        ({"trie": np.zeros((2, 3), np.int32)}, "trie has shape"),
    ):
        with pytest.raises(ValueError, match=named):
            beam.beam_search(PARAMS, CFG, ids, mask, **{"beams": 2, "max_new": 2, **options})
