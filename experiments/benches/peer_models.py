# SPDX-License-Identifier: Apache-2.0
"""The models that `experiments.benches.peers` measures, each with its batch and its optimizer."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attention.lm import sampler
from attention.lm import training as lm_training
from attention.lm.config import LMConfig
from attention.lm.optim_config import OptimConfig as LMOptimConfig
from experiments.benches import generation
from experiments.configs.attention import lm as lm_config
from experiments.configs.graph import pencil as pencil_config
from experiments.configs.rec import sasrec as sasrec_config
from experiments.runner import settings
from experiments.systems.attention.language import wiring as lm_wiring
from experiments.systems.graph.links import predictors
from experiments.systems.graph.links import training as link_training
from experiments.systems.graph.links.batches import Inputs
from graph import bits
from graph.config import OptimConfig as LinkOptimConfig
from graph.config import PencilConfig
from graph.pencil import Pencil
from graph.sample import LinkBatch
from rec import training as rec_training
from rec.decode import beam
from rec.models import sasrec, tiger
from rec.models.config import OptimConfig as RecOptimConfig
from rec.models.config import SASRecConfig, TigerConfig
from rec.models.sasrec import SASRec
from rec.models.tiger import Tiger
from rec.sid import trie as tries

RATES = 4096  # updates whose learning rates are computed beforehand
NEW_TOKENS = 128
CATALOGUE = 10_000
ITEMS = 803  # of Beauty's 8-core
SASREC_ROWS = 128  # histories

State = dict[str, Any]
Batch = Mapping[str, Any]


class Optim(NamedTuple):
    """What PyTorch's AdamW is told, see `torch_models.Trainer`."""

    rates: np.ndarray
    """[R] learning rate by update; the last one holds from there on."""
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip: float
    """Of the gradient's global norm, inf for none."""
    decays_vectors: bool


class Ours(NamedTuple):
    """One of our models with its batch, and what its peer is made from."""

    name: str
    cfg: Any
    init: Callable[[jax.Array], State]
    """key -> state with "params"."""
    step: Callable[[State, Batch], tuple[State, jax.Array]]
    """One update, and the loss before it."""
    loss: Callable[[State, Batch], jax.Array]
    """In nats, without an update."""
    batch: dict[str, np.ndarray]
    rows: int
    """Of the batch: texts, users, histories or links."""
    optim: Optim
    product_rows: Callable[[str], int]
    """Path of a leaf -> rows that its matrices are multiplied with in a step, 0 for no matrix."""
    options: Mapping[str, Any] = MappingProxyType({})
    """More that the peer is told."""
    generate: Callable[[State], jax.Array] | None = None
    same_text: bool = False
    """Whether both generate the same."""


def make_lm(
    cfg: LMConfig, optim: LMOptimConfig, *, rows: int, context: int, new_tokens: int
) -> Ours:
    """Makes the language model on random tokens."""
    ids = np.random.default_rng(0).integers(0, cfg.vocab_size, (rows, context + 1))
    update = lm_wiring.make_step(cfg, optim)
    rates = optax.warmup_cosine_decay_schedule(
        0.0 if optim.warmup else optim.lr, optim.lr, optim.warmup, optim.decay, optim.min_lr
    )
    sampling = sampler.Sampling(max_new=new_tokens, temperature=0)
    prompts = ids[:, :-1].astype(np.int32)
    mask = np.ones(prompts.shape, bool)

    def step(state: State, batch: Batch) -> tuple[State, jax.Array]:
        state, metrics = update(state, batch)
        return state, metrics["loss"]

    def generate(state: State) -> jax.Array:
        params = state["params"]
        start = sampler.start(params, cfg, prompts, mask, capacity=context + new_tokens)
        return sampler.sample(params, cfg, start, jax.random.key(0), sampling).ids

    return Ours(
        name="lm",
        cfg=cfg,
        init=lm_wiring.make_init(cfg, optim),
        step=step,
        loss=lambda state, batch: lm_training.loss(state["params"], cfg, batch["ids"]),
        batch={"ids": ids.astype(np.int32)},
        rows=rows,
        optim=make_optim(optim, rates),
        product_rows=lambda path: rows * context if _is_kernel(path) or path == "head" else 0,
        options={"new_tokens": new_tokens},
        generate=generate,
        same_text=True,
    )


