# SPDX-License-Identifier: Apache-2.0
"""What a faster search for semantic IDs is made of: from a general library to SID-MLP++.

Sizes are the reference's (TIGER: 4 + 4 layers, 4.6M parameters, 20 items, 4 digits of 256 codes;
students of spec sid_mlp 1.2 and 1.5), weights random, the catalogue 10,000 random SIDs. Rows are
called NAME-bB-mM: B histories at once, M beams; a step is a whole batch.

    library-end     stock generation in JAX (benches/generation.py): states, keys and values of the
                    encoder for every beam, all beams at digit one, an end token after the last
    library         the same without the end token
    shared          the same with keys and values once for a history
    free            one beam at the first digit: our search without a trie
    trie            along the trie
    teacher         along the trie, normalised over the children of a prefix
    heads           SID-MLP, which scores as `teacher` does: MLPs in place of the decoder
    folded          its first layer as tables
    children        and logits of children alone
    mixer           the same after the encoder of SID-MLP++, grouped by position
    mixer-masked    the same as published: every position's MLP on every token
    encoder         the teacher's encoder alone: what `teacher` and the students have in common
    sasrec          a ranker of items: exact products with the whole catalogue, and its best M
    transformers    generate of transformers on PyTorch, the same parameters as `library-end`

Each row from `library-end` to `mixer` differs from the one before in one thing, so ratios of
neighbours are factors of the whole; the whole is timed again on its own (rows WHOLE-...), and the
factors must come to it. Before anything is timed, rows that should find the same beams must.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benches import generation, peer_models, peers
from experiments.configs.rec import sasrec as sasrec_config
from experiments.runner import settings
from experiments.runner.bench import Case, Missing
from rec.decode import beam
from rec.models import sasrec, sid_mlp
from rec.models.sasrec import SASRec
from rec.models.sid_mlp import SidMlp
from rec.models.sid_mlp_pp import Mixer
from rec.models.student_config import DistillConfig, MixerConfig
from rec.models.tiger import Tiger
from rec.sid import trie as tries
from rec.sid.trie import Trie, TrieShape

ITEMS = 10_000  # of the catalogue
FIRST = (32, 50)  # histories and beams of all rows
OTHERS = ((1, 10), (1, 50), (32, 10))  # of the rows of GRID
CHAIN = (
    "library-end",
    "library",
    "shared",
    "free",
    "trie",
    "teacher",
    "heads",
    "folded",
    "children",
    "mixer",
)
GRID = ("library-end", "teacher", "heads", "children", "mixer", "sasrec")
FACTORS = {
    "no end token": ("library-end", "library"),
    "keys and values once": ("library", "shared"),
    "one beam at the first digit": ("shared", "free"),
    "trie": ("free", "trie"),
    "scores of one level": ("trie", "teacher"),
    "MLP heads": ("teacher", "heads"),
    "folding": ("heads", "folded"),
    "children only": ("folded", "children"),
    "encoder of MLPs": ("children", "mixer"),
}
"""What a factor is: the slower and the faster row, which differ in that alone."""
DISTILL = DistillConfig(
    alpha=0.7,
    tau=1.0,
    heads=4,
    inner=384,
    mlp_width=1024,
    head_width=512,
    dropout=0.0,
    control="none",
    brief_teacher="",
)
MIXER = MixerConfig(layers=4, width=2048, dropout=0.0, positions=256, updates=1, form="grouped")
Search = Callable[..., Any]
"""(params, history, mask, users, trie) -> something whose first leaf is codes or items."""


class Row(NamedTuple):
    """Holds what a row runs, for any number of beams."""

    make: Callable[[int], Search]
    params: Any


class Bench(NamedTuple):
    """Holds models, their parameters and the catalogue."""

    teacher: Tiger
    student: SidMlp
    mixed: SidMlp
    params: Mapping[str, Any]
    """{"teacher", "student", "mixed"}; a student's hold its teacher's."""
    trie: Trie
    shape: TrieShape


def make_bench() -> Bench:
    """Makes teacher and students with random parameters; both students have the same heads."""
    teacher = Tiger(generation.CONFIG, generation.SIZES)
    params = generation.initial(teacher)
    student = SidMlp(DISTILL, teacher)
    mixed = student.clone(reader=make_mixer(MIXER))
    one = (*generation.inputs(1, 2, teacher.sizes), jnp.zeros((1, len(teacher.sizes)), jnp.int32))
    of_mixed = {**jax.jit(mixed.init)(jax.random.key(1), *one)["params"], "teacher": params}
    of_student = {name: leaf for name, leaf in of_mixed.items() if name != "reader"}
    trie, shape = tries.build(generation.random_catalogue(ITEMS), teacher.sizes)
    all_params = {"teacher": params, "student": of_student, "mixed": of_mixed}
    return Bench(teacher, student, mixed, all_params, trie, shape)


def make_mixer(cfg: MixerConfig) -> Mixer:
    """Makes the encoder of SID-MLP++; there are neither user tokens nor separators."""
    return Mixer(cfg, len(generation.SIZES), has_user=False, has_separators=False)


def make_rows(bench: Bench) -> dict[str, Row]:
    """Makes {name: what it runs}, in the order of the docstring."""
    params = bench.params
    masked = bench.mixed.clone(reader=make_mixer(dataclasses.replace(MIXER, form="masked")))
    folded = bench.student.clone(folded=True)
    folded_params = sid_mlp.fold(bench.student, params["student"])
    mixed_folded = sid_mlp.fold(bench.mixed, params["mixed"])
    of_teacher = params["teacher"]

    def library(**options: bool) -> Row:
        def make(beams: int) -> Search:
            return lambda params, history, mask, users, trie: generation.library_beams(
                bench.teacher, params, history, mask, users, beams, **options
            )

        return Row(make, of_teacher)

    def ours(model: Any, params: Any, along_trie: bool = True, **options: Any) -> Row:
        def make(beams: int) -> Search:
            search = functools.partial(
                beam.search, model, beams=beams, shape=bench.shape, **options
            )
            if along_trie:
                return search
            return lambda params, history, mask, users, trie: search(params, history, mask, users)

        return Row(make, params)

    children: dict[str, Any] = {"normaliser": "children"}
    alone: dict[str, Any] = {"normaliser": "children", "children_only": True}
    return {
        "library-end": library(has_end=True),
        "library": library(),
        "shared": library(copies_memory=False),
        "free": ours(bench.teacher, of_teacher, along_trie=False, normaliser="full"),
        "trie": ours(bench.teacher, of_teacher, normaliser="full"),
        "teacher": ours(bench.teacher, of_teacher, **children),
        "heads": ours(bench.student, params["student"], **children),
        "folded": ours(folded, folded_params, **children),
        "children": ours(folded, folded_params, **alone),
        "mixer": ours(bench.mixed.clone(folded=True), mixed_folded, **alone),
        "mixer-masked": ours(masked.clone(folded=True), mixed_folded, **alone),
        "encoder": Row(lambda beams: make_encoder(bench.teacher), of_teacher),
        "sasrec": make_sasrec(),
    }


def make_encoder(teacher: Tiger) -> Search:
    """Makes the encoder alone."""

    def encode(
        params: Any, history: jax.Array, mask: jax.Array, users: jax.Array, trie: Any
    ) -> Any:
        del trie
        return teacher.apply({"params": params}, history, mask, users, method="read")

    return encode


def make_sasrec() -> Row:
    """Makes the ranker of configs/rec/sasrec.py over as many items as there are SIDs."""
    cfg = settings.groups(sasrec_config.get_config("base"))["model"]
    cfg = dataclasses.replace(cfg, max_items=generation.ITEMS, dropout=0.0)
    model = SASRec(cfg, ITEMS)
    history = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), history, history == 0)["params"]

    def make(beams: int) -> Search:
        def rank(
            params: Any, history: jax.Array, mask: jax.Array, users: jax.Array, trie: Any
        ) -> Any:
            del users, trie
            # An item for every SID of the random history: any will do.
            items = history[:, :, 0] * 39 + history[:, :, 1] % 39
            scores = sasrec.scores_of(model, params, items, mask)
            return jax.lax.top_k(scores, beams)[1], scores

        return rank

    return Row(make, params)


def check_agreement(bench: Bench, rows: Mapping[str, Row]) -> None:
    """Checks that rows which should find the same beams do.

    Raises:
        ValueError: two of them differ: the comparison would be void.
    """
    for options in ({"has_end": True}, {}, {"copies_memory": False}):
        generation.check_agreement(bench.teacher, bench.params["teacher"], **options)
    batch = generation.inputs(2, 4, bench.teacher.sizes)
    for name, other in (("folded", "heads"), ("children", "folded"), ("mixer-masked", "mixer")):
        found, expected = (
            np.asarray(jax.jit(rows[row].make(10))(rows[row].params, *batch, bench.trie).codes)
            for row in (name, other)
        )
        if not np.array_equal(found, expected):
            raise ValueError(f"{name} finds other beams than {other}: the comparison would be void")


def cases() -> Iterator[Case | Missing]:
    """All rows at FIRST, those of GRID at OTHERS, the ends of the chain again, transformers."""
    bench = make_bench()
    rows = make_rows(bench)
    check_agreement(bench, rows)
    ends = {}
    for name, row in rows.items():
        case = make_case(name, *FIRST, row, bench)
        if name in (CHAIN[0], CHAIN[-1]):
            ends[name] = case
        yield case
    for name in CHAIN[0], CHAIN[-1]:
        yield ends[name]._replace(row=f"WHOLE-{ends[name].row}")
    for size in OTHERS:
        for name in GRID:
            yield make_case(name, *size, rows[name], bench)
    yield make_transformers(label("transformers", *FIRST))


def make_case(name: str, batch_size: int, beams: int, row: Row, bench: Bench) -> Case:
    """Compiles a row for one size."""
    batch = generation.inputs(batch_size, generation.ITEMS, bench.teacher.sizes)
    arguments = (row.params, *batch, bench.trie)
    compiled = jax.jit(row.make(beams)).lower(*arguments).compile()
    flop = generation.flop(compiled)
    memory = compiled.memory_analysis()
    assert memory is not None  # every backend of ours has one
    columns = {
        "beams": beams,
        "flop": flop,
        "gflop_per_user": flop / batch_size / 1e9,
        "temporary_mb": memory.temp_size_in_bytes / 2**20,
        "params": peers.count(row.params),
    }

    def run(repeat: int) -> None:
        del repeat
        jax.block_until_ready(compiled(*arguments))

    return Case(label(name, batch_size, beams), batch_size, 1.0, run, columns, is_latency=True)


def label(name: str, batch_size: int, beams: int) -> str:
    """Names a row."""
    return f"{name}-b{batch_size}-m{beams}"


def make_transformers(name: str) -> Case | Missing:
    """Makes generate of transformers at FIRST with the weights of ours.

    Raises:
        ValueError: it has another loss than ours.
    """
    ours = peer_models.MODELS["tiger"]()
    side = peers.JaxSide(ours)
    peer = peers.make_peer(peers.load_peers(), ours, side.variables())
    if peer is None:
        return Missing(name, peers.NEEDS)
    losses = (side.forward(), peer.forward())
    if not abs(losses[0] - losses[1]) <= peers.SAME_START * abs(losses[0]):
        raise ValueError(f"loss is {losses[0]} here and {losses[1]} in PyTorch: the peer differs")
    columns = {"beams": FIRST[1], "params": peer.num_params}

    def run(repeat: int) -> None:
        del repeat
        peer.generate()

    return Case(name, FIRST[0], 1.0, run, columns, is_latency=True)


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Speeds against each other, above 1 the first named is faster; a factor is times faster."""
    rate = {row["row"]: row["steps_per_s"] for row in rows}
    seconds = {name: 1 / value for name, value in rate.items()}
    flops = {row["row"]: row["flop"] for row in rows if "flop" in row}
    at = functools.partial(label, batch_size=FIRST[0], beams=FIRST[1])
    out = {
        f"factor: {what}": rate[at(fast)] / rate[at(slow)] for what, (slow, fast) in FACTORS.items()
    }
    product = float(np.prod(list(out.values())))
    whole = rate[f"WHOLE-{at(CHAIN[-1])}"] / rate[f"WHOLE-{at(CHAIN[0])}"]
    out |= {"factors multiplied": product, "the whole, timed on its own": whole}
    pairs = {
        "teacher / library": ("teacher", "library-end"),
        "SID-MLP / teacher": ("heads", "teacher"),
        "SID-MLP, folded, children only / teacher": ("children", "teacher"),
        "SID-MLP, folded, children only / SID-MLP": ("children", "heads"),
        "SID-MLP++ / teacher": ("mixer", "teacher"),
        "SID-MLP++ as published / teacher": ("mixer-masked", "teacher"),
        "SASRec, exact / SID-MLP, folded, children only": ("sasrec", "children"),
        "teacher / transformers": ("teacher", "transformers"),
        "SID-MLP, folded, children only / transformers": ("children", "transformers"),
        "library in JAX / transformers": ("library-end", "transformers"),
    }
    for what, (fast, slow) in pairs.items():
        if at(slow) in rate:
            out[what] = rate[at(fast)] / rate[at(slow)]
    alone = {name: seconds[at(name)] - seconds[at("encoder")] for name in ("teacher", "heads")}
    alone["children"] = seconds[at("children")] - seconds[at("encoder")]
    out["SID-MLP / teacher, without the encoder"] = alone["teacher"] / alone["heads"]
    out["folded, children only / teacher, without the encoder"] = (
        alone["teacher"] / alone["children"]
    )
    out["time along the trie / free"] = seconds[at("trie")] / seconds[at("free")]
    out["flop of library / teacher"] = flops[at("library-end")] / flops[at("teacher")]
    out["flop of teacher / SID-MLP"] = flops[at("teacher")] / flops[at("heads")]
    return out
