# SPDX-License-Identifier: Apache-2.0
"""Training step and forward pass against the same model written plainly in PyTorch, on a CPU.

Models are those of `lm:base`, `sasrec:base` without dropout, and TIGER's sizes as in bench `rec`
(there PyTorch's is T5 of transformers), on random batches of the sizes they train. PyTorch's have
our weights, the same optimizer and its fused AdamW. Before anything is timed
losses must agree to 1e-4, and after three updates to 1e-3. `bare` is a floor without PyTorch: one
jitted step of the matrix products alone, x W for every weight matrix with as many rows as it has in
the model, gradients of both sides, and AdamW; no attention scores, norms, activations, softmax.

Both run in one process with two threads and the allocator's settings of `runner/memory.py`, which
favour either; `forward` is the loss without a gradient. Needs the extra peers_lm.
"""

import dataclasses
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attention.lm import training as lm_training
from experiments.benches import rec as rec_bench
from experiments.configs.attention import lm as lm_config
from experiments.configs.rec import sasrec as sasrec_config
from experiments.runner import settings, sharding
from experiments.runner.bench import Case, Missing
from experiments.systems.attention.language import wiring as language
from rec import training as rec_training
from rec.models import sasrec, tiger

STEPS = 10  # of one repeat
ITEMS = 803  # Beauty's 8-core
MISSING = 'needs the extra peers_lm: pip install -e ".[peers_lm]"'
MODELS = ("lm", "sasrec", "tiger")


class Ours(NamedTuple):
    """One model of ours, and what a peer needs to be the same."""

    name: str
    config: Any  # its dataclass
    optim: Any  # the OptimConfig
    rate: Callable[[int], float]  # learning rate by update
    params: Any
    opt_state: Any
    batch: dict[str, jax.Array]
    loss: Callable[[Any, Any], jax.Array]  # (params, batch) -> scalar
    update: Callable[[Any, Any, Any], tuple[Any, Any, dict]]  # (params, opt_state, batch)
    rows: Callable[[str], int]  # that go through the weight matrix at a path, 0 for a lookup


def make_lm() -> Ours:
    """The character model of lm:base."""
    config = lm_config.get_config("base")
    groups = settings.groups(config)
    cfg = groups["model"]
    optim = groups["optim"]
    state = jax.jit(language.make_init(cfg, optim))(jax.random.key(0))
    shape = (config.data.rows, config.data.context + 1)
    ids = np.random.default_rng(0).integers(0, cfg.vocab_size, shape).astype(np.int32)
    tx = lm_training.optimizer(optim)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0 if optim.warmup else optim.lr, optim.lr, optim.warmup, optim.decay, optim.min_lr
    )
    return Ours(
        "lm",
        cfg,
        optim,
        lambda count: float(np.asarray(schedule(count))),
        state["params"],
        state["opt_state"],
        {"ids": jnp.asarray(ids)},
        lambda params, batch: lm_training.loss(params, cfg, batch["ids"]),
        lambda params, opt, batch: lm_training.update(params, opt, cfg, tx, batch),
        lambda path: 0 if path == "embed" else config.data.rows * config.data.context,
    )


def make_sasrec() -> Ours:
    """The ranker of sasrec:base without dropout, users of 8 to 50 items."""
    groups = settings.groups(sasrec_config.get_config("base"))
    cfg = dataclasses.replace(groups["model"], dropout=0.0)
    rows = groups["augment"].rows
    model = sasrec.SASRec(cfg, ITEMS)
    rng = np.random.default_rng(0)
    T = cfg.max_items
    mask = np.arange(T)[None] < rng.integers(8, T + 1, rows)[:, None]
    history = rng.integers(0, ITEMS, (rows, T)).astype(np.int32) * mask
    targets = rng.integers(0, ITEMS, (rows, T)).astype(np.int32)
    batch = {
        "history": jnp.asarray(history),
        "mask": jnp.asarray(mask),
        "targets": jnp.asarray(targets),
        "weights": jnp.asarray(mask, jnp.float32),
    }
    params: Any = jax.jit(model.init)(jax.random.key(0), history, mask)["params"]
    tx = rec_training.optimizer(groups["optim"])
    key = jax.random.key(1)  # dropout is off and the full softmax draws nothing

    def loss(params: Any, batch: Any) -> jax.Array:
        return sasrec.loss(model, params, batch, key)

    def update(params: Any, opt: Any, batch: Any) -> Any:
        return rec_training.update(lambda p: loss(p, batch), params, opt, tx)

    schedule = rec_training.schedule(groups["optim"])
    return Ours(
        "sasrec",
        cfg,
        groups["optim"],
        lambda count: float(np.asarray(schedule(count))),
        params,
        tx.init(params),
        batch,
        loss,
        update,
        lambda path: 0 if path == "positions" else rows * T,
    )


