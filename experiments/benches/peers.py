# SPDX-License-Identifier: Apache-2.0
"""Four models of this repository against the same models in plain PyTorch, on a CPU.

    lm        configs/attention/lm.py :base, 12 rows of 64 characters
    sasrec    configs/rec/sasrec.py :base without dropout, 128 rows of 50 positions, 803 items
    tiger     the sizes of benches/rec.py, 32 histories of 20 items; the peer is T5 of transformers
    pencil    configs/graph/pencil.py :base, 64 links of up to 82 tokens

Rows NAME-train are whole updates (gradients, clipping, AdamW) on a batch that lies ready,
NAME-forward the loss without gradients, NAME-generate 128 greedy tokens after 64 for lm and 50
beams for tiger; "-torch" is the peer's row, see benches/torch_models.py. Steps are whole batches.
All is float32 without dropout, with as many parameters on both sides. PyTorch is eager and has as
many threads as there are cores, two at most; JAX takes what it takes.

Before anything is timed the peer, with our weights and batch, must have our loss, and after three
updates again, having fallen as ours did; greedy text must be ours. Beams are not compared: ours
follow the trie of 10,000 SIDs, those of transformers are free, without a trie.

NAME-bare is a floor, not a model: one update of its products of matrices, see `make_bare`.
"""

import dataclasses
import functools
import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attention import layers
from attention.lm import sampler
from attention.lm import training as lm_training
from attention.lm.config import LMConfig
from attention.lm.optim_config import OptimConfig as LMOptimConfig
from experiments.benches import rec as rec_bench
from experiments.configs.attention import lm as lm_config
from experiments.configs.graph import pencil as pencil_config
from experiments.configs.rec import sasrec as sasrec_config
from experiments.runner import settings
from experiments.runner.bench import Case, Missing
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

NEEDS = 'needs the extra peers_lm: pip install -e ".[peers_lm]"'
SECONDS = 0.5  # of one call of a case, about
MOST_STEPS = 500  # of one call
RATES = 4096  # updates whose learning rates are computed beforehand
CHECKED_UPDATES = 3
SAME_START = 1e-4  # relative, loss with equal weights
SAME_END = 1e-3  # relative, loss after the updates
SAME_FALL = 0.05  # relative, difference of the two: learning rates may be small while they warm up
SAME_TEXTS = 0.9  # of greedy texts; rounding may decide between two tokens once in a while
NEW_TOKENS = 128
CATALOGUE = 10_000
ITEMS = 803  # of Beauty's 8-core
TABLES = ("head", "items", "codes")  # leaves [classes, D] that states are scored with

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


@runtime_checkable  # types are checked in tests
class Side(Protocol):
    """One implementation, ours or the peer, in the midst of training."""

    @property
    def num_params(self) -> int: ...
    def step(self) -> None: ...
    def wait(self) -> None: ...
    def forward(self) -> float: ...
    def generate(self) -> np.ndarray: ...


class JaxSide:
    """Ours; one update may be dispatched before the last one is done, as in a training loop."""

    def __init__(self, ours: Ours) -> None:
        self.state = jax.jit(ours.init)(jax.random.key(0))
        # Of its own, for the step takes its state over.
        self._fixed = jax.tree.map(jnp.copy, self.variables())
        self._ours = ours
        self._batch = jax.device_put(ours.batch)
        self._step = jax.jit(ours.step, donate_argnums=0)
        self._loss = jax.jit(ours.loss)

    @property
    def num_params(self) -> int:
        return count(self.state["params"])

    def variables(self) -> State:
        """Returns what the model reads, without the optimizer's state."""
        return {name: self.state[name] for name in ("params", "frozen") if name in self.state}

    def step(self) -> None:
        self.state, _ = self._step(self.state, self._batch)

    def wait(self) -> None:
        jax.block_until_ready(self.state)

    def forward(self) -> float:
        return float(self._loss(self.variables(), self._batch))

    def generate(self) -> np.ndarray:
        """Generates with the initial weights."""
        assert self._ours.generate is not None
        return np.asarray(self._ours.generate(self._fixed))


