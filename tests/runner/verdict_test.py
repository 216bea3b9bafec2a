# SPDX-License-Identifier: Apache-2.0
"""Words made from numbers: the best reference, the direction, the interval, and what is missing."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from experiments.runner import verdict
from experiments.runner.about import Headline

RECALL = Headline(
    "test/recall@10",
    "higher",
    "Hits.",
    ("popularity/test/recall@10", "successor/test/recall@10", "absent/test/recall@10"),
)
LOSS = Headline("valid/loss", "lower", "Nats.", ("valid/loss/bigram",))


def judged(
    entry: Headline, per_seed: Mapping[str, list[float]] = MappingProxyType({}), **metrics: float
) -> Any:
    named = {name.replace("__", "/").replace("_at_", "@"): x for name, x in metrics.items()}
    for name, values in per_seed.items():
        named[name] = float(np.mean(values))
    return verdict.judge({"metrics": named, "per_seed": per_seed}, entry)


def test_the_best_reference_and_its_stored_interval() -> None:
    stored: dict[str, Any] = {
        "test/recall@10/minus_successor/low": -0.35,
        "test/recall@10/minus_successor/high": -0.29,
    }
    found = judged(
        RECALL,
        test__recall_at_10=0.1,
        popularity__test__recall_at_10=0.02,
        successor__test__recall_at_10=0.42,
        **stored,
    )
    assert found.reference == "successor/test/recall@10 0.4200"
    assert found.sentence == "below successor by .320 [.290, .350] over users"


def test_one_seed_has_no_interval() -> None:
    found = judged(RECALL, test__recall_at_10=0.5, popularity__test__recall_at_10=0.02)
    assert found.sentence == "above popularity by .480; one seed, no interval"
    lower = judged(LOSS, valid__loss=2.0, valid__loss__bigram=2.5)
    assert lower.sentence.startswith("below bigram by .500 (better)")
    higher = judged(LOSS, valid__loss=3.0, valid__loss__bigram=2.5)
    assert higher.sentence.startswith("above bigram by .500 (worse)")


def test_several_seeds_are_resampled() -> None:
    """The interval holds the mean and lies within the extremes; noise is no difference."""
    gaps = [0.10, 0.14, 0.12, 0.09]
    seeds = {
        "test/recall@10": [0.2 + gap for gap in gaps],
        "popularity/test/recall@10": [0.2] * 4,
    }
    found = judged(RECALL, seeds)
    low, high = (float(x) for x in found.sentence.split("[")[1].split("]")[0].split(", "))
    assert min(gaps) <= low <= np.mean(gaps) <= high <= max(gaps)
    assert found.sentence.startswith("above popularity by .112") or "by .113" in found.sentence
    assert found.value.startswith("0.3125 ± 0.02")
    noise = {"test/recall@10": [0.1, 0.3], "popularity/test/recall@10": [0.3, 0.1]}
    assert judged(RECALL, noise).sentence.startswith("no difference seen from popularity")


def test_ties_gaps_and_what_is_no_number() -> None:
    tie = judged(RECALL, test__recall_at_10=0.2, popularity__test__recall_at_10=0.2)
    assert tie.sentence == "no difference seen from popularity; one seed, no interval"
    close = judged(RECALL, test__recall_at_10=0.2002, popularity__test__recall_at_10=0.2)
    assert close.sentence.startswith("above popularity by .0002;"), "no gap is shown as .000"
    assert judged(RECALL, successor__test__recall_at_10=0.1).value == "not measured"
    alone = judged(RECALL, test__recall_at_10=0.2)
    assert (alone.reference, alone.sentence) == ("", "")
    nan = judged(RECALL, test__recall_at_10=math.nan, popularity__test__recall_at_10=0.2)
    assert nan.sentence == "not a finite number: no verdict"


def test_what_is_missing_or_no_number_beside_it() -> None:
    """A row that failed hides no other; half an interval is none; counts are stored once."""
    rows: dict[str, Any] = {"test__recall_at_10": 0.5, "popularity__test__recall_at_10": 0.2}
    beside = judged(RECALL, **rows, successor__test__recall_at_10=math.nan)
    assert beside.sentence.startswith("above popularity by .300")
    low: dict[str, Any] = {"test/recall@10/minus_popularity/low": 0.1}
    half = judged(RECALL, **rows, **low)
    assert half.sentence == "above popularity by .300; one seed, no interval"
    seeds = {"test/recall@10": [0.5, 0.55, 0.6]}
    once = judged(RECALL, seeds, popularity__test__recall_at_10=0.2)
    assert once.sentence.startswith("above popularity by .350 [.3") and "3 seeds" in once.sentence
    touching: dict[str, Any] = {"test/recall@10/minus_popularity/low": 0.0}
    touching["test/recall@10/minus_popularity/high"] = 0.6
    assert judged(RECALL, **rows, **touching).sentence.startswith("no difference seen")


def test_a_changed_number_changes_the_words() -> None:
    """The planted fault: one number of results.json moved to the other side of its reference."""
    metrics = {"test/recall@10": 0.5, "popularity/test/recall@10": 0.2}
    before = verdict.end_block({"metrics": metrics}, (RECALL,), Path("x"))
    after = verdict.end_block({"metrics": metrics | {"test/recall@10": 0.1}}, (RECALL,), Path("x"))
    assert "above popularity by .300" in before and "below popularity by .100" in after


@pytest.mark.parametrize("variant", ["tiny", "base"])
def test_the_end_of_a_run(variant: str) -> None:
    metrics = {f"test/other{i}": 0.5 for i in range(20)}
    metrics |= {"test/recall@10": 0.1, "successor/test/recall@10": 0.4}
    results = {"variant": variant, "metrics": metrics}
    text = verdict.end_block(results, (RECALL, LOSS), Path("runs/x"))
    lines = text.splitlines()
    assert "test/recall@10 = 0.1000" in lines[1] and "successor/test/recall@10 0.4000" in lines[1]
    assert "below successor by .300" in lines[1] and "valid/loss" not in text
    assert "21 more: runs/x/results.json" in text
    assert ("its numbers mean nothing" in lines[-1]) == (variant == "tiny")
    plain = verdict.end_block(results, (), Path("runs/x")).splitlines()
    assert len(plain) <= verdict.MAX_LINES + 4