def make_tiger() -> Ours:
    """The generator of TIGER's sizes in bench `rec`, 32 histories of 20 items."""
    cfg = rec_bench.CONFIG
    optim = rec_bench.OPTIM
    sizes = rec_bench.SIZES
    model = tiger.Tiger(cfg, sizes)
    history, _, users = rec_bench.inputs(rec_bench.ROWS, rec_bench.ITEMS, sizes)
    rng = np.random.default_rng(1)
    target = rng.integers(0, sizes, (rec_bench.ROWS, len(sizes))).astype(np.int32)
    offsets = tiger.level_offsets(sizes)[:-1]
    tokens = (np.asarray(history) + offsets).reshape(rec_bench.ROWS, -1)
    batch = {
        "history": history,
        "mask": jnp.ones(history.shape[:2], bool),
        "users": users,
        "target": jnp.asarray(target),
        # The same for PyTorch, which reads one row of tokens.
        "source_tokens": jnp.asarray(tokens),
        "source_mask": jnp.ones(tokens.shape, jnp.int32),
        "target_tokens": jnp.asarray(target + offsets),
    }
    tx = rec_training.optimizer(optim)
    params = rec_bench.initial(model)

    def update(params: Any, opt: Any, batch: Any) -> Any:
        return rec_training.update(lambda p: tiger.loss(model, p, batch), params, opt, tx)

    def rows_of(path: str) -> int:
        if path == "start" or path.endswith("table"):
            return 0
        reads_history = path.startswith("encoder") or re.search("cross/[kv]", path)
        return tokens.size if reads_history else target.size

    schedule = rec_training.schedule(optim)
    return Ours(
        "tiger",
        cfg,
        optim,
        lambda count: float(np.asarray(schedule(count))),
        params,
        tx.init(params),
        batch,
        lambda params, batch: tiger.loss(model, params, batch),
        update,
        rows_of,
    )


MAKERS: Mapping[str, Callable[[], Ours]] = {
    "lm": make_lm,
    "sasrec": make_sasrec,
    "tiger": make_tiger,
}


def load_torch() -> Any:
    """The module of PyTorch's models; None where torch is not installed."""
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        return None
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    return importlib.import_module("experiments.benches.torch_models")


def make_peer(torch_models: Any, ours: Ours) -> Any:
    """PyTorch's model with the weights of ours, in a trainer."""
    params = jax.device_get(ours.params)
    if ours.name == "lm":
        length = ours.batch["ids"].shape[1] - 1
        model = torch_models.LM(ours.config, params, length)
    elif ours.name == "sasrec":
        model = torch_models.SASRec(ours.config, params)
    else:
        model = torch_models.T5(ours.config, params)
    return torch_models.Trainer(model, ours.optim, ours.rate)


def check_equal(torch_models: Any, ours: Ours) -> None:
    """Raises ValueError unless losses agree before the first and after three updates."""
    peer = make_peer(torch_models, ours)
    update = jax.jit(ours.update)
    batch = torch_models.tensors(ours.batch)
    params = ours.params
    opt_state = ours.opt_state
    for count, close in ((0, 1e-4), (1, 1e-3), (2, 1e-3), (3, 1e-3)):
        params, opt_state, metrics = update(params, opt_state, ours.batch)
        own = float(metrics["loss"])
        theirs = peer.step(batch)
        if not abs(own - theirs) <= close * abs(own):
            raise ValueError(
                f"{ours.name}: loss {own:.6f} here and {theirs:.6f} in PyTorch after {count} "
                "updates: the peer computes something else, the comparison would be void"
            )


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def matrices(ours: Ours) -> list[tuple[int, int, int]]:
    """(rows, in, out) of every product with a weight matrix; stacked leaves are several."""
    out = []
    for path, leaf in sharding.leaf_paths(ours.params).items():
        rows = ours.rows(path)
        is_vector = leaf.ndim == 1 or path.endswith(("scale", "bias"))
        if rows and not is_vector:
            out += [(rows, *leaf.shape[-2:])] * (leaf.shape[0] if leaf.ndim == 3 else 1)
    return out