def count(params: Any) -> int:
    """Counts the values of a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


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
        variables = model.init(key, *inputs)
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
    history, mask, users = rec_bench.inputs(rows, cfg.max_items, sizes)
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
    cfg = dataclasses.replace(groups["model"], dropout=0.0)
    return make_sasrec(cfg, groups["optim"], rows=groups["augment"].rows, items=ITEMS)


def _base_tiger() -> Ours:
    return make_tiger(
        rec_bench.CONFIG,
        rec_bench.OPTIM,
        sizes=rec_bench.SIZES,
        rows=rec_bench.ROWS,
        beams=rec_bench.BEAMS,
        catalogue=rec_bench.random_catalogue(CATALOGUE),
    )


def _base_pencil() -> Ours:
    groups = settings.groups(pencil_config.get_config("base"))
    cfg = dataclasses.replace(groups["model"], dropout=0.0, attention_dropout=0.0)
    return make_pencil(cfg, groups["optim"], rows=groups["sample"].rows)


MODELS = {"lm": _base_lm, "sasrec": _base_sasrec, "tiger": _base_tiger, "pencil": _base_pencil}


class Bare(NamedTuple):
    """What `make_bare` starts from."""

    params: dict[str, list[jax.Array]]
    """"matrices" [in, out], layer by layer, and "others": all leaves that are none."""
    inputs: list[jax.Array]
    """Of every matrix, [rows, in]."""


def start_bare(params: Any, product_rows: Callable[[str], int]) -> Bare:
    """Takes the matrices out of a model's parameters, and draws what they are multiplied with."""
    matrices = []
    inputs = []
    others = []
    rng = np.random.default_rng(0)
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        rows = product_rows(path)
        if not rows:
            others.append(jnp.array(leaf))
            continue
        is_table = path.split("/")[-1] in TABLES
        per_layer = leaf.T[None] if is_table else leaf.reshape(-1, *leaf.shape[-2:])
        for matrix in per_layer:
            matrices.append(jnp.array(matrix))
            inputs.append(jnp.asarray(rng.normal(size=(rows, len(matrix))), jnp.float32))
    return Bare({"matrices": matrices, "others": others}, inputs)


