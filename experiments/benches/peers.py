# SPDX-License-Identifier: Apache-2.0
"""Four models of this repository against the same models in plain PyTorch, on a CPU.

    lm        configs/attention/lm.py :base, 12 rows of 64 characters
    sasrec    widths of configs/rec/sasrec.py :base, one head, neither dropout nor smoothing, 128
              rows of 50 positions, 803 items
    tiger     benches/generation.py, 32 histories of 20 items; the peer is T5 of transformers
    pencil    configs/graph/pencil.py :base, 64 links of up to 82 tokens

Rows NAME-train are whole updates (gradients, clipping, AdamW) on a batch that lies ready,
NAME-forward the loss without gradients, NAME-generate 128 greedy tokens after 64 for lm and 50
beams for tiger; "-torch" is the peer's row, see benches/torch_models.py. Steps are whole batches.
All is float32 without dropout, with as many parameters on both sides. PyTorch is eager and has as
many threads as there are cores, two at most; JAX takes what it takes.

Before anything is timed the peer, with our weights and batch, must have our loss, and after three
updates again, having fallen as ours did; greedy text must be ours. Beams are not compared: ours
follow the trie of 10,000 SIDs, those of transformers are free, without a trie.

First calls of rows come after compilation: the number of steps in a call is found before.

NAME-bare is a floor, not a model: one update of its products of matrices, see `make_bare`.

Tried on two cores and left out, for it was slower or within the noise: queries, keys and values by
one product; AdamW over one flattened vector (TIGER 6.0 to 9.5 ms, LM .64 to .86 ms); gradients of
embeddings as products or sums of sorted segments (scatter .1 ms, product 8 ms, segments .2-.4 ms);
four updates in one program (LM and SASRec 3 to 5 % in some runs, PENCIL none); large pages for the
heap; single maps and 64 MB heaps kept by M_TOP_PAD.
"""

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attention import layers
from experiments.benches.peer_models import MODELS, Ours, State
from experiments.runner.bench import Case, Missing

NEEDS = 'needs the extra peers_lm: pip install -e ".[peers_lm]"'
SECONDS = 0.5  # of one call of a case, about
MOST_STEPS = 500  # of one call
CHECKED_UPDATES = 3
SAME_START = 1e-4  # relative, loss with equal weights
SAME_END = 1e-3  # relative, loss after the updates
SAME_FALL = 0.05  # relative, difference of the two: learning rates may be small while they warm up
SAME_TEXTS = 0.9  # of greedy texts; rounding may decide between two tokens once in a while
TABLES = ("head", "items", "codes")  # leaves [classes, D] that states are scored with


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
    found: dict[str, tuple[float, float, float]] = {}  # ours, the peer's, relative tolerance
    found["number of parameters"] = (side.num_params, peer.num_params, 0.0)
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
    """Times of a step against each other, below 1 the first named is faster; pairs that lack a row
    are left out."""
    rate = {row["row"]: row["steps_per_s"] for row in rows}
    named = {}
    for name in MODELS:
        for what in ("train", "forward", "generate"):
            row = f"{name}-{what}"
            named[f"{name} {what}: time ours / PyTorch"] = (row, f"{row}-torch")
        bare = f"{name}-bare"
        named[f"{name} train: time ours / bare"] = (f"{name}-train", bare)
        named[f"{name} train: time PyTorch / bare"] = (f"{name}-train-torch", bare)
    return {
        label: rate[other] / rate[row]
        for label, (row, other) in named.items()
        if row in rate and other in rate
    }