def bare_step(shapes: Sequence[tuple[int, int, int]]) -> tuple[Any, Any]:
    """(state, jitted state -> (state, loss)) of the products alone: the floor."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    pairs = [jax.random.split(key) for key in keys]
    xs = [
        jax.random.normal(pair[0], (rows, n))
        for pair, (rows, n, _) in zip(pairs, shapes, strict=True)
    ]
    weights = [
        jax.random.normal(pair[1], (n, m)) for pair, (_, n, m) in zip(pairs, shapes, strict=True)
    ]
    tx = optax.adamw(1e-3)

    def loss(operands: Any) -> jax.Array:
        squares = [jnp.mean(jnp.square(x @ w)) for x, w in zip(*operands, strict=True)]
        return jnp.stack(squares).sum()

    def step(state: Any) -> Any:
        xs, weights, opt_state = state
        value, (dxs, grads) = jax.value_and_grad(loss)((xs, weights))
        updates, opt_state = tx.update(grads, opt_state, weights)
        # The gradients of x are kept, or XLA would leave them out.
        return (dxs, optax.apply_updates(weights, updates), opt_state), value

    return (xs, weights, tx.init(weights)), jax.jit(step, donate_argnums=0)


def cases() -> Iterator[Case | Missing]:
    """Every model: ours, PyTorch's, the floor."""
    torch_models = load_torch()
    for name in MODELS:
        yield from _cases_of(MAKERS[name](), torch_models)


def _cases_of(ours: Ours, torch_models: Any) -> Iterator[Case | Missing]:
    columns = {"params": count(ours.params)}
    batch = ours.batch
    if torch_models is not None:
        check_equal(torch_models, ours)
    update = jax.jit(ours.update, donate_argnums=(0, 1))
    loss = jax.jit(ours.loss)
    state = [jax.tree.map(jnp.copy, (ours.params, ours.opt_state))]

    def train(repeat: int) -> None:
        del repeat
        for _ in range(STEPS):
            params, opt_state, metrics = update(*state[0], batch)
            state[0] = (params, opt_state)
        jax.block_until_ready(metrics)

    def forward(repeat: int) -> None:
        del repeat
        for _ in range(STEPS):
            value = loss(ours.params, batch)
        jax.block_until_ready(value)

    bare_start, bare = bare_step(matrices(ours))
    bare_state = [bare_start]

    def floor(repeat: int) -> None:
        del repeat
        for _ in range(STEPS):
            bare_state[0], value = bare(bare_state[0])
        jax.block_until_ready(value)

    yield Case(f"{ours.name}-train", 0, STEPS, train, columns)
    yield Case(f"{ours.name}-forward", 0, STEPS, forward, columns)
    yield Case(f"{ours.name}-bare", 0, STEPS, floor, columns)
    if torch_models is None:
        yield Missing(f"{ours.name}-train-torch", MISSING)
        yield Missing(f"{ours.name}-forward-torch", MISSING)
        return
    yield from _torch_cases(ours, torch_models, columns)


def _torch_cases(ours: Ours, torch_models: Any, columns: Mapping[str, Any]) -> Iterator[Case]:
    import torch  # pyright: ignore[reportMissingImports]

    peer = make_peer(torch_models, ours)
    tensors = torch_models.tensors(ours.batch)

    def train(repeat: int) -> None:
        del repeat
        for _ in range(STEPS):
            peer.step(tensors)

    def forward(repeat: int) -> None:
        del repeat
        with torch.inference_mode():
            for _ in range(STEPS):
                peer.model.loss(tensors).item()

    yield Case(f"{ours.name}-train-torch", 0, STEPS, train, columns)
    yield Case(f"{ours.name}-forward-torch", 0, STEPS, forward, columns)


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Times against each other: below 1 the first named is faster. What was not measured is left
    out."""
    rate = {row["row"]: row["steps_per_s"] for row in rows}
    pairs = {}
    for model in MODELS:
        for what in ("train", "forward"):
            pairs[f"{model} {what}: time ours / PyTorch"] = (f"{model}-{what}", "-torch")
        pairs[f"{model} train: time ours / bare"] = (f"{model}-train", f"{model}-bare")
        pairs[f"{model} train: time PyTorch / bare"] = (f"{model}-train-torch", f"{model}-bare")
    out = {}
    for name, (first, second) in pairs.items():
        second = first + second if second == "-torch" else second
        if first in rate and second in rate:
            out[name] = rate[second] / rate[first]
    return out
