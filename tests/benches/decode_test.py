# SPDX-License-Identifier: Apache-2.0
"""The bench of decoding: what its rows find, and how its ratios follow from times."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benches import decode, generation
from experiments.runner import bench
from experiments.runner.bench import Case
from rec.models.tiger import Tiger
from tests.tiers import deep

SMALL = dataclasses.replace(
    generation.CONFIG, width=16, heads=2, head_dim=8, mlp_width=16, layers=1, max_items=4
)


@pytest.mark.parametrize(
    "options", [{"has_end": True}, deep({}), deep({"copies_memory": False})], ids=str
)
def test_the_library_finds_our_free_beams(options: dict[str, bool]) -> None:
    """Whatever it copies and however long it goes on; a beam that is another one is noticed."""
    model = Tiger(SMALL, (5, 4, 6))
    params = generation.initial(model)
    generation.check_agreement(model, params, 5, **options)
    some = generation.inputs(3, 4, model.sizes)
    library = functools.partial(generation.library_beams, model, beams=5, **options)
    codes, scores = jax.jit(library)(params, *some)
    assert len(np.unique(generation.number_codes(codes, model.sizes)[0])) == 5
    assert bool((jnp.diff(scores, axis=1) <= 0).all())


def test_another_beam_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tiger(SMALL, (5, 4, 6))
    params = generation.initial(model)
    other = {**params, "codes": params["codes"].at[0].add(3.0)}
    library = generation.library_beams
    monkeypatch.setattr(
        generation,
        "library_beams",
        lambda model, _, *rest, **more: library(model, other, *rest, **more),
    )
    with pytest.raises(ValueError, match="void"):
        generation.check_agreement(model, params)


def test_ratios_follow_from_times() -> None:
    """Each factor halves the time, so nine of them come to 512; the encoder is taken off both."""
    seconds: dict[str, float] = {}
    for place, name in enumerate(decode.CHAIN):
        seconds[decode.label(name, *decode.FIRST)] = 2.0**-place
    first = decode.label("library-end", *decode.FIRST)
    last = decode.label("mixer", *decode.FIRST)
    seconds |= {f"WHOLE-{first}": 1.0, f"WHOLE-{last}": 1 / 500}
    for name, value in {"mixer-masked": 1.0, "sasrec": 1e-4, "encoder": 1 / 512}.items():
        seconds[decode.label(name, *decode.FIRST)] = value
    rows = [{"row": row, "steps_per_s": 1 / value, "flop": value} for row, value in seconds.items()]
    found = decode.ratios(rows)
    assert all(found[f"factor: {what}"] == pytest.approx(2) for what in decode.FACTORS)
    assert found["factors multiplied"] == pytest.approx(512)
    assert found["the whole, timed on its own"] == pytest.approx(500)
    assert found["SID-MLP / teacher"] == pytest.approx(2)
    teacher, heads, encoder = 2**-5, 2**-6, 2**-9
    alone = found["SID-MLP / teacher, without the encoder"]
    assert alone == pytest.approx((teacher - encoder) / (heads - encoder))
    assert not any("transformers" in what for what in found)  # it was not measured


def test_every_factor_is_a_step_of_the_chain() -> None:
    """Factors join neighbors, from the first row to the last, so they multiply to the whole."""
    steps = list(decode.FACTORS.values())
    assert [slow for slow, _ in steps] == list(decode.CHAIN[:-1])
    assert [fast for _, fast in steps] == list(decode.CHAIN[1:])
    assert set(decode.GRID) <= {*decode.CHAIN, "sasrec"}


def test_latency_is_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Median and 95th percentile of the time of a step, by hand from a clock of its own."""
    clock = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    takes = [9.0, 1.0, 2.0, 3.0, 4.0, 5.0]  # the first call is not one of them

    def run(repeat: int) -> None:
        clock[0] += takes[repeat]

    rows, _ = bench.measure([Case("a", 32, 1.0, run, {}, is_latency=True)], 5)
    row = rows[0]
    rates = sorted(1 / t for t in takes[1:])
    assert row["p50_ms"] == pytest.approx(3000)
    assert row["users_per_s"] == pytest.approx(32 / 3)
    assert row["p95_ms"] == pytest.approx(1e3 / (rates[0] + 0.2 * (rates[1] - rates[0])))
