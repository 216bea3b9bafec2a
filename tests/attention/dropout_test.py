# SPDX-License-Identifier: Apache-2.0
"""Masks cut from a bank of random bytes: their share, their independence, and what they do to a
gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from attention import dropout
from attention.transformer import Encoder
from attention.transformer_config import TransformerConfig

SHAPE = (16, 64, 64)
CUT = 4096  # elements of a small mask


@pytest.mark.parametrize(("rate", "dropped"), [(0.3, 77), (0.05, 13), (0.5, 128), (0.999, 255)])
def test_share_and_mean(rate: float, dropped: int) -> None:
    """The rate in steps of 1/256; five standard deviations of a binomial share."""
    share = dropped / 256
    for shape in (SHAPE, (2, dropout.LONGEST)):  # cut from the bank, and drawn
        mask = dropout.keep_mask(jax.random.key(1), rate, shape)
        room = 5 * np.sqrt(share * (1 - share) / mask.size)
        assert abs(1 - mask.mean() - share) < room
        out = dropout.drop(jax.random.key(1), jnp.ones(shape), rate)
        scale = 256 / (256 - dropped)
        np.testing.assert_allclose(np.unique(out), [0, scale], rtol=1e-6)
        assert abs(out.mean() - 1) < scale * room


def test_elements_of_a_mask_have_bytes_of_their_own() -> None:
    """A mask is a window of the bank: its bytes stand there side by side, each once."""
    window = np.asarray(dropout.keep_mask(jax.random.key(3), 0.5, (CUT,)))
    bank = dropout._bank() >= 128
    starts = np.flatnonzero(bank[: -CUT + 1] == window[0])
    for offset in range(1, 64):  # 64 bits name one place in 2^22
        starts = starts[bank[starts + offset] == window[offset]]
    assert len(starts) == 1
    np.testing.assert_array_equal(bank[starts[0] : starts[0] + CUT], window)


def test_masks_of_two_steps_are_independent() -> None:
    """Correlation over 1,000 pairs; windows that overlap are shifted against each other."""
    keys = jax.random.split(jax.random.key(5), 2000)
    masks = jax.vmap(lambda key: dropout.keep_mask(key, 0.3, (CUT,)))(keys)
    centered = np.asarray(masks, np.float32) - np.float32(1 - 77 / 256)
    products = (centered[::2] * centered[1::2]).mean(axis=1) / centered.var()
    assert np.abs(products).mean() < 0.05
    assert np.abs(products.mean()) < 5 / np.sqrt(1000 * CUT)


def test_the_gradient_has_the_mask_of_the_forward_pass() -> None:
    key = jax.random.key(7)
    out = dropout.drop(key, jnp.ones(SHAPE), 0.3)
    gradient = jax.grad(lambda x: dropout.drop(key, x, 0.3).sum())(jnp.full(SHAPE, 2.0))
    np.testing.assert_array_equal(gradient, out)


def test_a_mask_may_be_shared_along_an_axis() -> None:
    out = dropout.drop(jax.random.key(9), jnp.ones((8, 5, 3)), 0.5, (8, 5, 1))
    np.testing.assert_array_equal(out, jnp.broadcast_to(out[:, :, :1], out.shape))
    assert 0 < (out == 0).mean() < 1


def test_eight_devices_drop_what_one_drops() -> None:
    key = jax.random.key(11)
    x = jnp.arange(8.0 * 6 * 4).reshape(8, 6, 4) + 1
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    apply = jax.jit(lambda key, x: dropout.drop(key, x, 0.3))
    np.testing.assert_array_equal(apply(key, sharded), apply(key, x))


def test_module_drops_only_when_asked_and_refuses_a_rate_of_one() -> None:
    x = jnp.ones((4, 100))
    layer = dropout.Dropout(0.5, deterministic=False)
    rngs = {"dropout": jax.random.key(0)}
    assert (layer.apply({}, x, rngs=rngs) == 0).any()
    np.testing.assert_array_equal(dropout.Dropout(0.5).apply({}, x), x)
    np.testing.assert_array_equal(dropout.Dropout(0.0, deterministic=False).apply({}, x), x)
    with pytest.raises(ValueError, match=r"rate=1\.0: must be in \[0, 1\)"):
        dropout.Dropout(1.0, deterministic=False).apply({}, x, rngs=rngs)


def test_sites_and_initial_sizes_of_a_transformer() -> None:
    """Residual sites alone: with all sublayers silent the embedding is dropped once, and nothing
    after the last norm; the last maps of sublayers start smaller by 1 / sqrt(2 layers)."""
    sizes = {"width": 32, "heads": 2, "head_dim": 16, "mlp_width": 64, "layers": 2}
    x = jnp.ones((2, 8, 32))
    rngs = {"dropout": jax.random.key(1)}
    zeros = {}
    for sites in ("all", "residual"):
        cfg = TransformerConfig(**sizes, position="none", dropout=0.5, dropout_sites=sites)
        params = Encoder(cfg).init(jax.random.key(0), x)["params"]
        silent = jax.tree_util.tree_map_with_path(
            lambda path, leaf: 0 * leaf if path[-1].key == "kernel" else leaf, params
        )
        out = Encoder(cfg).apply({"params": silent}, x, deterministic=False, rngs=rngs)
        zeros[sites] = float((out == 0).mean())
    assert abs(zeros["residual"] - 0.5) < 0.12 and abs(zeros["all"] - 0.75) < 0.12
    wide = {**sizes, "width": 256, "mlp_width": 512, "position": "none"}
    deviations = {}
    for shrink in (False, True):
        cfg = TransformerConfig(**wide, shrink_residual=shrink)
        blocks = Encoder(cfg).init(jax.random.key(0), jnp.ones((1, 2, 256)))["params"]["blocks"]
        deviations[shrink] = [
            float(blocks["attn"]["o"]["kernel"].std()), float(blocks["mlp"]["down"]["kernel"].std())
        ]  # fmt: skip
    np.testing.assert_allclose(deviations[False], [32**-0.5, 512**-0.5], rtol=0.02)
    np.testing.assert_allclose(deviations[True], np.array(deviations[False]) / 2, rtol=1e-5)
