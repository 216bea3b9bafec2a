# SPDX-License-Identifier: Apache-2.0
"""SID-MLP++: the encoder of MLPs by plain loops, in both forms; what stage 1 and stage 2 train."""

import dataclasses
import itertools
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs.rec import sid_mlp_pp as config
from rec.models import sid_mlp
from rec.models.sid_mlp import SidMlp
from rec.models.sid_mlp_pp import Mixer
from rec.models.student_config import MixerConfig
from rec.models.tiger import Tiger
from tests.rec.sid_mlp_test import (
    ROWS,
    SIZES,
    TARGET,
    TEACHERS,
    TINY,
    affine,
    count,
    gelu,
    histories,
    norm,
)
from tests.tiers import deep

SMALL = MixerConfig(layers=2, width=12, dropout=0.0, positions=32, updates=1, form="grouped")
PAPER = dataclasses.replace(config.MIXER, layers=4, width=2048)
D = 16


def mixer(**changes: Any) -> Mixer:
    """Over a user token and items of three digits with a separator: 1 + 4 * 4 tokens."""
    return Mixer(dataclasses.replace(SMALL, **changes), 3, True, True)


@cache
def made() -> Any:
    draw = np.random.default_rng(0)
    key = jax.eval_shape(lambda: jax.random.key(0))
    tokens, ids = inputs()
    shapes = jax.eval_shape(mixer().init, key, tokens, ids)["params"]

    def drawn(path: Any, leaf: Any) -> jax.Array:
        middle = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(middle + 0.3 * draw.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def inputs() -> tuple[jax.Array, jax.Array]:
    """Tokens [3, 17, D] and ids [3, 17] of histories of 4, 2 and 0 items behind a user token."""
    tokens = np.random.default_rng(1).normal(size=(3, 17, D)).astype(np.float32)
    ids = np.arange(17)[None] < 1 + 4 * np.array([[4], [2], [0]])
    return jnp.asarray(tokens), jnp.asarray(ids, jnp.int32)


@cache
def states(form: str) -> np.ndarray:
    params = made()
    apply = jax.jit(lambda *x: mixer(form=form).apply({"params": params}, *x))
    return np.asarray(apply(*inputs()))


def by_loops() -> np.ndarray:
    """Token by token in float64: user token and separators take the last MLP."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), made())
    tokens, ids = (np.asarray(x) for x in inputs())
    x = tokens + p["positions"][:17]
    for layer, row in itertools.product(range(SMALL.layers), range(3)):
        mean = x[row][ids[row] > 0].mean(axis=0)
        added = np.zeros_like(x[row])
        for token in range(17):
            place = 2 if token == 0 else min((token - 1) % 4, 2)
            mlp = p[f"layer_{layer}"][f"mlp_{place}"]
            hidden = affine(np.concatenate([x[row, token], mean]), mlp["up"])
            added[token] = affine(gelu(norm(hidden, mlp["norm"])), mlp["down"])
        x[row] += added
    return np.array([[norm(token, p["final_norm"]) for token in row] for row in x])


@pytest.mark.parametrize("form", ["grouped", deep("masked")])
def test_states_are_those_of_plain_loops(form: str) -> None:
    np.testing.assert_allclose(states(form), by_loops(), atol=2e-5)


def test_each_token_in_its_group_is_all_of_them_masked() -> None:
    np.testing.assert_allclose(states("grouped"), states("masked"), atol=1e-5)
    assert np.std(states("grouped")) > 0.5


def test_what_a_state_depends_on() -> None:
    """Pads have no influence; without positions, items in another order give the same states in
    that order, and digits in another order do not."""
    params = {**made(), "positions": jnp.zeros_like(made()["positions"])}
    tokens, ids = inputs()
    apply = jax.jit(lambda tokens, ids: mixer().apply({"params": params}, tokens, ids))
    base = np.asarray(apply(tokens, ids))
    junk = jnp.where((ids > 0)[:, :, None], tokens, 7.0)
    valid = np.asarray(ids) > 0
    np.testing.assert_array_equal(np.asarray(apply(junk, ids))[valid], base[valid])
    items = np.arange(1, 17).reshape(4, 4)
    blocks = np.concatenate([[0], items[[2, 0, 3, 1]].ravel()])
    moved = np.asarray(apply(tokens[:1, blocks], ids[:1]))
    np.testing.assert_allclose(moved[0], base[0, blocks], atol=1e-5)
    digits = np.concatenate([[0], items[:, [1, 0, 2, 3]].ravel()])
    swapped = np.asarray(apply(tokens[:1, digits], ids[:1]))
    assert np.abs(swapped[0] - base[0, digits]).max() > 0.1


def test_size_of_the_paper() -> None:
    """12.7M parameters: four layers of four MLPs of 2,048 units on twice the width."""
    tokens = jax.ShapeDtypeStruct((1, 80, 128), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 80), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(Mixer(PAPER, 4, False, False).init, key, tokens, ids)
    mlp = 2 * 128 * 2048 + 2048 + 2 * 2048 + 2048 * 128 + 128
    assert count(shapes) == 4 * 4 * mlp + 256 * 128 + 2 * 128 == 12_716_288


@pytest.mark.deep
def test_grouped_tokens_cost_a_third_of_masked_ones() -> None:
    tokens = jax.ShapeDtypeStruct((4, 80, 128), jnp.float32)
    ids = jax.ShapeDtypeStruct((4, 80), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    flops = {}
    for form in ("grouped", "masked"):
        model = Mixer(dataclasses.replace(PAPER, form=form), 4, False, False)
        params = jax.eval_shape(model.init, key, tokens, ids)
        counted: Any = jax.jit(model.apply).lower(params, tokens, ids).compile().cost_analysis()
        counted = counted[0] if isinstance(counted, list) else counted
        flops[form] = float(counted["flops"])
    print(f"grouped / masked: {flops['grouped'] / flops['masked']:.3f}")
    assert flops["grouped"] <= 0.35 * flops["masked"]


# ---------------------------------------------------------------------------------- as a student's


@cache
def gradients(stage: int) -> Any:
    """((loss, parts), gradients) of a stage."""
    teacher = Tiger(TEACHERS["encoder_decoder"], SIZES)
    model = SidMlp(TINY, teacher, Mixer(dataclasses.replace(SMALL, layers=1), 3, True, True))
    history, mask, users = histories(ROWS)
    batch = {"history": history, "mask": mask, "users": users, "target": TARGET}
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(model.init, key, history, mask, users, TARGET)["params"]
    whole = jax.eval_shape(teacher.init, key, history, mask, users, TARGET)["params"]
    draw = np.random.default_rng(0)
    normal = lambda leaf: jnp.asarray(0.3 * draw.normal(size=leaf.shape), jnp.float32)
    params = jax.tree.map(normal, {**shapes, "teacher": whole})
    imitate = lambda params: (sid_mlp.imitation_loss(model, params, batch), {})
    distill = lambda params: sid_mlp.loss(model, params, batch)
    loss = imitate if stage == 1 else distill
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def moved(tree: Any) -> set[str]:
    """Subtrees with a gradient that is not 0."""
    size = lambda part: max(np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(part))
    return {name for name, part in tree.items() if size(part) > 0}


def test_stage_2_trains_read_out_and_heads_alone() -> None:
    (_, parts), grads = gradients(2)
    assert moved(grads) == {"read_out", "heads_0", "heads_1", "heads_2"}
    assert float(parts["states_error"]) > 0.1


@pytest.mark.deep
def test_stage_1_trains_the_encoder_alone() -> None:
    """Its loss is the distance that stage 2 tells of."""
    (error, _), grads = gradients(1)
    assert moved(grads) == {"reader"}
    (_, parts), _ = gradients(2)
    assert float(parts["states_error"]) == pytest.approx(float(error), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers=0: must be at least 1"),
        ({"updates": 0}, "updates=0: must be at least 1"),
        ({"form": "sparse"}, "form='sparse': must be one of"),
        ({"dropout": -0.1}, r"dropout=-0.1: must be in \[0, 1\)"),
    ],
)
def test_configs_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_longer_histories_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="positions=8: a history has 17 tokens"):
        mixer(positions=8).init(jax.random.key(0), *inputs())
