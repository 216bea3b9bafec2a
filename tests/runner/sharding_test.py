# SPDX-License-Identifier: Apache-2.0
"""Meshes, rules and the feed: who gets which part of what."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.runner import sharding
from experiments.runner.errors import UserError


def mesh_of(rows: int, cols: int) -> Mesh:
    axes = (jax.sharding.AxisType.Auto,) * 2
    grid = np.array(jax.devices()[: rows * cols]).reshape(rows, cols)
    return Mesh(grid, sharding.AXES, axis_types=axes)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((-1, 1), (8, 1)), ((-1, 2), (4, 2)), ((2, -1), (2, 4)), ((1, 8), (1, 8)), ((8, 1), (8, 1))],
)
def test_make_mesh(shape: tuple[int, int], sizes: tuple[int, int]) -> None:
    mesh = sharding.make_mesh(shape)
    assert tuple(mesh.shape.values()) == sizes and mesh.axis_names == ("data", "model")
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize(
    "shape", [(3, 1), (-1, 3), (8,), (2, 2, 2), (16, 1), (-1, 0), (-1, -1), (-2, -4)]
)
def test_a_mesh_that_does_not_fit_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as found:
        sharding.make_mesh(shape)
    assert f"config.mesh={shape}" in str(found.value) and "8 device(s)" in str(found.value)
    assert "(-1, 1)" in str(found.value)


def test_first_full_match_wins_and_defaults() -> None:
    tree = {
        "params": {"a": {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(4)}},
        "n": jnp.zeros(()),
    }
    rules = (
        (r"params/a/kernel", P("model")),
        (r".*kernel", P(None, "data")),
        (r"kernel", P("data")),  # no full match: never applies
        (r".*/bias", P("model", "data")),  # longer than the leaf: replicated
    )
    found = sharding.shardings(mesh_of(2, 2), rules, tree)
    assert found["params"]["a"]["kernel"].spec == P("model")
    assert found["params"]["a"]["bias"].spec == P() and found["n"].spec == P()
    assert sharding.shardings(mesh_of(2, 2), rules[1:], tree)["params"]["a"]["kernel"].spec == P(
        None, "data"
    )
    assert sharding.shardings(mesh_of(2, 2), rules[2:], tree)["params"]["a"]["kernel"].spec == P()
    batch = {"x": jnp.zeros((4, 3)), "table": jnp.zeros((3, 3))}
    found = sharding.shardings(mesh_of(4, 1), ((r"batch/table", P()),), batch, "batch/")
    assert found["x"].spec == P("data") and found["table"].spec == P()


def test_what_does_not_divide_is_named() -> None:
    tree = {"params": {"w": jnp.zeros((6, 8))}}
    rules = ((r".*/w", P("data", "model")),)
    with pytest.raises(UserError, match=r"params/w: dimension 0 of \(6, 8\).*4 devices of.*data"):
        sharding.shardings(mesh_of(4, 2), rules, tree)
    both = ((r".*/w", P(None, ("data", "model"))),)
    assert sharding.shardings(mesh_of(4, 2), both, tree)["params"]["w"].spec == P(
        None, ("data", "model")
    )
    with pytest.raises(UserError, match=r"batch/x: dimension 0 of \(6, 8\).*batch size"):
        sharding.shardings(mesh_of(4, 1), (), {"x": jnp.zeros((6, 8))}, "batch/")
    loose = sharding.shardings(mesh_of(4, 2), rules, tree, exact=False)
    assert loose["params"]["w"].spec == P()


def test_fsdp_takes_the_largest_divisible_dimension_and_moments_follow() -> None:
    params = {
        "wide": jnp.zeros((16, 64)),
        "tall": jnp.zeros((64, 16, 3)),
        "odd": jnp.zeros((66, 16)),  # 66 is larger and does not divide by 4
        "never": jnp.zeros((33, 35)),
        "small": jnp.zeros((8, 4)),
    }
    state = {"params": params, "opt": optax.adam(1.0).init(params), "key": jax.random.key(0)}
    mesh = mesh_of(4, 2)
    rules = sharding.fsdp_rules(state, mesh, min_bytes=1024)
    found = sharding.shardings(mesh, rules, jax.eval_shape(lambda: state))
    want = {"wide": P(None, "data"), "tall": P("data"), "odd": P(None, "data")}
    for name in params:
        spec = want.get(name, P())
        assert found["params"][name].spec == spec, name
        assert found["opt"][0].mu[name].spec == spec and found["opt"][0].nu[name].spec == spec
    assert found["opt"][0].count.spec == P() and found["key"].spec == P()
    assert sharding.fsdp_rules(state, mesh) == ()  # nothing here reaches 4 MiB


def test_feed_sends_an_object_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    place = sharding.Feed._place

    def placed(self: Any, name: str, leaf: Any, rows: Any) -> Any:
        sent.append(name)
        return place(self, name, leaf, rows)

    monkeypatch.setattr(sharding.Feed, "_place", placed)
    mesh = mesh_of(4, 2)
    feed = sharding.Feed(mesh, ((r"batch/table", P()),))
    table, x = np.arange(3.0, dtype=np.float32), np.arange(8, dtype=np.int32).reshape(8, 1)
    first = feed.put({"x": x, "table": table}, None)
    again = feed.put({"x": x.copy(), "table": table}, None)
    assert sent == ["x", "table", "x"]
    assert again["table"] is first["table"] and again["x"] is not first["x"]
    assert first["x"].sharding == NamedSharding(mesh, P("data"))
    assert first["x"].addressable_shards[0].data.shape == (2, 1)
    np.testing.assert_array_equal(first["x"], x)
    feed.put({"x": x, "table": table.copy()}, None)  # equal, but another object
    assert sent[3:] == ["x", "table"]


class Device:
    """A device as `process_rows` sees it."""

    def __init__(self, process_index: int) -> None:
        self.process_index = process_index


def rows_of(monkeypatch: pytest.MonkeyPatch, owners: list[list[int]], num_rows: int) -> list[Any]:
    """`process_rows` on each process of a mesh given by the owner of every device."""
    grid = np.array([[Device(p) for p in row] for row in owners], dtype=object)

    class Stand:
        devices = grid
        shape = {"data": len(owners), "model": len(owners[0])}  # noqa: RUF012

    found = []
    for index in range(1 + max(max(row) for row in owners)):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        found.append(sharding.process_rows.__wrapped__(Stand(), num_rows))  # type: ignore[attr-defined]
    return found


def test_process_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows follow the data axis; processes along the model axis hold the same ones."""
    assert sharding.process_rows(mesh_of(4, 1), 8) == (0, 8)
    assert rows_of(monkeypatch, [[0], [0], [1], [1]], 8) == [(0, 4), (4, 8)]
    assert rows_of(monkeypatch, [[0, 1]], 8) == [(0, 8), (0, 8)]
    assert rows_of(monkeypatch, [[0, 0], [1, 1], [2, 2], [3, 3]], 12)[2] == (6, 9)
    assert rows_of(monkeypatch, [[1], [0]], 4) == [(2, 4), (0, 2)]
    assert rows_of(monkeypatch, [[0], [1], [0]], 6)[0] == (0, 6)  # no block: all of it
    with pytest.raises(UserError, match="a batch of 6 rows is not divisible by 4 devices"):
        sharding.process_rows(mesh_of(4, 1), 6)