def _is_kernel(path: str) -> bool:
    """Whether a leaf holds matrices [in, out], by the names of the language model or of linen."""
    *parents, name = path.split("/")
    is_lm_kernel = parents in (["blocks", "attn"], ["blocks", "mlp"])
    return name == "kernel" or is_lm_kernel


def make_optim(optim: Any, rates: Callable[[Any], Any], **changes: Any) -> Optim:
    """Says an optim group in numbers."""
    known = {name: getattr(optim, name) for name in ("b1", "b2", "weight_decay")}
    by_update = np.asarray(rates(jnp.arange(RATES)))
    out = Optim(rates=by_update, eps=1e-8, clip=np.inf, decays_vectors=False, **known)
    return out._replace(**{"clip": getattr(optim, "clip", np.inf), **changes})


def _linen_state(model: Any, inputs: Sequence[Any], tx: optax.GradientTransformation) -> Any:
    """Makes `Ours.init` of a module of linen."""

    def init(key: jax.Array) -> State:
        variables = model.init(key, *map(jnp.asarray, inputs))
        params = variables["params"]
        return {**variables, "params": params, "opt_state": tx.init(params)}

    return init


def make_sasrec(cfg: SASRecConfig, optim: RecOptimConfig, *, rows: int, items: int) -> Ours:
    """Makes the ranker on random histories of five items and more, every position a target."""
    T = cfg.max_items
    rng = np.random.default_rng(0)
    sequences = rng.integers(0, items, (rows, T + 1)).astype(np.int32)
    mask = np.arange(T)[None] < rng.integers(min(5, T), T + 1, rows)[:, None]
    batch = {
        "history": sequences[:, :-1],
        "mask": mask,
        "targets": sequences[:, 1:],
        "weights": mask.astype(np.float32),
    }
    model = SASRec(cfg, items)
    tx = rec_training.optimizer(optim)

    def loss(state: State, batch: Batch) -> jax.Array:
        return sasrec.loss(model, state["params"], dict(batch), jax.random.key(0))

    return Ours(
        name="sasrec",
        cfg=cfg,
        init=_linen_state(model, (batch["history"][:1], mask[:1]), tx),
        step=_make_rec_step(loss, tx),
        loss=loss,
        batch=batch,
        rows=rows,
        optim=make_optim(optim, rec_training.schedule(optim)),
        product_rows=lambda path: rows * T if _is_kernel(path) or path == "items" else 0,
    )


def _make_rec_step(loss: Any, tx: optax.GradientTransformation) -> Any:
    """Makes `Ours.step` of a recommender."""

    def step(state: State, batch: Batch) -> tuple[State, jax.Array]:
        params, opt_state, metrics = rec_training.update(
            lambda params: loss({"params": params}, batch), state["params"], state["opt_state"], tx
        )
        return {"params": params, "opt_state": opt_state}, metrics["loss"]

    return step


def make_tiger(
    cfg: TigerConfig,
    optim: RecOptimConfig,
    *,
    sizes: tuple[int, ...],
    rows: int,
    beams: int,
    catalogue: np.ndarray,
) -> Ours:
    """Makes the generator of SIDs; catalogue: int32 [N, L] SIDs, N >= rows."""
    history, mask, users = generation.inputs(rows, cfg.max_items, sizes)
    batch = {"history": history, "mask": mask, "users": users, "target": catalogue[:rows]}
    model = Tiger(cfg, sizes)
    tx = rec_training.optimizer(optim)
    trie, shape = tries.build(catalogue, sizes)
    search = functools.partial(beam.search, model, beams=beams, shape=shape, normaliser="full")
    jitted_search = jax.jit(search)

    def loss(state: State, batch: Batch) -> jax.Array:
        return tiger.loss(model, state["params"], dict(batch))

    def product_rows(path: str) -> int:
        """The encoder and the keys and values of cross attention read all digits of a history."""
        digits = rows * len(sizes)
        if path == "codes":
            return digits
        is_of_history = path.startswith("encoder/") or "/cross/k/" in path or "/cross/v/" in path
        per_digit = cfg.max_items if is_of_history else 1
        return digits * per_digit if _is_kernel(path) else 0

    return Ours(
        name="tiger",
        cfg=cfg,
        init=_linen_state(model, (history[:1], mask[:1], users[:1], catalogue[:1]), tx),
        step=_make_rec_step(loss, tx),
        loss=loss,
        batch={name: np.asarray(leaf) for name, leaf in batch.items()},
        rows=rows,
        optim=make_optim(optim, rec_training.schedule(optim)),
        product_rows=product_rows,
        options={"sizes": sizes, "beams": beams},
        generate=lambda state: jitted_search(state["params"], history, mask, users, trie).codes,
    )


