# SPDX-License-Identifier: Apache-2.0
"""The bench against PyTorch: its ratios, its floor, what it says without PyTorch, and that peers
compute what our models do."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attention.lm.config import LMConfig
from attention.lm.optim_config import OptimConfig as LMOptimConfig
from experiments.benches import peer_models, peers
from experiments.benches.peer_models import Ours
from experiments.runner.bench import Case, Missing
from graph.config import OptimConfig as LinkOptimConfig
from graph.config import PencilConfig
from rec.models.config import OptimConfig as RecOptimConfig
from rec.models.config import SASRecConfig, TigerConfig

RATE = 1e-2
REC_OPTIM = RecOptimConfig(RATE, 2, "cosine", 10, 0.9, 0.98, 0.1, 0.5)


def make_tiny_lm() -> Ours:
    cfg = LMConfig(
        vocab_size=11,
        layers=2,
        width=16,
        heads=2,
        kv_heads=2,
        head_dim=8,
        mlp_width=24,
        norm="layer",
        norm_eps=1e-5,
        mlp="gelu",
        tied=False,
        init_std=0.3,  # greedy text is then not of one token
    )
    optim = LMOptimConfig(RATE, RATE / 10, 2, 10, 0.9, 0.99, 0.1, 0.5, 1)
    return peer_models.make_lm(cfg, optim, rows=3, context=8, new_tokens=5)


def make_tiny_sasrec() -> Ours:
    cfg = SASRecConfig(
        width=16,
        heads=2,
        mlp_width=24,
        layers=2,
        mlp="gelu",
        pre_norm=True,
        attention="softmax",
        dropout=0.0,
        loss="full",
        negatives=1,
        max_items=7,
        dtype="float32",
        scan="auto",
        remat=False,
    )
    return peer_models.make_sasrec(cfg, REC_OPTIM, rows=5, items=13)


def make_tiny_tiger() -> Ours:
    cfg = TigerConfig(
        layout="encoder_decoder",
        width=16,
        heads=3,
        head_dim=8,
        mlp_width=24,
        layers=2,
        mlp="relu",
        position="t5",
        attention="softmax",
        dropout=0.0,
        user_tokens=0,
        separators=False,
        tied=True,
        softmax="full",
        max_items=6,
        dtype="float32",
        scan="auto",
        remat=False,
    )
    # Start vector and embeddings are one table there, and decayed alike: without decay both agree.
    optim = RecOptimConfig(RATE, 2, "rsqrt", 3, 0.9, 0.98, 0.0, 0.5)
    catalogue = np.random.default_rng(0).integers(0, 5, (9, 3)).astype(np.int32)
    return peer_models.make_tiger(cfg, optim, sizes=(5, 5, 5), rows=4, beams=4, catalogue=catalogue)


def make_tiny_pencil() -> Ours:
    cfg = PencilConfig(
        slots=9, width=16, heads=2, mlp_width=24, layers=2, dropout=0.0, attention_dropout=0.0
    )
    return peer_models.make_pencil(cfg, LinkOptimConfig(RATE, eps=1e-6, weight_decay=0.1), rows=6)


TINY = {
    "lm": make_tiny_lm,
    "sasrec": make_tiny_sasrec,
    "tiger": make_tiny_tiger,
    "pencil": make_tiny_pencil,
}


def row(name: str, seconds: float) -> dict[str, Any]:
    return {"row": name, "steps_per_s": 1 / seconds}


def test_ratios_are_of_times_and_pairs_without_a_row_are_left_out() -> None:
    rows = [
        row("lm-train", 2),
        row("lm-train-torch", 8),
        row("lm-forward", 3),
        row("lm-forward-torch", 2),
        row("lm-generate", 1),
        row("lm-bare", 1),
        row("pencil-train", 5),
        row("pencil-bare", 4),
        row("tiger-train-torch", 9),
        row("tiger-bare", 3),
    ]
    assert peers.ratios(rows) == pytest.approx(
        {
            "lm train: time ours / PyTorch": 0.25,
            "lm forward: time ours / PyTorch": 1.5,
            "lm train: time ours / bare": 2,
            "lm train: time PyTorch / bare": 8,
            "pencil train: time ours / bare": 1.25,
            "tiger train: time PyTorch / bare": 3,
        }
    )


def test_without_pytorch_its_rows_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import fails here whether or not PyTorch is installed; our rows and the floor stay."""
    real_import = importlib.import_module

    def fail(name: str, package: str | None = None) -> Any:
        if name == "torch" or name.endswith("torch_models"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real_import(name, package)

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.setattr(peers, "SECONDS", 0.0)
    assert peers.load_peers() is None
    found = list(peers.model_cases(make_toy(), peers.load_peers()))
    missing = {case.row: case.reason for case in found if isinstance(case, Missing)}
    rows = ("pencil-train-torch", "pencil-forward-torch", "pencil-generate-torch")
    assert missing == dict.fromkeys(rows, 'needs the extra peers_lm: pip install -e ".[peers_lm]"')
    measured = [case for case in found if isinstance(case, Case)]
    names = ["pencil-train", "pencil-forward", "pencil-generate", "pencil-bare"]
    assert [case.row for case in measured] == names
    for case in measured:
        assert case.work == 1 and case.envs == 4 and case.columns == {"params": 6}
        case.run(0)


def test_a_peer_whose_package_is_missing_is_missing_alone() -> None:
    class Library:
        MAKERS = {"pencil": None}  # noqa: RUF012

    def fail(*_: Any, **__: Any) -> Any:
        raise ModuleNotFoundError("No module named 'transformers'")

    Library.MAKERS["pencil"] = fail  # type: ignore[assignment]
    assert peers.make_peer(Library, make_toy(), {"params": {}}) is None


def make_toy() -> Ours:
    """A linear map under the name of a model."""

    def loss(state: Any, batch: Any) -> jax.Array:
        return jnp.mean((batch["x"] @ state["params"]["W"]["kernel"]) ** 2)

    def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        value, gradients = jax.value_and_grad(lambda p: loss({"params": p}, batch))(state["params"])
        return {"params": jax.tree.map(lambda p, g: p - g, state["params"], gradients)}, value

    rates = lambda updates: jnp.ones(updates.shape)
    return Ours(
        name="pencil",
        cfg=None,
        init=lambda key: {"params": {"W": {"kernel": jax.random.normal(key, (3, 2))}}},
        step=step,
        loss=loss,
        batch={"x": np.ones((4, 3), np.float32)},
        rows=4,
        optim=peer_models.make_optim(LinkOptimConfig(RATE), rates),
        product_rows=lambda path: 4,
        generate=lambda state: jnp.zeros((4, 2), jnp.int32),
    )


def test_floor_multiplies_every_matrix_and_updates_every_parameter() -> None:
    """Against NumPy, for the tiny language model: its loss, both gradients, the first update of
    Adam, which is of the gradient's sign, and decay."""
    ours = make_tiny_lm()
    params = ours.init(jax.random.key(0))["params"]
    start = peers.start_bare(params, ours.product_rows)
    shapes = sorted(matrix.shape for matrix in start.params["matrices"])
    assert shapes == sorted([(16, 16)] * 8 + [(16, 24)] * 2 + [(24, 16)] * 2 + [(16, 11)])
    assert [x.shape for x in start.inputs] == [(24, len(W)) for W in start.params["matrices"]]
    assert sum(map(peers.count, start.params.values())) == peers.count(params)
    rate, decay = 0.1, 0.5
    tx = optax.adamw(rate, weight_decay=decay)
    step = jax.jit(peers.make_bare(tx))
    after, _, loss, input_gradients = step(start.params, tx.init(start.params), start.inputs)
    wanted_loss = 0.0
    for index, (W, x) in enumerate(zip(start.params["matrices"], start.inputs, strict=True)):
        matrix, inputs = np.asarray(W, np.float64), np.asarray(x, np.float64)
        y = inputs @ matrix
        wanted_loss += (y**2).mean()
        dy = 2 * y / y.size
        gradient = inputs.T @ dy
        moved = matrix - rate * (gradient / (np.abs(gradient) + 1e-8) + decay * matrix)
        np.testing.assert_allclose(after["matrices"][index], moved, atol=1e-3)
        np.testing.assert_allclose(input_gradients[index], dy @ matrix.T, atol=1e-6)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    for before, moved in zip(start.params["others"], after["others"], strict=True):
        np.testing.assert_allclose(moved, before * (1 - rate * decay), rtol=1e-5)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.filterwarnings("ignore")  # of PyTorch and transformers
def test_peer_computes_the_same(name: str) -> None:
    """Small sizes, rates that move the loss, decay and a clip that binds; with one array changed
    in the peer the same check must fail."""
    pytest.importorskip("torch", reason="peer torch is not installed (extra peers_lm)")
    if name == "tiger":
        reason = "peer transformers is not installed (extra peers_lm)"
        pytest.importorskip("transformers", reason=reason)
    torch_models = peers.load_peers()
    ours = TINY[name]()
    side = peers.JaxSide(ours)
    variables = jax.tree.map(np.array, side.variables())
    peer = peers.make_peer(torch_models, ours, variables)
    assert peer is not None
    before, after = peers.check_equality(ours, side, peer)
    assert before - after > 0.01 * before
    if name == "tiger":
        assert peer.generate().shape == (4, 4, 3)
    leaf = max(jax.tree.leaves(variables["params"]), key=np.size)
    leaf += 0.1 * np.random.default_rng(0).normal(size=leaf.shape).astype(np.float32)
    other = peers.make_peer(torch_models, ours, variables)
    assert other is not None
    with pytest.raises(ValueError, match=f"{name}: .* computes something else"):
        peers.check_equality(ours, peers.JaxSide(ours), other)


def test_base_models_follow_their_configs() -> None:
    sizes = {name: make() for name, make in peer_models.MODELS.items() if name != "tiger"}
    assert [ours.rows for ours in sizes.values()] == [12, 128, 64]
    assert sizes["lm"].cfg.width == 128 and sizes["sasrec"].cfg.dropout == 0
    assert sizes["pencil"].batch["adj_bits"].shape == (64, 82, 3)