def test_arrays_put_elsewhere_do_not_retrace() -> None:
    """With shardings given, arrays that come from a restore run the program already there."""
    mesh = mesh_of(4, 2)
    shard = NamedSharding(mesh, P("data"))
    traces: list[int] = []

    def step(x: Any) -> Any:
        traces.append(1)
        return x + 1

    run = jax.jit(step, in_shardings=shard, out_shardings=shard, donate_argnums=0)
    x = run(jax.jit(lambda: jnp.zeros(8), out_shardings=shard)())
    run(jax.make_array_from_callback((8,), shard, lambda index: np.asarray(x)[index]))
    assert len(traces) == 1
    assert run._cache_size() == 1


def test_rows_of_a_batch_with_scalars_and_other_counts() -> None:
    """A scalar has no rows; leaves that are split must agree in theirs."""
    feed = sharding.Feed(mesh_of(4, 1), ((r"batch/table", P()),))
    batch = {"scale": np.array(2.0, np.float32), "table": np.zeros((3, 2)), "x": np.zeros((8, 2))}
    assert feed.rows(batch) == (0, 8)
    assert feed.rows({"scale": np.array(2.0, np.float32)}) is None
    np.testing.assert_array_equal(feed.put(batch, (0, 8))["scale"], 2.0)
    with pytest.raises(UserError, match=r"differ in rows: .*'x': 8, 'y': 16"):
        feed.rows({**batch, "y": np.zeros(16)})
