# SPDX-License-Identifier: Apache-2.0
"""The comparison with PyTorch: its arithmetic, and what it says where PyTorch is missing."""

import importlib
from typing import Any

import numpy as np
import pytest

from experiments.benches import peers
from experiments.runner.bench import Missing


def test_ratios_are_times_and_leave_out_what_is_missing() -> None:
    """Twice the rate is half the time; a pair without its peer has no ratio."""
    rates = {"lm-train": 20.0, "lm-train-torch": 10.0, "lm-bare": 40.0, "sasrec-train": 5.0}
    found = peers.ratios([{"row": k, "steps_per_s": v} for k, v in rates.items()])
    assert found == {
        "lm train: time ours / PyTorch": 0.5,
        "lm train: time ours / bare": 2.0,
        "lm train: time PyTorch / bare": 4.0,
    }


def test_bare_step_against_numpy() -> None:
    """Its loss is the sum of mean squares of the products."""
    (xs, weights, opt_state), step = peers.bare_step([(6, 4, 3), (5, 2, 7)])
    pairs = [(np.asarray(x), np.asarray(w)) for x, w in zip(xs, weights, strict=True)]
    want = sum(np.mean((x @ w) ** 2) for x, w in pairs)
    (_, stepped, _), value = step((xs, weights, opt_state))
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for (_, before), after in zip(pairs, stepped, strict=True):
        np.testing.assert_allclose(np.abs(before - after), 1e-3, rtol=0.2)  # Adam's first step


def test_without_torch_rows_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch ours and the floor stay, PyTorch's rows say which extra they need."""
    real = importlib.import_module

    def refuse(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", refuse)
    monkeypatch.setattr(peers, "MODELS", ("lm",))
    found = list(peers.cases())
    assert [case.row for case in found] == [
        "lm-train",
        "lm-forward",
        "lm-bare",
        "lm-train-torch",
        "lm-forward-torch",
    ]
    missing = [case for case in found if isinstance(case, Missing)]
    assert len(missing) == 2 and all("peers_lm" in case.reason for case in missing)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["lm", "sasrec", "tiger"])
def test_peers_compute_the_same(name: str) -> None:
    """With our weights PyTorch has our losses, before and after updates; with others it has not."""
    pytest.importorskip("torch", reason="torch is not installed")
    if name == "tiger":
        pytest.importorskip("transformers", reason="transformers is not installed")
    ours = peers.MAKERS[name]()
    torch_models = peers.load_torch()
    peers.check_equal(torch_models, ours)
    with pytest.raises(ValueError, match="the comparison would be void"):
        peers.check_equal(torch_models, ours._replace(rate=lambda count: 0.1))
