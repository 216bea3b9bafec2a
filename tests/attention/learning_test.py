# SPDX-License-Identifier: Apache-2.0
"""Every kind of attention on real text and on needles in noise (marker `slow`).

Same sizes, seeds, batches and steps for all kinds; criteria are those of the specification of the
operator, fixed before the runs. Each check leaves a dated file in experiments/results/.
"""

from pathlib import Path

import pytest

from attention.names import KINDS
from tests.learning import leave, mean, train, train_all

pytestmark = pytest.mark.slow
LAYERS = 4


@pytest.mark.data
def test_kinds_on_real_text(tmp_path: Path) -> None:
    """300 updates on Tiny Shakespeare: losses of all kinds, exact zeros, mute rows, first token."""
    short = (
        "--config.train.steps=300",
        "--config.optim.decay=300",
        "--config.eval.every=300",
        "--config.eval.rows=128",
        "--config.eval.head_rows=8",
        "--config.eval.lengths=(64,512)",
    )
    conditions = {kind: (f"--config.model.attention={kind}", *short) for kind in KINDS}
    conditions["tda beta=.5"] = (*conditions["tda"], "--config.model.beta=0.5")
    runs = train_all(tmp_path, "lm", conditions)
    leave(
        "lm_kinds",
        "softmax <= tda < rela in valid/loss, tda - softmax <= .15; tda: zeros >= .95 in every "
        "layer, < .90 at beta .5, pooled first-token mass <= 1.5 x uniform; all below bigrams",
        runs,
    )
    losses = {name: mean(found, "valid/loss") for name, found in runs.items()}
    assert losses["softmax"] <= losses["tda"] < losses["rela"], losses
    assert losses["tda"] - losses["softmax"] <= 0.15, losses
    for layer in range(1, LAYERS + 1):
        assert mean(runs["tda"], f"valid/zeros/layer{layer}") >= 0.95
        assert mean(runs["tda beta=.5"], f"valid/zeros/layer{layer}") < 0.90
    uniform = mean(runs["tda"], "valid/first_token/uniform")
    assert mean(runs["tda"], "valid/first_token/pooled") <= 1.5 * uniform
    bigram = mean(runs["softmax"], "valid/loss/bigram")  # counting alone
    assert max(losses.values()) < bigram, (losses, bigram)


@pytest.mark.data
def test_softmax_reaches_the_yardstick(tmp_path: Path) -> None:
    """2000 updates: 1.95 nats per character or less (yardstick 1.88)."""
    run = train(tmp_path / "run", "lm", 0)
    leave("lm_base", "softmax: valid/loss <= 1.95 after 2000 updates", {"softmax": [run]})
    assert run["metrics"]["valid/loss"] <= 1.95


def test_passkey_by_length(tmp_path: Path) -> None:
    """Trained at 128 tokens, asked up to 2048; what is fixed is the training length alone, and for
    tda the lower of three thresholds."""
    kinds = ("softmax", "ssmax", "rela", "diff", "tra", "tda")
    conditions = {kind: (f"--config.model.attention={kind}",) for kind in kinds}
    for beta in ("0.25", "1.0"):
        conditions[f"tda beta={beta}"] = (*conditions["tda"], f"--config.model.beta={beta}")
    runs = train_all(tmp_path, "passkey", conditions, seeds=(0,))
    names = ("softmax", "tda beta=0.25")
    leave("passkey_lengths", "accuracy >= .95 at the training length: " + ", ".join(names), runs)
    for name in names:
        assert mean(runs[name], "valid/accuracy") >= 0.95