def make_pencil(cfg: PencilConfig, optim: LinkOptimConfig, *, rows: int) -> Ours:
    """Makes the link predictor on random graphs of half to all slots, a tenth of pairs joined."""
    N = cfg.slots
    rng = np.random.default_rng(0)
    upper = np.triu(rng.random((rows, N, N)) < 0.1, 1)
    upper[:, 0, 1] = False  # the link itself is taken out
    links = {
        "adj_bits": bits.pack(upper | upper.transpose(0, 2, 1)),
        "n": rng.integers(max(2, N // 2), N + 1, rows).astype(np.int32),
        "ids": np.zeros((rows, N), np.int32),
        "dropped": np.zeros(rows, np.int32),
    }
    batch = {**links, "labels": rng.integers(0, 2, rows).astype(np.float32)}
    predictor = predictors.from_subgraph_model(Pencil(cfg), featured=False)
    tx = link_training.make_optimizer(optim)
    differentiate = link_training.make_differentiate(predictor, optim.microbatches, "bce")

    def make_inputs(batch: Batch) -> Inputs:
        """Of the whole graph nothing is read."""
        nothing = jnp.zeros(0, jnp.int32)
        pairs = jnp.zeros((rows, 2), jnp.int32)
        subgraphs = LinkBatch(*(batch[name] for name in LinkBatch._fields))
        return Inputs(subgraphs, pairs, jnp.zeros((1, 0)), nothing, nothing)

    def init(key: jax.Array) -> State:
        variables = predictor.init(key, make_inputs(links))
        return {**variables, "opt_state": tx.init(variables["params"])}

    def step(state: State, batch: Batch) -> tuple[State, jax.Array]:
        inputs = make_inputs(batch)
        metrics, gradients = differentiate(state, inputs, batch["labels"], jax.random.key(0))
        updates, opt_state = tx.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {**state, "params": params, "opt_state": opt_state}, metrics["loss"]

    def loss(state: State, batch: Batch) -> jax.Array:
        logits = predictor.logits(state, make_inputs(batch), None)
        return optax.sigmoid_binary_cross_entropy(logits, batch["labels"]).mean()

    def product_rows(path: str) -> int:
        if path.startswith("head/"):
            return rows if _is_kernel(path) else 0
        return rows * (N + 2) if _is_kernel(path) else 0

    rates = lambda updates: jnp.full(updates.shape, optim.lr, jnp.float32)
    return Ours(
        name="pencil",
        cfg=cfg,
        init=init,
        step=step,
        loss=loss,
        batch=batch,
        rows=rows,
        optim=make_optim(optim, rates, eps=optim.eps, decays_vectors=True),
        product_rows=product_rows,
    )


def _base_lm() -> Ours:
    groups = settings.groups(lm_config.get_config("base"))
    data = groups["data"]
    return make_lm(
        groups["model"],
        groups["optim"],
        rows=data.rows,
        context=data.context,
        new_tokens=NEW_TOKENS,
    )


def _base_sasrec() -> Ours:
    groups = settings.groups(sasrec_config.get_config("base"))
    cfg = dataclasses.replace(groups["model"], heads=1, max_items=50, dropout=0.0, smoothing=0.0)
    optim = dataclasses.replace(
        groups["optim"], lr=1e-3, schedule="constant", decay=10_000, weight_decay=0.0
    )
    return make_sasrec(cfg, optim, rows=SASREC_ROWS, items=ITEMS)


def _base_tiger() -> Ours:
    return make_tiger(
        generation.CONFIG,
        generation.OPTIM,
        sizes=generation.SIZES,
        rows=generation.ROWS,
        beams=generation.BEAMS,
        catalogue=generation.random_catalogue(CATALOGUE),
    )


def _base_pencil() -> Ours:
    groups = settings.groups(pencil_config.get_config("base"))
    cfg = dataclasses.replace(groups["model"], dropout=0.0, attention_dropout=0.0)
    return make_pencil(cfg, groups["optim"], rows=groups["sample"].rows)


MODELS = {"lm": _base_lm, "sasrec": _base_sasrec, "tiger": _base_tiger, "pencil": _base_pencil}
