# SPDX-License-Identifier: Apache-2.0
"""Another machine, imitated: initial parameters and inputs times (1 + 1e-7 n), n normal.

Compilers and processors differ in the last bits of a float32, and training amplifies them. With
$BANYAN_JITTER=DRAW (1, 2, ...) every float that a test trains from differs in those bits; without
it everything here is the identity. A test that passes under one draw and fails under another hangs
on the machine. tests/jitter_test.py runs all tests marked `trains` under ten draws.

`at_most`, `at_least` and `close` assert, and with $BANYAN_MARGINS=FILE append what they saw and
what they allowed to that file, a line of JSON each.
"""

import functools
import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DRAW = int(os.environ.get("BANYAN_JITTER", "0"))
SCALE = 1e-7  # neighboring float32 differ by 6e-8 to 1.2e-7 of themselves
LARGEST = 10**7  # entries of a leaf; what is larger is shaped in a test, never trained
Values = float | np.ndarray | jax.Array | Sequence[float]

_starting: list[bool] = []  # not empty: the state in the making is jittered when it is finished


# ------------------------------------------------------------------------------------ the jitter


def jittered(tree: Any) -> Any:
    """Multiplies every float32 or float64 leaf by 1 + 1e-7 n; n depends on draw, path and shape."""
    if not DRAW:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _jitter_leaf(jax.tree_util.keystr(path), leaf), tree
    )


def _factors(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng([DRAW, zlib.crc32(name.encode())])
    return 1 + SCALE * rng.normal(size=shape)


def _jitter_leaf(name: str, leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray | jax.Array) or leaf.dtype not in (np.float32, np.float64):
        return leaf
    if leaf.size > LARGEST:
        return leaf
    factors = _factors(name, leaf.shape)
    if isinstance(leaf, np.ndarray):
        return np.asarray(leaf * factors, leaf.dtype)  # an array also where it has no dimension
    if isinstance(leaf, jax.core.Tracer):
        return leaf * jnp.asarray(factors, leaf.dtype)
    # Shard by shard and on the host: nothing is compiled, and other processes keep their shards.
    shards = [
        jax.device_put((np.asarray(s.data) * factors[s.index]).astype(leaf.dtype), s.device)
        for s in leaf.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)


def install() -> None:
    """Makes everything that draws initial parameters jitter them, where a draw is set."""
    if not DRAW:
        return
    from flax import linen as nn

    from attention.lm import lora, model
    from experiments.runner import assemble
    from rec.sid import tokenizer

    nn.Module.param = _jitter_flax(nn.Module.param)  # type: ignore[method-assign]
    model.init = _jitter_result(model.init)
    lora.init = _jitter_result(lora.init)
    # Before `loop` and the tests import it by name.
    assemble.initial_state = _jitter_state(assemble.initial_state)
    tokenizer._compiled = _jitter_fits(tokenizer._compiled)


def _jitter_flax(param: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `flax.linen.Module.param`: what an initializer returns is jittered by its path."""

    @functools.wraps(param)
    def wrapped(self: Any, name: str, init_fn: Callable[..., Any], *args: Any, **options: Any):
        path = "/".join((*self.path, name))

        def initialize(*init_args: Any, **init_options: Any) -> Any:
            value = init_fn(*init_args, **init_options)
            return value if _starting else jittered({path: value})[path]

        return param(self, name, initialize, *args, **options)

    return wrapped


def _jitter_result(init: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(init)
    def wrapped(*args: Any, **options: Any) -> Any:
        value = init(*args, **options)
        return value if _starting else jittered(value)

    return wrapped


def _jitter_state(initial_state: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `assemble.initial_state`: parameters are jittered outside the compiled program, so
    that the draws share it; those of another run are left as they are."""

    @functools.wraps(initial_state)
    def wrapped(asm: Any, *args: Any, **options: Any) -> Any:
        _starting.append(True)
        try:
            state = initial_state(asm, *args, **options)
        finally:
            _starting.pop()
        if asm.config.init_from:
            return state
        return {**state, "params": jittered(state["params"])}

    return wrapped


def _jitter_fits(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `tokenizer._compiled`: features and the state before the first update."""

    @functools.wraps(compiled)
    def wrapped(cfg: Any) -> Any:
        init, *rest = compiled(cfg)
        return (lambda key, x: jittered(init(key, jittered(x))), *rest)

    return wrapped


# ----------------------------------------------------------------------------------- the margins


def at_most(figure: str, values: Values, bound: float) -> None:
    """Asserts that a figure, of each seed where there are several, is at most `bound`."""
    _record(figure, values, bound, "<=")
    assert np.all(np.asarray(values) <= bound), f"{figure}: {values} is above {bound}"


def at_least(figure: str, values: Values, bound: float) -> None:
    """Asserts that a figure, of each seed where there are several, is at least `bound`."""
    _record(figure, values, bound, ">=")
    assert np.all(np.asarray(values) >= bound), f"{figure}: {values} is below {bound}"


def close(figure: str, got: Any, want: Any, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Asserts that trees of arrays agree, by the largest gap as a share of what is allowed."""
    shares = jax.tree.map(lambda a, b: _share(a, b, rtol, atol), got, want)
    at_most(figure, max(jax.tree.leaves(shares)), 1.0)


def _share(got: Any, want: Any, rtol: float, atol: float) -> float:
    got = np.asarray(got, np.float64)
    want = np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{got.shape} is not {want.shape}"
    gap = np.abs(got - want)
    shares = np.divide(gap, atol + rtol * np.abs(want), out=np.zeros_like(gap), where=gap != 0)
    return float(shares.max(initial=0.0))


def _record(figure: str, values: Values, bound: float, side: str) -> None:
    path = os.environ.get("BANYAN_MARGINS")
    if not path:
        return
    line = {
        "test": os.environ["PYTEST_CURRENT_TEST"].split(" ")[0],
        "figure": figure,
        "values": np.asarray(values, np.float64).ravel().tolist(),
        "side": side,
        "bound": float(bound),
    }
    with Path(path).open("a") as file:
        file.write(json.dumps(line) + "\n")
