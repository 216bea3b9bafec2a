# SPDX-License-Identifier: Apache-2.0
"""README's table, pages and plots: as the result files have it, right for files made by hand."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments import tables
from experiments.runner import (
    result_files,
    result_pages,
    result_rows,
    result_series,
    result_tables,
    verdict,
)
from experiments.runner.about import Headline
from experiments.runner.errors import UserError
from experiments.runner.pages import markdown_table
from experiments.runner.result_rows import Row, Shown


def run_file(seed: int, success: float, **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "system": "banyan",
        "variant": "base",
        "config_hash": f"hash{seed}",
        "seed": seed,
        "step": 500,
        "metrics": {"d1/end/success": success, "d1/end/dead_end": 0.5},
        "per_seed": {},
        "paper": {"d1/end/success": [0.54, 0.11], "source": "draft table 1"},
        "wall_s": 187.0,
        "device": "1 x cpu",
        "commit": "abc",
        **changes,
    }


BENCH = {
    "bench": "loop",
    "device": "1 x cpu",
    "versions": {"jax": "0.10.2", "python": "3.11.7"},
    "commit": "abc",
    "rows": [
        {"row": "bare", "envs": 0, "steps_per_s": 12.345, "spread": 0.02, "first_call_s": 1.25},
        {"row": "fast", "envs": 8, "steps_per_s": 1234567.0, "spread": 0.02, "first_call_s": 1.25},
    ],
    "ratios": {"loop / bare": 0.9876},
    "not_measured": {"peer@8": "missing: pip install it"},
}
CHECK = {
    "check": "banyan_learns",
    "criterion": "it learns",
    "commit": "abc",
    "device": "1 x cpu (2 cores)",
    "conditions": {
        "64 trees": {
            "runs": [
                {
                    "command": "python experiments/run.py --config=banyan",
                    "metrics": {"d1/end/success": value},
                    "wall_s": 60.0,
                }
                for value in (0.9, 1.0)
            ]
        }
    },
}


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        path = folder / (name.replace("__", "/") + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def found() -> result_files.Found:
    return result_files.read(tables.RESULTS)


@pytest.fixture(scope="module")
def series(found: result_files.Found) -> dict[str, Any]:
    return tables.read_series(found, tables.RESULTS)


def test_readme_and_pages_are_up_to_date() -> None:
    """If this fails: python experiments/tables.py"""
    assert tables.stale(tables.texts_of(tables.README, tables.RESULTS)) == []


def test_no_page_is_left_over() -> None:
    names = {path.name for path in tables.RESULTS.glob("*.md")}
    assert names == {path.name for path in tables.texts_of(tables.README, tables.RESULTS)}


def test_every_system_has_a_row() -> None:
    assert result_rows.missing() == set()


def test_plots_hold_the_numbers_of_the_files(series: dict[str, Any]) -> None:
    """If this fails: python experiments/tables.py --plots"""
    assert tables.stale_plots(tables.RESULTS) == []
    assert set(series) == {path.stem for path in (tables.RESULTS / "plots").glob("*.svg")}
    for plot in result_series.PLOTS:
        text = (tables.RESULTS / "plots" / f"{plot.name}.svg").read_text(encoding="utf-8")
        assert len(text.encode()) <= 60 * 1024, plot.name
        assert "<title" in text and "<desc" in text and "<script" not in text
        assert len(plot.alt(series[plot.name])) > 40


def test_a_changed_number_is_found(tmp_path: Path, series: dict[str, Any]) -> None:
    """In a page, in a picture and in a result file."""
    results = tmp_path / "results"
    shutil.copytree(tables.RESULTS, results, ignore=shutil.ignore_patterns("checkpoints"))
    readme = tmp_path / "README.md"
    shutil.copy(tables.README, readme)
    assert tables.stale(tables.texts_of(readme, results)) == [] == tables.stale_plots(results)
    page = results / "tiger.md"
    words = page.read_text(encoding="utf-8")
    assert "0.3124" in words
    page.write_text(words.replace("0.3124", "0.4124"), encoding="utf-8")
    assert tables.stale(tables.texts_of(readme, results)) == [page]
    picture = results / "plots" / "recall.svg"
    value = str(series["recall"]["baselines"]["content"])
    text = picture.read_text(encoding="utf-8")
    assert value in text
    picture.write_text(text.replace(value, "0.9", 1), encoding="utf-8")
    assert tables.stale_plots(results) == [picture]
    check = results / "graph_power.json"
    content = json.loads(check.read_text())
    content["conditions"]["Power"]["runs"][0]["metrics"]["test/mrr"] = 0.9
    check.write_text(json.dumps(content))
    stale = {path.name for path in tables.stale(tables.texts_of(readme, results))}
    assert {"README.md", "pencil.md", "links.svg"} <= stale | {
        path.name for path in tables.stale_plots(results)
    }


@pytest.mark.deep
def test_plots_are_drawn_alike_twice(found: result_files.Found, series: dict[str, Any]) -> None:
    """Other bytes than in the repository mean another matplotlib; two draws here are the same."""
    from experiments.runner import result_plots

    for plot in result_series.PLOTS:
        text = result_plots.svg(plot, series[plot.name])
        assert text == result_plots.svg(plot, copy.deepcopy(series[plot.name])), plot.name
        assert result_series.data_in(text) == series[plot.name]


LINE = Headline("m", "higher", "A number.", ("low/m", "high/m"))


def compared(
    runs: list[dict[str, float]], line: Headline = LINE, condition: str = "c"
) -> verdict.Compared:
    """The metric m of runs of a check, beside the best of two rows."""
    row = Shown("x", "check.json", condition, "m")
    return result_rows.compared_in(checked(runs), row, line)


def checked(runs: list[dict[str, float]]) -> result_files.Found:
    found: result_files.Found = {kind: {} for kind in result_files.KINDS}
    members = [{"metrics": metrics, "command": "x"} for metrics in runs]
    found["checks"]["check.json"] = {"conditions": {"c": {"runs": members}}}
    return found


def test_verdicts_compare_with_the_best_row() -> None:
    three = [{"m": x, "low/m": 0.1, "high/m": 0.5} for x in (0.2, 0.3, 0.4)]
    worse = compared(three)
    assert worse.reference == "high/m" and worse.value == 0.5
    assert worse.verdict("higher").startswith("BELOW: -.200 [-.300, -.100] over 3 seeds")
    better = compared(three, LINE._replace(better="lower"))
    assert better.reference == "low/m" and better.verdict("lower").startswith(
        "ABOVE (worse): +.200"
    )
    equal = [{"m": x, "low/m": 0.3, "high/m": 0.3} for x in (0.2, 0.3, 0.4)]
    assert compared(equal).word("higher") == "no difference"
    one = compared(three[:1])
    assert one.verdict("higher") == "BELOW by .300; one seed, no interval"


def test_a_stored_interval_is_shown_at_its_widest() -> None:
    runs = [
        {"m": 0.7, "high/m": 0.5, "m/minus_high/low": low, "m/minus_high/high": 0.3}
        for low in (0.1, -0.05)
    ]
    told = compared(runs)
    assert (told.low, told.high, told.over) == (-0.05, 0.3, "over users")
    assert told.verdict("higher") == "no difference: +.200 [-.050, .300] over users"


def test_a_row_without_its_file_is_named() -> None:
    with pytest.raises(UserError, match="no condition 'd'"):
        compared([{"m": 1.0}], condition="d")
    with pytest.raises(UserError, match="none of low/m, high/m"):
        compared([{"m": 1.0}])
    empty = [Row("sid", "", None)]
    text = result_rows.results_table(checked([]), rows=empty)
    assert "| [sid](sid.md) |  | no result file |  | not measured |" in text


def test_commands_of_old_files_name_systems_as_today() -> None:
    old = "python experiments/run.py --config=experiments/configs/rec/tiger.py:tiny --config.seed=0"
    assert (
        result_files.today(old) == "python experiments/run.py --config=tiger:tiny --config.seed=0"
    )


def test_pages_are_about_their_system(found: result_files.Found, series: dict[str, Any]) -> None:
    pages = result_pages.pages(found, series)
    for name, text in pages.items():
        assert "python experiments/tables.py" in text.splitlines()[2], name
    assert "plots/recall.svg" in pages["tiger.md"] and "above: +" in pages["tiger.md"]
    assert "Not measured" in pages["sid.md"] and "criterion" not in pages["sid.md"]
    strip = result_pages.readme_strip(series, "experiments/results/")
    assert strip.count("<img ") == 4


def blocks(found: result_files.Found) -> dict[str, str]:
    """Tables by kind, as pages hold them."""
    return {
        "results": markdown_table(result_tables.runs_table(found["results"].values())),
        "checks": "\n".join(map(result_tables.check_text, found["checks"].values())),
        "benches": "\n".join(map(result_tables.bench_text, found["benches"].values())),
        "shortcuts": markdown_table(result_tables.shortcuts_table(found["shortcuts"])),
        "compiles": result_tables.compiles_text(found["compiles"]),
        "jitter": "\n".join(map(result_tables.jitter_text, found["jitter"].values())),
    }


def test_seeds_of_a_config_share_a_row(tmp_path: Path) -> None:
    found = result_files.read(write(tmp_path, a=run_file(0, 0.5), b__results=run_file(1, 0.7)))
    lines = blocks(found)["results"].splitlines()
    assert lines[2:] == [
        "| banyan:base | d1/end/success | 0.5400 ± 0.1100 | 0.6000 ± 0.1414 (2 seeds) | 500 | "
        "3m07s | 1 x cpu | abc |"
    ]


def test_seeds_side_by_side_and_what_was_not_measured(tmp_path: Path) -> None:
    side = run_file(0, 0.6, per_seed={"d1/end/success": [0.5, 0.7]}, commit="def")
    other = run_file(1, 0.1, step=9, metrics={"gap/2": 0.25})
    lines = blocks(result_files.read(write(tmp_path, a=side, b=other)))["results"].splitlines()
    assert "| not measured | 9 |" in lines[2]
    assert "| gap/2 |  | 0.2500 (1 seed) | 9 |" in lines[3]
    assert "0.6000 ± 0.1414 (2 seeds) | 500 |" in lines[4] and "def" in lines[4]


def test_bench_shows_ratios_first_and_reasons_last(tmp_path: Path) -> None:
    text = blocks(result_files.read(write(tmp_path, bench_loop=BENCH)))["benches"]
    assert text.index("| loop / bare | 0.988 |") < text.index("| bare | 12.35 |")
    assert "| fast@8 | 1,234,567 | 2.0% | 1.2 s |" in text
    assert text.splitlines()[-1] == "| peer@8 | not measured |  | missing: pip install it |"


def test_checks_show_their_conditions(tmp_path: Path) -> None:
    text = blocks(result_files.read(write(tmp_path, banyan_learns=CHECK)))["checks"]
    assert "**banyan\\_learns** on 1 x cpu (2 cores), commit abc: it learns" in text
    assert "| condition | seeds | d1/end/success | wall time of a run |" in text
    assert "| 64 trees | 2 | 0.9500 ± 0.0707 | 1m00s |" in text


def test_one_run_over_splits_shows_their_deviation(tmp_path: Path) -> None:
    metrics = {"cn/test/auc": 0.5, "cn/test/auc/std": 0.025, "ra/test/auc": 0.75}
    run = {"metrics": metrics, "wall_s": 60.0, "seed": 0}
    run["command"] = "python experiments/run.py --config=graph_heuristics"
    check = {**CHECK, "conditions": {"ten splits": {"runs": [run]}}}
    text = blocks(result_files.read(write(tmp_path, a=check)))["checks"]
    assert "| ten splits | 1 | 0.5000 ± 0.0250 | 0.7500 |" in text


def test_shortcuts_are_shares(tmp_path: Path) -> None:
    count = {"shortcuts": {"2": 7, "3": 30}, "topology": "random", "trees": 1000, "seed": 0}
    other = {"shortcuts": {"3": 1}, "topology": "balanced", "trees": 10, "seed": 0}
    text = blocks(result_files.read(write(tmp_path, a=count, b=other)))["shortcuts"]
    assert "| topology | trees per depth | depth 2 | depth 3 |" in text
    assert "| random | 1,000 | 0.7% | 3.0% |" in text
    assert "| balanced | 10 | not measured | 10.0% |" in text


def test_compiled_programs_and_their_growth(tmp_path: Path) -> None:
    one = {
        "chip": "v5e",
        "T": 32768,
        "D": 64,
        "backward": True,
        "block_q": 512,
        "block_kv": 256,
        "within_vmem": True,
        "temporary_bytes": 3 << 20,
    }
    memory = {
        "chip": "v5e",
        "T": [8192, 16384],
        "growth": [2.011],
        "dense": {"T": [8192, 16384], "growth": [3.998]},
    }
    versions = {"jax": "0.10.2", "libtpu": "0.0.42"}
    result = {"compiled": [one], "memory": memory, "versions": versions}
    text = blocks(result_files.read(write(tmp_path, aot=result)))["compiles"]
    assert "| v5e | forward + backward | 32,768 | 64 | 512 x 256 | yes | 3 MiB |" in text
    assert "from T=8,192 to 16,384 grow by 2.01;" in text and "by 4.00. jax 0.10.2" in text


def test_draws_of_last_bits_are_a_row_per_figure(tmp_path: Path) -> None:
    figure = {"side": "<=", "bound": 0.06, "plain": 0.03, "worst": 0.0312}
    result = {
        "jitter": "times 1 + 1e-7 n",
        "draws": 10,
        "device": "cpu (2 cores)",
        "commit": "abc",
        "tests": {
            "tests/a_test.py::test_x": {
                "cases": 2,
                "flips": 1,
                "figures": {"loss <= 0.06": figure},
            },
            "tests/a_test.py::test_y": {"cases": 1, "flips": 0, "figures": {}},
        },
    }
    text = blocks(result_files.read(write(tmp_path, jitter=result)))["jitter"]
    assert text.startswith("Times 1 + 1e-7 n; cpu (2 cores), commit abc.")
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines()[-2:]]
    assert rows[0] == ["2", "loss &lt;= 0.06", "0.0312", "1 of 10"]
    assert rows[1] == ["1", "the same bits", "", "0 of 10"]


def test_nothing_measured_names_the_command(tmp_path: Path) -> None:
    empty = result_files.read(tmp_path)
    pages = [result_pages.bench_page(empty, {}), result_pages.compiles_page(empty)]
    pages.append(result_pages.tests_page(empty))
    for kind, text in zip(("benches", "compiles", "jitter"), pages, strict=True):
        assert f"Not measured yet: `{result_pages.COMMANDS[kind]}`" in text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"bad": "{"}, "bad.json is damaged"),
        ({"odd": {"what": 1}}, "odd.json: no result"),
        ({"a": run_file(0, 0.5), "b": run_file(0, 0.5)}, "b.json has the same config and seed"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        result_files.read(write(tmp_path, **files))


def test_fill_replaces_blocks_and_nothing_else() -> None:
    block = "<!-- {0}:begin -->\nold\n<!-- {0}:end -->\n"
    readme = "top\n" + "\n".join(block.format(name) for name in tables.BLOCKS) + "end\n"
    texts = {name: f"{name} new\n" for name in tables.BLOCKS}
    filled = tables.fill(readme, texts)
    assert filled.startswith("top\n") and filled.endswith("end\n") and "old" not in filled
    assert all(f"<!-- {name}:begin -->\n{text}" in filled for name, text in texts.items())
    assert tables.fill(filled, texts) == filled
    with pytest.raises(UserError, match="needs one block"):
        tables.fill("no blocks\n", texts)


def test_command_compares_and_rewrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    shutil.copytree(tables.RESULTS, results, ignore=shutil.ignore_patterns("checkpoints", "*.md"))
    block = "<!-- {0}:begin -->\n<!-- {0}:end -->\n"
    readme = tmp_path / "README.md"
    readme.write_text("".join(block.format(name) for name in tables.BLOCKS))
    monkeypatch.setattr(tables, "README", readme)
    monkeypatch.setattr(tables, "RESULTS", results)
    assert tables.main(["--check"]) == 1
    assert "README.md" in capsys.readouterr().out
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    assert "all up to date" in capsys.readouterr().out
    (results / "plots" / "gap.svg").unlink()
    assert tables.main(["--check"]) == 1
