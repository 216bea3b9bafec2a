# SPDX-License-Identifier: Apache-2.0
"""Checksums of arrays that do not depend on how they are laid out over devices.

    digest(x) = sum_i (2 i + 1) word_i  mod 2^32        word_i: the bits of element i

Any change within one word is found for certain, any other with probability 1 - 2^-32. Integer
sums have no order, so a state saved on one mesh is verified on any other, and in NumPy.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}  # by bytes of an element


def _on_device(leaf: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if jnp.iscomplexobj(leaf):
        leaf = jnp.stack([leaf.real, leaf.imag], -1)
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(leaf, WORDS[leaf.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for dim in reversed(range(words.ndim)):  # no reshape: a sharded array stays where it is
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim)
        index = index + iota * np.uint32(stride % 2**32)
        stride = stride * words.shape[dim]
    return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)


@jax.jit
def _all_on_device(leaves: list[Any]) -> jax.Array:
    return jnp.stack([_on_device(leaf) for leaf in leaves])


def _on_host(leaf: Any) -> int:
    array = np.ascontiguousarray(leaf).reshape(-1)
    size = 4 if np.iscomplexobj(array) else array.dtype.itemsize
    words = array.view(WORDS[size]).astype(np.uint32)
    weights = 2 * np.arange(words.size, dtype=np.uint32) + np.uint32(1)
    return int(np.sum(words * weights, dtype=np.uint32))


def of_arrays(leaves: Mapping[str, Any]) -> dict[str, int]:
    """{path: checksum} of device arrays (all at once, where they are) or of NumPy arrays."""
    if leaves and all(isinstance(leaf, jax.Array) for leaf in leaves.values()):
        found = np.asarray(jax.device_get(_all_on_device(list(leaves.values()))))
        return {path: int(value) for path, value in zip(leaves, found, strict=True)}
    return {path: _on_host(leaf) for path, leaf in leaves.items()}
