# SPDX-License-Identifier: Apache-2.0
"""Recommenders that learn (marker `slow`): on Beauty's 8-core against the rows without training and
against meaningless SIDs, and on a planted tree against the best any ranker can do.

Each check leaves a dated file in experiments/results/.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.runner import checkpoint, reopen
from experiments.systems.rec import tiger
from rec import metrics
from tests.learning import leave, mean, place, train_all

pytestmark = pytest.mark.slow
FROZEN = 0.85  # of what three seeds gave when this was calibrated
CALIBRATED = {"tiger": 0.1669, "sasrec": 0.3307}  # test/recall@10, mean of three seeds


def hits(workdir: Path) -> np.ndarray:
    """Per test user, whether the target is among the first ten of the tested checkpoint."""
    asm, manager = reopen.open_run(workdir)
    with manager:
        best = json.loads((workdir / "results.json").read_text())["checkpoint_of"]
        state = checkpoint.restore(manager, best["test/recall@10"], asm.abstract)
    queries, _, kept = tiger.evaluation_of(asm.config, asm.artifacts).lists(state, "test")
    return metrics.recall(metrics.rank_in_list(kept, queries.targets), 10)


@pytest.mark.data
def test_tiger_on_beauty(tmp_path: Path) -> None:
    """Outside the paired bootstrap over users: above popularity, content, and the same model and
    seed on shuffled SIDs. Successor counts stand beside it."""
    control = {"shuffled SIDs": ("--config.sid.shuffle=True",)}
    runs = train_all(tmp_path, "tiger", {"tiger": ()})
    runs |= train_all(tmp_path, "tiger", control, seeds=(0,))
    leave("rec_tiger_beauty", "recall@10 above popularity, content, shuffled SIDs", runs)
    for real in runs["tiger"]:
        for name in ("popularity", "content"):
            assert real["metrics"][f"test/recall@10/minus_{name}/low"] > 0, name
    pair = [hits(place(tmp_path, "tiger", name, 0)) for name in ("tiger", "shuffled SIDs")]
    interval = metrics.paired_bootstrap(pair[0], pair[1])
    print(f"tiger - shuffled SIDs, seed 0, recall@10: {interval}")
    assert interval.low > 0
    assert mean(runs["tiger"], "test/recall@10") >= FROZEN * CALIBRATED["tiger"]
    print({n: mean(runs["tiger"], f"{n}/test/recall@10") for n in ("successor", "cooccurrence")})


@pytest.mark.data
def test_sasrec_on_beauty(tmp_path: Path) -> None:
    runs = train_all(tmp_path, "sasrec", {"sasrec": ()})
    leave("rec_sasrec_beauty", "recall@10 above content, outside the paired bootstrap", runs)
    assert all(r["metrics"]["test/recall@10/minus_content/low"] > 0 for r in runs["sasrec"])
    assert mean(runs["sasrec"], "test/recall@10") >= FROZEN * CALIBRATED["sasrec"]


def test_tiger_on_a_planted_tree(tmp_path: Path) -> None:
    """At least .9 of the recall@10 of the law the users follow, over SIDs fitted to their texts."""
    planted = (
        "--config.data.format=planted",
        "--config.data.name=planted",
        "--config.data.core=0",
        "--config.sid.codes=8",
        "--config.sid.init_rows=512",
        "--config.sid.conflict=digit",
        "--config.train.steps=4000",
    )
    runs = train_all(tmp_path, "tiger", {"planted": planted}, seeds=(0,))
    leave("rec_tiger_planted", "recall@10 >= .9 of the Bayes-optimal one", runs)
    found, best = (mean(runs["planted"], f"{n}test/recall@10") for n in ("", "bayes/"))
    assert np.isfinite(best) and found >= 0.9 * best, (found, best)
