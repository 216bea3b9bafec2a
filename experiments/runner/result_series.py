# SPDX-License-Identifier: Apache-2.0
"""What the plots of experiments/results show: numbers taken from the result files, and alt texts.

Each plot is drawn from its data alone (result_plots.py) and holds them as JSON, so a test compares
a picture with the files.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from experiments.runner.comparison import difference
from experiments.runner.result_files import Found, members_of, system_of
from experiments.runner.result_rows import references_of
from experiments.runner.verdict import Run, brief

Data = Mapping[str, Any]
Lines = Mapping[str, Sequence[Mapping[str, Any]]]
"""{path under the folder: lines of a kept run's metrics.jsonl}."""


def rounded(value: Any) -> Any:
    """Six significant digits, which JSON keeps."""
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _metric(runs: Sequence[Run], name: str) -> list[float]:
    return [run["metrics"][name] for run in runs]


def shift(found: Found, lines: Lines) -> Data:
    """Success on both distributions before, between and after training on them."""
    runs = members_of(found, "banyan:base")
    keys = ("untrained", "after1", "after2")
    base = {d: [_metric(runs, f"{k}/{d}/success") for k in keys] for d in ("d1", "d2")}
    curve = [line for line in lines["banyan-small/metrics.jsonl"] if line["split"] == "valid"]
    last = max(line["step"] for line in curve)
    small = {
        "phases": [2 * line["step"] / last for line in curve],
        **{d: [line[f"valid/{d}/success"] for line in curve] for d in ("d1", "d2")},
    }
    return {"base": base, "small": small}


def _shift_alt(data: Data) -> str:
    d2 = [fmean(values) for values in data["base"]["d2"]]
    d1 = [fmean(values) for values in data["base"]["d1"]]
    return (
        f"Banyan, {len(data['base']['d1'][0])} seeds: success on the first layouts rises from "
        f"{brief(d1[0])} to {brief(d1[1])}; on the next layouts it is {brief(d2[1])} at the shift, "
        f"{brief(d2[2])} after training there."
    )


def gap(found: Found, _: Lines) -> Data:
    """Gap at the shift by seed, and the bounds of the learning check."""
    panels = {}
    for axis in ("layouts", "objects"):
        check = found["checks"][f"banyan_{axis.removesuffix('s')}_gap.json"]
        points = {
            int(condition.partition("=")[2]): _metric(result["runs"], "gap/2")
            for condition, result in check["conditions"].items()
        }
        bounds = re.findall(r"gap\((\d+)\) ([<>]=) (\.\d+)", check["criterion"])
        panels[axis] = {
            "sizes": sorted(points),
            "gaps": [points[size] for size in sorted(points)],
            "bounds": [[int(size), side, float(bound)] for size, side, bound in bounds],
        }
    return panels


def _gap_alt(data: Data) -> str:
    words = []
    for axis, panel in data.items():
        means = [brief(fmean(values)) for values in panel["gaps"]]
        sizes = ", ".join(map(str, panel["sizes"]))
        words.append(f"{' / '.join(means)} with {sizes} {axis}")
    return (
        f"Loss of success at a shift shrinks with diversity: {'; '.join(words)}; pass lines shown."
    )


def recall(found: Found, _: Lines) -> Data:
    """recall@10 on Beauty's 8-core with the intervals over users that each run stores."""
    name = "test/recall@10"
    rows = {}
    for label, file, condition in (
        ("SASRec", "rec_sasrec_beauty.json", "sasrec"),
        ("TIGER", "rec_tiger_beauty.json", "tiger"),
        ("TIGER, shuffled SIDs", "rec_tiger_beauty.json", "shuffled SIDs"),
    ):
        runs = members_of(found, file, condition)
        keys = (name, f"{name}/low", f"{name}/high")
        rows[label] = [[run["metrics"][key] for key in keys] for run in runs]
    (baselines,) = members_of(found, "rec_baselines:base")
    references = references_of("tiger", name)
    grey = {key.partition("/")[0]: baselines["metrics"][key] for key in references}
    return {"learned": rows, "baselines": grey}


def _recall_alt(data: Data) -> str:
    means = {label: fmean([r[0] for r in rows]) for label, rows in data["learned"].items()}
    best = max(data["baselines"], key=data["baselines"].__getitem__)
    learned = ", ".join(f"{label} {brief(mean)}" for label, mean in means.items())
    return (
        f"recall@10 on Beauty's 8-core: {learned}; best baseline without training: "
        f"{best.replace('cooccurrence', 'co-occurrence')} {brief(data['baselines'][best])}."
    )


def _best(runs: Sequence[Run], metric: str) -> str:
    references = references_of("pencil", f"test/{metric}")
    measured = [key for key in references if all(key in run["metrics"] for run in runs)]
    return max(measured, key=lambda key: fmean(_metric(runs, key))).partition("/")[0]


def links(found: Found, _: Lines) -> Data:
    """Learned predictors minus the best heuristic of the graph: [mean, low, high] by metric."""
    graphs: dict[str, Any] = {}
    for label, file in (
        ("USAir, 10 splits", "graph_usair_splits.json"),
        ("Citeseer", "graph_citeseer.json"),
        ("Pubmed", "graph_pubmed.json"),
        ("Power", "graph_power.json"),
        ("Router", "graph_router.json"),
    ):
        conditions = found["checks"][file]["conditions"]
        runs_of = {system_of(c["runs"][0]): c["runs"] for c in conditions.values()}
        graphs[label] = {}
        for metric in ("auc", "mrr"):
            best = _best(runs_of["pencil"], metric)  # only PENCIL's runs hold all heuristics
            heuristic = _metric(runs_of["pencil"], f"{best}/test/{metric}")
            gaps = {}
            for system, runs in runs_of.items():
                ours = _metric(runs, f"test/{metric}")
                pairs = [
                    {(i, 0): value for i, value in enumerate(values)}
                    for values in (heuristic, ours)
                ]
                told = difference(pairs[0], pairs[1])
                gaps[system] = [told.mean] if len(ours) == 1 else [told.mean, told.low, told.high]
            graphs[label][metric] = {"heuristic": best, "gaps": gaps}
    return graphs


def _links_alt(data: Data) -> str:
    words = []
    for metric in ("auc", "mrr"):
        gaps = {graph: panel[metric]["gaps"]["pencil"][0] for graph, panel in data.items()}
        listed = ", ".join(f"{graph} {brief(value, sign=True)}" for graph, value in gaps.items())
        words.append(f"{metric.upper()} {listed}")
    return f"PENCIL minus the best heuristic of each graph: {'; '.join(words)}."


def kinds(found: Found, _: Lines) -> Data:
    """Validation loss and share of exact zeros of every kind of attention, by seed."""
    conditions = found["checks"]["lm_kinds.json"]["conditions"]
    points = {}
    for kind, result in conditions.items():
        runs = result["runs"]
        points[kind] = {
            "zeros": _metric(runs, "valid/zeros"),
            "loss": _metric(runs, "valid/loss"),
        }
    bigram = conditions["softmax"]["runs"][0]["metrics"]["valid/loss/bigram"]
    return {"kinds": points, "bigram": bigram}


def _kinds_alt(data: Data) -> str:
    words = []
    for kind in ("softmax", "entmax15", "tda"):
        point = data["kinds"][kind]
        loss = brief(fmean(point["loss"]))
        zeros = fmean(point["zeros"])
        words.append(f"{kind} {loss} with {zeros:.0%} exact zeros")
    return (
        f"Loss against exact zeros of {len(data['kinds'])} attention settings after 300 updates: "
        f"{'; '.join(words)}; counting pairs {brief(data['bigram'])}."
    )


def passkey(found: Found, _: Lines) -> Data:
    """Accuracy by length, trained at the shortest."""
    conditions = found["checks"]["passkey_lengths.json"]["conditions"]
    name = "lengths/accuracy@"
    first = next(iter(conditions.values()))["runs"][0]["metrics"]
    lengths = sorted(int(key.removeprefix(name)) for key in first if key.startswith(name))
    lines = {
        kind: [result["runs"][0]["metrics"][f"{name}{length}"] for length in lengths]
        for kind, result in conditions.items()
    }
    return {"lengths": lengths, "accuracy": lines, "chance": first["valid/accuracy/chance"]}


def _passkey_alt(data: Data) -> str:
    listed = ", ".join(f"{kind} {brief(values[-2])}" for kind, values in data["accuracy"].items())
    return (
        f"Passkey accuracy at {data['lengths'][-2]} tokens after training at {data['lengths'][0]}, "
        f"one seed each: {listed}."
    )


RATIOS = (
    # bench, beginning of the ratio's name, label; above 1 is faster than the peer. Of several sizes
    # or settings of a peer, the one least in our favor.
    ("bench_rec_cpu.json", "constrained beams / library", "trie beams / library"),
    ("bench_rec_cpu.json", "train step / bare optax", "TIGER's step / bare optax"),
    ("bench_peers_cpu.json", "lm train: time ours / PyTorch", "LM / PyTorch"),
    ("bench_peers_cpu.json", "sasrec train: time ours / PyTorch", "SASRec / PyTorch"),
    ("bench_peers_cpu.json", "tiger train: time ours / PyTorch", "TIGER / PyTorch"),
    ("bench_peers_cpu.json", "pencil train: time ours / PyTorch", "PENCIL / PyTorch"),
    ("bench_loop_cpu.json", "frame / bare", "runner / bare loop"),
    ("bench_banyan_cpu.json", "ppo-update-base / ppo-bare-optax", "PPO update / bare optax"),
    ("bench_banyan_cpu.json", "xminigrid-XLand-R1-9x9-1rule@1024", "Banyan / XLand-MiniGrid"),
    ("bench_banyan_cpu.json", "navix-Empty-8x8@1024", "Banyan / NAVIX Empty"),
    ("bench_attention_cpu.json", "T1024-d64 dense bwd: tda xla / soft", "TDA / softmax"),
    ("bench_attention_cpu.json", "S8192-d64 decode: sketch / softmax", "sketch / softmax decoding"),
    ("bench_sampler_cpu.json", "device / host, USAir", "device / host, USAir"),
    ("bench_sampler_cpu.json", "device / host, citeseer", "device / host, Citeseer"),
)  # fmt: skip


def ratios(found: Found, _: Lines) -> Data:
    """Ratios of rates, label by label; those of times are turned over."""
    rows = {}
    for file, beginning, label in RATIOS:
        measured = found["benches"][file]["ratios"]
        (key,) = [key for key in measured if key.startswith(beginning)]
        rows[label] = 1 / measured[key] if ": time " in key else measured[key]
    return rows


def _ratios_alt(data: Data) -> str:
    faster = [label for label, value in data.items() if value > 1]
    return (
        f"Speed against a peer in the same run on a CPU, {len(data)} ratios from "
        f"{min(data.values()):.2g} to {max(data.values()):.2g}; {len(faster)} are above 1."
    )


class Plot(NamedTuple):
    """One picture."""

    name: str
    title: str
    data: Callable[[Found, Lines], Data]
    alt: Callable[[Data], str]
    """Data -> what a reader who does not see it has to know."""
    pages: tuple[str, ...]
    """Pages that show it, the first is linked from README."""
    in_readme: bool = False


PLOTS = (
    Plot("shift", "Success across a shift", shift, _shift_alt, ("banyan",), True),
    Plot("gap", "Diversity closes the gap", gap, _gap_alt, ("banyan",)),
    Plot("recall", "recall@10, Beauty 8-core", recall, _recall_alt,
         ("tiger", "sasrec", "rec_baselines"), True),
    Plot("links", "Minus the best heuristic", links, _links_alt,
         ("pencil", "seal", "ncn", "gnn", "graph_heuristics"), True),
    Plot("kinds", "Loss against exact zeros", kinds, _kinds_alt, ("lm",), True),
    Plot("passkey", "Passkey beyond the training length", passkey, _passkey_alt, ("passkey",)),
    Plot("ratios", "Speed against a peer", ratios, _ratios_alt, ("bench",)),
)  # fmt: skip


def all_series(found: Found, lines: Lines) -> dict[str, Data]:
    """{name of the plot: its data, rounded}."""
    return {plot.name: rounded(plot.data(found, lines)) for plot in PLOTS}


BEGIN = '<metadata id="data"><![CDATA['
END = "]]></metadata>"


def data_in(svg: str) -> Any:
    """The data that a drawn picture holds; None where it holds none."""
    before, _, rest = svg.partition(BEGIN)
    text, end, _ = rest.partition(END)
    return json.loads(text) if before and end else None
