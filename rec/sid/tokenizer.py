# SPDX-License-Identifier: Apache-2.0
"""One interface for every way to make semantic IDs, and the finished SIDs of a catalogue."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec.sid import conflict, fixed, opq, residual, rkmeans, rqvae, rvq
from rec.sid.config import SIDConfig

CHUNK = 100  # updates of one compiled scan in `fit`


class Tokenizer(NamedTuple):
    """A method as pure functions. N items, D features, L levels.

    init: (key, x [N, D]) -> state, a dict {"params", "counts", "step", maybe "opt_state"}.
    update: (state, x [N, D], key) -> (state, float32 scalars); jittable, draws its own rows with
        the key and the step. None where init has done everything.
    encode: (params, x [N, D]) -> int32 [N, L].
    decode: (params, codes int32 [N, K], K <= L) -> float32 [N, D] from the first K digits. None
        where nothing can be reconstructed.
    steps: updates in all.
    """

    init: Callable[[jax.Array, jax.Array], dict]
    update: Callable[[dict, jax.Array, jax.Array], tuple[dict, dict]] | None
    encode: Callable[[dict, jax.Array], jax.Array]
    decode: Callable[[dict, jax.Array], jax.Array] | None
    steps: int


def make(cfg: SIDConfig) -> Tokenizer:
    """The tokenizer of a config."""
    part = functools.partial
    if cfg.method in ("rkmeans", "rvq"):
        layered: Any = rkmeans if cfg.method == "rkmeans" else rvq
        return Tokenizer(
            init=part(layered.init, cfg=cfg),
            update=part(layered.update, cfg=cfg),
            encode=part(residual.encode, is_normalized=cfg.normalise),
            decode=residual.decode,
            steps=cfg.steps,
        )
    if cfg.method == "rqvae":
        return Tokenizer(
            init=part(rqvae.init, cfg=cfg),
            update=part(rqvae.update, cfg=cfg),
            encode=part(rqvae.encode, cfg=cfg),
            decode=rqvae.decode,
            steps=cfg.steps,
        )
    inits = {"opq": opq.init, "random": fixed.init_random, "lsh": fixed.init_lsh}
    encodes = {
        "opq": opq.encode,
        "random": part(fixed.encode_random, cfg=cfg),
        "lsh": fixed.encode_lsh,
    }

    def init(key: jax.Array, x: jax.Array) -> dict:
        return {
            "params": inits[cfg.method](key, x, cfg),
            "counts": jnp.zeros((cfg.levels, cfg.codes), jnp.float32),
            "step": jnp.zeros((), jnp.int32),
        }

    decode = opq.decode if cfg.method == "opq" else None
    return Tokenizer(init, None, encodes[cfg.method], decode, steps=0)


@functools.lru_cache(maxsize=32)
def _compiled(cfg: SIDConfig) -> tuple[Callable, Callable, Callable, Callable]:
    """(init, chunk of n updates, encode, decodings of all prefixes) of a config."""
    tokenizer = make(cfg)

    @functools.partial(jax.jit, static_argnums=3)
    def chunk(state: dict, x: jax.Array, key: jax.Array, n: int) -> tuple[dict, dict]:
        assert tokenizer.update is not None
        advance = tokenizer.update
        return jax.lax.scan(lambda s, _: advance(s, x, key), state, None, length=n)

    @jax.jit
    def prefixes(params: dict, codes: jax.Array) -> jax.Array:
        assert tokenizer.decode is not None
        digits = range(1, cfg.levels + 1)
        return jnp.stack([tokenizer.decode(params, codes[:, :count]) for count in digits])

    return jax.jit(tokenizer.init), chunk, jax.jit(tokenizer.encode), prefixes


def check_features(x: np.ndarray | jax.Array, cfg: SIDConfig) -> None:
    """Raises:
    ValueError: x is not [N, D] with N >= 1, or not finite, or source_widths do not add up to D.
    """
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"features must be [items, width], not {tuple(x.shape)}")
    finite = np.isfinite(np.asarray(x)).all(axis=1)
    if not finite.all():
        raise ValueError(f"features of item {int(np.argmin(finite))} are not finite")
    rqvae.sources(cfg, x.shape[1])


def fit(key: jax.Array, x: np.ndarray | jax.Array, cfg: SIDConfig) -> dict:
    """Parameters after `init` and all updates on features x [N, D].

    Raises:
        ValueError: see `check_features`.
    """
    check_features(x, cfg)
    x = jnp.asarray(x, jnp.float32)
    init, chunk, _, _ = _compiled(cfg)
    init_key, key = jax.random.split(key)
    state = init(init_key, x)
    steps = make(cfg).steps
    for start in range(0, steps, CHUNK):
        state, _ = chunk(state, x, key, min(CHUNK, steps - start))
    return state["params"]


def encode(params: dict, x: np.ndarray | jax.Array, cfg: SIDConfig) -> np.ndarray:
    """Greedy codes on the host: [N, D] -> int32 [N, L]."""
    return np.asarray(_compiled(cfg)[2](params, jnp.asarray(x, jnp.float32)))


def assign(params: dict, x: np.ndarray | jax.Array, cfg: SIDConfig) -> np.ndarray:
    """Finished SIDs, int32 [N, len(cfg.sizes)], conflicts settled as cfg.conflict says.

    Raises:
        ValueError: see `conflict.add_digit` and `conflict.psid`.
    """
    codes = encode(params, x, cfg)
    if cfg.conflict == "digit":
        return conflict.add_digit(codes, cfg.digit_limit)
    if cfg.conflict == "none":
        return codes
    start = jnp.asarray(x, jnp.float32)
    start = rqvae.encoded(params, start) if cfg.method == "rqvae" else start
    is_normalized = cfg.normalise and cfg.method != "rqvae"
    how = cfg.conflict.removeprefix("psid_")
    return conflict.psid(np.asarray(start), np.asarray(params["codebook"]), how, is_normalized).sids


def reconstruct(params: dict, codes: np.ndarray | jax.Array, cfg: SIDConfig) -> np.ndarray | None:
    """float32 [L, N, D]: features decoded from the first 1 .. L digits; None without a decoder."""
    if make(cfg).decode is None:
        return None
    return np.asarray(_compiled(cfg)[3](params, jnp.asarray(codes)))