def make_bare(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """Makes (params, opt_state, inputs) -> the same after one update, loss, gradients of inputs.

    It is the floor of matrix products: every matrix W of a model is multiplied once with a ready x
    of as many rows as there, the loss is the sum of the means of (x W)^2, both gradients are
    formed, and all parameters are updated. There are no attention scores, norms, activations,
    embeddings or clipping.
    """

    def loss(matrices: list[jax.Array], inputs: list[jax.Array]) -> jax.Array:
        products = [layers.matmul(x, W) for x, W in zip(inputs, matrices, strict=True)]
        return sum((jnp.mean(y * y) for y in products), jnp.float32(0))

    def step(params: Any, opt_state: Any, inputs: list[jax.Array]) -> Any:
        differentiate = jax.value_and_grad(loss, argnums=(0, 1))
        value, (gradients, input_gradients) = differentiate(params["matrices"], inputs)
        zeros = jax.tree.map(jnp.zeros_like, params["others"])
        all_gradients = {"matrices": gradients, "others": zeros}
        updates, opt_state = tx.update(all_gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value, input_gradients

    return step


def load_peers() -> Any | None:
    """Loads the PyTorch models, None where PyTorch is missing."""
    try:
        importlib.import_module("torch")
    except ImportError:
        return None
    return importlib.import_module("experiments.benches.torch_models")


def make_peer(torch_models: Any | None, ours: Ours, variables: State) -> Side | None:
    """Makes the peer of a model with the weights of `variables`; None where a package that it needs
    is missing."""
    if torch_models is None:
        return None
    arrays = jax.tree.map(np.asarray, variables)
    try:
        peer = torch_models.MAKERS[ours.name](ours.cfg, arrays, ours.batch, **ours.options)
    except ImportError:
        return None
    return torch_models.Trainer(peer, **ours.optim._asdict())


def check_equality(ours: Ours, side: Side, peer: Side) -> tuple[float, float]:
    """Makes three updates on both sides and returns our loss before and after them.

    Raises:
        ValueError: the peer has another number of parameters, loss, loss after the updates, or
            greedy text.
    """
    found = {"parameters": (side.num_params, peer.num_params, 0.0)}
    if ours.same_text:
        same = (side.generate() == peer.generate()).all(axis=1).mean()
        found["share of equal texts"] = (1.0, float(same), 1 - SAME_TEXTS)
    before = (side.forward(), peer.forward())
    for _ in range(CHECKED_UPDATES):
        side.step()
        peer.step()
    after = (side.forward(), peer.forward())
    falls = (before[0] - after[0], before[1] - after[1])
    found["loss"] = (*before, SAME_START)
    found[f"loss after {CHECKED_UPDATES} updates"] = (*after, SAME_END)
    found["fall of the loss"] = (*falls, SAME_FALL)
    for what, (our_value, peer_value, tolerance) in found.items():
        if not abs(peer_value - our_value) <= tolerance * abs(our_value):
            raise ValueError(
                f"{ours.name}: {what} is {our_value} here and {peer_value} in PyTorch; the peer "
                "computes something else: the comparison would be void"
            )
    return before[0], after[0]


def cases() -> Iterator[Case | Missing]:
    """Model by model: training, loss and generation beside the peer's, then the floor."""
    torch_models = load_peers()
    for make in MODELS.values():
        yield from model_cases(make(), torch_models)


def model_cases(ours: Ours, torch_models: Any | None) -> Iterator[Case | Missing]:
    """Rows of one model; torch_models: of `load_peers`."""
    side = JaxSide(ours)
    variables = side.variables()
    bare = _make_bare_call(ours, variables["params"])  # copies, before the step takes them over
    peer = make_peer(torch_models, ours, variables)
    if peer is not None:
        check_equality(ours, side, peer)
    columns = {"params": side.num_params}
    sides: dict[str, Side | None] = {"": side, "-torch": peer}

    def pair(what: str, pick: Callable[[Side], tuple[Any, Any]]) -> Iterator[Case | Missing]:
        for suffix, implementation in sides.items():
            row = f"{ours.name}-{what}{suffix}"
            if implementation is None:
                yield Missing(row, NEEDS)
            else:
                yield _make_case(row, ours.rows, *pick(implementation), columns)

    yield from pair("train", lambda one: (one.step, one.wait))
    yield from pair("forward", lambda one: (one.forward, one.wait))
    if ours.generate is not None:
        yield from pair("generate", lambda one: (one.generate, one.wait))
    yield _make_case(f"{ours.name}-bare", ours.rows, *bare, columns)


def _make_bare_call(ours: Ours, params: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """Makes an update of the floor, and what waits for it."""
    tx = optax.adamw(1e-4, ours.optim.b1, ours.optim.b2, weight_decay=ours.optim.weight_decay)
    start = start_bare(params, ours.product_rows)
    state = [start.params, tx.init(start.params)]
    step = jax.jit(make_bare(tx), donate_argnums=(0, 1))

    def call() -> None:
        state[0], state[1], *_ = step(*state, start.inputs)

    return call, lambda: jax.block_until_ready(state)


def _make_case(
    row: str,
    batch_rows: int,
    step: Callable[[], Any],
    wait: Callable[[], Any],
    columns: Mapping[str, Any],
) -> Case:
    """Makes a case of as many steps as take about SECONDS."""
    step()  # compiles
    wait()
    began = time.perf_counter()
    step()
    wait()
    steps = round(SECONDS / max(time.perf_counter() - began, 1e-6))
    steps = min(max(steps, 1), MOST_STEPS)

    def run(repeat: int) -> None:
        del repeat
        for _ in range(steps):
            step()
        wait()

    return Case(row, batch_rows, steps, run, columns)


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Times against each other, below 1 the first named is faster; pairs that lack a row are left
    out."""
    rate = {row["row"]: row["steps_per_s"] for row in rows}
    named = {}
    for name in MODELS:
        for what in ("train", "forward", "generate"):
            row = f"{name}-{what}"
            named[f"{name} {what}: ours / PyTorch"] = (row, f"{row}-torch")
        bare = f"{name}-bare"
        named[f"{name} train: ours / bare"] = (f"{name}-train", bare)
        named[f"{name} train: PyTorch / bare"] = (f"{name}-train-torch", bare)
    return {
        label: rate[other] / rate[row]
        for label, (row, other) in named.items()
        if row in rate and other in rate
    }
