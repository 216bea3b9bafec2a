# SPDX-License-Identifier: Apache-2.0
"""New tokens for a trained model, and training of chosen rows only.

A frozen row must not move at all: masking its gradient alone is not enough, for AdamW decays every
weight it is given. `only` therefore masks what goes into an optimizer and what comes out of it.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attention.lm.config import LMConfig
from attention.lm.model import Params

INITS = ("vocab_mean", "vocab_mean_noise", "normal", "rows")
NOISE_VARIANCE = 1e-9  # of the old rows' variance per column


def extend_vocab(
    params: Params,
    cfg: LMConfig,
    num_new: int,
    init: str = "vocab_mean",
    *,
    key: jax.Array | None = None,
    rows: jax.Array | np.ndarray | None = None,
) -> tuple[Params, LMConfig]:
    """Params and config with num_new rows after the old ones, in the embedding and an untied head.

    Args:
        init: "vocab_mean": mean of the old rows; "vocab_mean_noise": with normal noise of 1e-9
            times their variance per column, so that new rows differ; "normal": cfg.init_std;
            "rows": as given.
        key: for the two random inits.
        rows: [num_new, D] for "rows".

    Raises:
        ValueError: num_new < 1, an unknown init, or key or rows missing or not wanted.
    """
    if num_new < 1:
        raise ValueError(f"num_new={num_new}: must be at least 1")
    if init not in INITS:
        raise ValueError(f"init={init!r}: must be one of {', '.join(INITS)}")
    if (key is not None) != (init in ("vocab_mean_noise", "normal")):
        raise ValueError(f"key: {'not used' if key is not None else 'needed'} by init={init!r}")
    if (rows is not None) != (init == "rows"):
        raise ValueError(f"rows: {'not used' if rows is not None else 'needed'} by init={init!r}")
    if rows is not None and rows.shape != (num_new, cfg.width):
        raise ValueError(f"rows has shape {rows.shape}: must be [{num_new}, {cfg.width}]")
    names = ("embed",) if cfg.tied else ("embed", "head")
    out = dict(params)
    for number, name in enumerate(names):
        old = params[name]
        wide = old.astype(jnp.float32)
        new = jnp.broadcast_to(wide.mean(axis=0), (num_new, cfg.width))
        if key is not None:
            noise = jax.random.normal(jax.random.fold_in(key, number), new.shape)
            std = jnp.sqrt(NOISE_VARIANCE * wide.var(axis=0))[None]
            new = new + noise * std if init == "vocab_mean_noise" else cfg.init_std * noise
        if rows is not None:
            new = jnp.asarray(rows)
        out[name] = jnp.concatenate([old, new.astype(old.dtype)])
    fields = {name: getattr(cfg, name) for name in cfg.__dataclass_fields__}
    return out, LMConfig(**{**fields, "vocab_size": cfg.vocab_size + num_new})


def train_mask(params: Any, rules: Sequence[tuple[str, bool | Sequence[int] | np.ndarray]]) -> Any:
    """Tree of bool masks: which entries of every leaf are trained.

    Args:
        rules: (regex over the whole "/"-joined path, what is trained): True, False, or the rows
            (first axis) of the leaf; the first match wins, leaves without a match are frozen.

    Raises:
        ValueError: a rule matches no leaf, or a row is outside its leaf.
    """
    used = set()

    def mask_of(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for number, (regex, chosen) in enumerate(rules):
            if not re.fullmatch(regex, name):
                continue
            used.add(number)
            if isinstance(chosen, bool):
                return jnp.full((1,) * leaf.ndim, chosen)
            index = np.asarray(chosen, np.int64)
            if index.size and (index.min() < 0 or index.max() >= leaf.shape[0]):
                raise ValueError(f"rules: {name} has rows 0 to {leaf.shape[0] - 1}")
            rows = np.zeros((leaf.shape[0],) + (1,) * (leaf.ndim - 1), bool)
            rows[index] = True
            return jnp.asarray(rows)
        return jnp.full((1,) * leaf.ndim, False)

    mask = jax.tree_util.tree_map_with_path(mask_of, params)
    unused = [regex for number, (regex, _) in enumerate(rules) if number not in used]
    if unused:
        raise ValueError(f"rules: {unused} match no leaf that an earlier rule leaves")
    return mask


def only(optimizer: optax.GradientTransformation, mask: Any) -> optax.GradientTransformation:
    """Restricts an optimizer to masked entries; all others stay bit for bit, weight decay included.

    Gradients outside the mask neither reach moments nor the norm that clipping sees.

    Args:
        mask: of `train_mask`: bool leaves that broadcast to their parameters.
    """

    def keep_masked(tree: Any) -> Any:
        return jax.tree.map(lambda m, x: jnp.where(m, x, jnp.zeros((), x.dtype)), mask, tree)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(keep_masked(updates), state, params)
        return keep_masked(updates), state  # once more: weight decay moves what has no gradient

    return optax.GradientTransformation(optimizer.init, update)
