# SPDX-License-Identifier: Apache-2.0
"""The pages: complete, harmless, true to the files. The statistics: exact where that can be had."""

import base64
import copy
import html.parser
import io
import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.runner import compare, comparison, folder, pages, plots, report, settings
from experiments.runner.about import About, Headline
from experiments.runner.contract import Picture, Rows
from experiments.runner.errors import UserError
from experiments.runner.writer import open_writer
from tests import toy

EVIL = '</td><script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)>'
CONFIG = {
    "system": "toy",
    "variant": "tiny",
    "seed": 0,
    "num_seeds": 1,
    "mesh": [-1, 1],
    "data": {"root": ""},
    "train": {"steps": 4},
    "optim": {"lr": 0.1, "note": EVIL},
    "log": {"every": 1},
}
METRICS = {"test/recall@10": 0.123456789, "test/recall@5": 0.0625, EVIL: 2e-7}


HEADLINE = (
    Headline("test/recall@5", "higher", "Found among five: " + EVIL, ("test/recall@10", "none")),
    Headline("absent", "lower", "Never measured."),
)
ABOUT = About("Who knows? " + EVIL, {"tiny": "1 s"}, "dots, free to use", "none", "always")


def run_folder(path: Path, seed: int = 0, lr: float = 0.1, metrics: Any = METRICS,
               per_seed: Any = None, steps: int = 4) -> Path:  # fmt: skip
    config = copy.deepcopy(CONFIG)
    config |= {"seed": seed, "optim": {"lr": lr, "note": EVIL}}
    with open_writer(path, {"every_s": 1e9}, steps) as out:
        for step in range(1, steps + 1):
            out.write(step, "train", {"loss": np.array([1.0 / step, 2.0 / step]), EVIL: step}, 0.1)
            out.write(step, "valid", {"valid/recall@10": 0.1 * step}, {"wall": step, "step": 0.5})
    (path / "config.json").write_text(json.dumps(config))
    env = {"versions": {"jax": "0.10.2"}, "devices": ["cpu", "cpu"], "commit": "abc+dirty"}
    (path / "env.json").write_text(json.dumps(env))
    (path / "command.txt").write_text(f"python experiments/run.py --config=x {EVIL}\n")
    results = {
        "schema": 1, "system": "toy", "variant": "tiny", "seed": seed, "step": steps,
        "config_hash": settings.config_hash(config), "metrics": metrics,
        "per_seed": per_seed or {}, "checkpoint_of": dict.fromkeys(metrics, 3),
        "paper": {"test/recall@10": 0.15, "test/absent": [0.5, 0.01], "source": "table 1"},
        "params": 1234, "wall_s": 100.0, "compile_s": 10.0, "steps_per_s": 2.5,
        "time_s": {"step": 60.0, "data": 5.0, "eval": 5.0, "checkpoint": 1.0, "compile": 10.0},
        "device": "2 x cpu", "commit": "abc+dirty",
    }  # fmt: skip
    (path / "results.json").write_text(json.dumps(results))
    return path


def image(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (3, 2), (255, 0, 0)).save(out, kind)
    return out.getvalue()


class Page(html.parser.HTMLParser):
    """Elements, texts of table rows, and everything a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.titles: list[str] = []
        self._cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.titles.append(dict(attrs).get("title") or "")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data

    def images(self) -> list[bytes]:
        sources = [attrs["src"] or "" for tag, attrs in self.elements if tag == "img"]
        return [base64.b64decode(source.partition("base64,")[2]) for source in sources]


def assert_harmless(page: Page) -> None:
    allowed = {
        "html head meta title style body main h1 h2 h3 div b span pre p table thead tbody tr th td "
        "figure img figcaption details summary"
    }
    assert {tag for tag, _ in page.elements} <= set(" ".join(allowed).split())
    for tag, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        for name in ("src", "href", "srcset", "action"):
            assert (attrs.get(name) or "data:image/").startswith("data:image/"), (tag, attrs)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = run_folder(
        tmp_path_factory.mktemp("run"), per_seed={"test/recall@5": [0.05, 0.075]}
    )  # fmt: skip
    base = copy.deepcopy(CONFIG) | {"variant": "base", "optim": {"lr": 0.01, "note": EVIL}}
    figures = {
        "Rooms " + EVIL: Picture(image("PNG"), "Rooms of " + EVIL),
        "Roll": Picture(image("GIF"), "A film."),
    }
    report.write_report(path, figures, base)
    return path


def test_page_loads_nothing_and_escapes_everything(full: Path) -> None:
    text = (full / "report.html").read_text()
    page = Page(text)
    assert_harmless(page)
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text
    assert EVIL in [cell for row in page.rows for cell in row], "shown as text, unharmed"
    markdown = (full / "report.md").read_text()
    fenced = markdown.split("```")
    assert "<script" not in "".join(fenced[::2]), "outside the command nothing is raw"


def test_page_holds_png_gif_and_curves(full: Path) -> None:
    images = Page((full / "report.html").read_text()).images()
    assert image("PNG") in images and image("GIF") in images
    curves = [data for data in images if data not in (image("PNG"), image("GIF"))]
    assert len(curves) == 3  # recall, loss, the evil one
    for data in curves:
        Image.open(io.BytesIO(data)).verify()


def test_numbers_are_those_of_the_results(full: Path) -> None:
    page = Page((full / "report.html").read_text())
    rows = {row[0]: row for row in page.rows}
    assert rows["test/recall@10"] == ["test/recall@10", "0.1235", "0.1500", "table 1", "3"]
    assert repr(METRICS["test/recall@10"]) in page.titles, "all digits on hover"
    std = 0.025 / math.sqrt(2)
    assert rows["test/recall@5"][1] == f"0.0625 ± {std:.4f}"
    assert rows["test/absent"] == ["test/absent", "not measured", "0.5000 ± 0.0100", "table 1", ""]
    assert rows[EVIL][1] == "2e-07"
    names = [row[0] for row in page.rows]
    assert names.index("test/recall@10") < names.index("test/recall@5"), "the paper's first"
    markdown = (full / "report.md").read_text()
    assert "| **test/recall@10** | **0.1235** | 0.1500 | table 1 | 3 |" in markdown


def test_header_timing_and_config_difference(full: Path) -> None:
    text = (full / "report.html").read_text()
    page = Page(text)
    for piece in ("toy:tiny", "2 x cpu", "1m40s", "10s", "1,234", "2.5"):
        assert f">{piece}<" in text, piece
    assert "<span class=warn>abc+dirty</span>" in text
    rows = {row[0]: row for row in page.rows}
    assert rows["step"] == ["step", "60.0", "60.0 %"]
    assert rows["other"] == ["other", "19.0", "19.0 %"]
    difference = [row for row in page.rows if row[0] == "optim.lr"]
    assert ["optim.lr", "0.01", "0.1"] in difference
    assert ["optim.note"] not in [row[:1] for row in page.rows if len(row) == 3]


@pytest.mark.parametrize("figure", [Picture(image("PNG"), " "), Rows(("a",), (("b",),), "")])
def test_a_figure_without_a_caption_is_refused(figure: Picture | Rows, tmp_path: Path) -> None:
    path = run_folder(tmp_path)
    with pytest.raises(ValueError, match="'x' has no caption"):
        report.write_report(path, {"x": figure})
    assert not (path / "report.html").exists() and not (path / "report_files").exists()


def test_pictures_of_the_markdown_page_are_files(full: Path) -> None:
    """Every link leads to a file with the bytes of the HTML page; there are no other files."""
    text = (full / "report.md").read_text()
    links = re.findall(r"\]\((report_files/[a-z0-9_]+\.(?:png|gif))\)", text)
    assert len(links) == 5 and len(set(links)) == 5
    assert {full / link for link in links} == set((full / "report_files").iterdir())
    files = [(full / link).read_bytes() for link in links]
    assert sorted(files) == sorted(Page((full / "report.html").read_text()).images())
    assert "A film." in text and "report_files" in folder.FOLDERS


def test_a_changed_number_changes_both_pages(tmp_path: Path) -> None:
    path = run_folder(tmp_path)
    report.write_report(path, headline=HEADLINE)
    before = [(path / name).read_text() for name in ("report.html", "report.md")]
    changed = json.loads((path / "results.json").read_text())
    changed["metrics"]["test/recall@5"] = 0.0626
    (path / "results.json").write_text(json.dumps(changed))
    report.write_report(path, headline=HEADLINE)
    after = [(path / name).read_text() for name in ("report.html", "report.md")]
    for old, new in zip(before, after, strict=True):
        assert "0.0626" not in old and "0.0626" in new and old != new


def test_the_page_opens_with_the_question_and_ends_with_the_model_card(tmp_path: Path) -> None:
    path = run_folder(tmp_path)
    report.write_report(path, headline=HEADLINE, about=ABOUT)
    for name in ("report.html", "report.md"):
        text = (path / name).read_text()
        order = ["Who knows", "Headline", "Learning curves", "Whole config", "Model card"]
        places = [text.index(piece) for piece in order]
        assert places == sorted(places), name
        assert "free to use" in text[places[-1] :] and "seed 0, checkpoint of step 4" in text
        assert "<script" not in "".join(text.split("```")[::2])
    page = Page((path / "report.html").read_text())
    assert_harmless(page)
    (row,) = [row for row in page.rows if row[:1] == ["test/recall@5"] and "Found" in row[4]]
    assert row[1:3] == ["0.0625", "test/recall@10 0.1235"] and "(higher is better)" in row[4]


def test_only_long_values_of_a_table_are_broken() -> None:
    cells = [pages.Cell("test/recall@10/unmasked"), pages.Cell("x" * 80), pages.Cell("word " * 20)]
    text = pages.html_table(pages.Table(("a", "b", "c"), [cells]))
    assert [cell.partition(">")[0] for cell in text.split("<td")[1:]] == [
        " class=whole", " class=long", " class=text",
    ]  # fmt: skip


def test_tables_of_a_system_and_the_headline(tmp_path: Path) -> None:
    """Cells are escaped text or right-aligned numbers; only the headline is not folded."""
    path = run_folder(tmp_path)
    table = Rows(("who", "how much"), ((EVIL, 0.5), ("we", 0.25)), "note " + EVIL)
    report.write_report(path, {"Side by side": table}, headline=HEADLINE)
    text = (path / "report.html").read_text()
    page = Page(text)
    assert_harmless(page)
    assert [EVIL, "0.5000"] in page.rows and ["we", "0.2500"] in page.rows
    shown, folded = text.split("<details>", 1)
    assert "<b>test/recall@5</b>" in shown and ">Beside published numbers<" in shown
    assert f"All {len(METRICS)} metrics" in folded
    text = (path / "report.md").read_text()
    assert "| we | 0.2500 |" in text
    assert "<script" not in "".join(text.split("```")[::2]), "the note is escaped too"


def test_a_run_that_has_only_begun_gets_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    report.write_report(tmp_path)
    assert "No results yet" in (tmp_path / "report.html").read_text()
    assert "No results yet" in (tmp_path / "report.md").read_text()


def test_what_is_no_run_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        report.write_report(tmp_path)
    path = run_folder(tmp_path / "a")
    whole = (path / "results.json").read_text()
    (path / "results.json").write_text(whole[:40])
    for action in (report.write_report, lambda p: compare.compare([p])):
        with pytest.raises(UserError, match=r"results\.json is damaged"):
            action(path)
    (path / "results.json").unlink()
    with pytest.raises(UserError, match=r"results\.json is missing"):
        compare.compare([path])
    with pytest.raises(UserError, match="no run folder"):
        compare.compare([])
    (path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="'metrics' is missing"):
        compare.compare([path])
    assert not (path / "report.html").exists()


def test_a_figure_of_another_format_is_refused(tmp_path: Path) -> None:
    path = run_folder(tmp_path)
    with pytest.raises(ValueError, match="neither PNG nor GIF"):
        report.write_report(path, {"x": Picture(b"<svg onload=alert(1)>", "An attack.")})
    assert not (path / "report.html").exists()


# --------------------------------------------------------------------------------------- curves


def test_curves_pool_seeds_of_runs_and_of_one_run() -> None:
    one = [{"step": s, "split": "train", "loss": 1.5, "per_seed": {"loss": [1, 2]}} for s in (1, 2)]
    two = [{"step": s, "split": "train", "loss": 6.0} for s in (1, 2, 3)]
    found = plots.curves([one, two])["train/loss"]
    assert found.steps.tolist() == [1, 2]  # step 3 is known to one run only
    np.testing.assert_allclose(found.values, [3.0, 3.0])
    np.testing.assert_allclose(found.spread, np.std([1, 2, 6], ddof=1))


def test_long_curves_are_binned_to_means() -> None:
    steps = np.arange(1000)
    flat = np.zeros(1000)
    thin = plots.thin(plots.Curve("x", steps, steps.astype(float), flat, True))
    assert len(thin.steps) == 250 and thin.binned
    np.testing.assert_allclose(thin.values, steps.reshape(-1, 4).mean(1))


def test_plots_are_grouped_ordered_and_bounded() -> None:
    names = ["train/kl", "train/loss", "valid/loss", "valid/recall@10", "valid/recall@5"]
    names += [f"valid/success/d{i}" for i in range(9)]
    two = np.arange(2)
    found = {n: plots.Curve(n, two, two, 0 * two, n.startswith("train")) for n in names}
    groups = plots.arrange(found, ["test/recall@10"])
    assert [title for title, _ in groups] == [
        "recall", "loss", "success (1/2)", "success (2/2)", "kl",
    ]  # fmt: skip
    assert [line.label for line in groups[0][1]] == ["valid/recall@5", "valid/recall@10"]


def test_more_metrics_than_plots_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_PLOTS", 1)
    report.write_report(run_folder(tmp_path))
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.images()) == 1
    assert ["train/loss", "1.5000", "0.3750"] in page.rows


# ----------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("values", [[0.0, 1.0], [1.0, 2.0, 4.0], [0.3, -1.0, 2.5, 0.31]])
@pytest.mark.parametrize("level", [0.4, 0.8, 0.95])
def test_bootstrap_equals_enumeration_of_all_resamples(values: list[float], level: float) -> None:
    means = [np.mean(draw) for draw in itertools.product(values, repeat=len(values))]
    exact = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    found = comparison.bootstrap_interval(values, num_resamples=40_000, level=level)
    # Sampling may end on the next atom of the distribution, where its cdf is close to the level.
    for at, x, q in zip(exact, found, ((1 - level) / 2, (1 + level) / 2), strict=True):
        below, upto = np.mean(np.array(means) < x - 1e-9), np.mean(np.array(means) <= x + 1e-9)
        assert abs(at - x) < 1e-9 or below - 0.01 <= q <= upto + 0.01


def test_bootstrap_approaches_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = comparison.bootstrap_interval(values)
    half = 1.959964 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_bootstrap_edges() -> None:
    assert comparison.bootstrap_interval([2.0, 2.0]) == (2.0, 2.0)
    assert np.std([0.1] * 3, ddof=1) > 0 == comparison.spread([0.1] * 3)
    assert comparison.bootstrap_interval([0, 1, 5]) == comparison.bootstrap_interval([0, 1, 5])
    assert comparison.bootstrap_interval([0, 1, 5]) != comparison.bootstrap_interval(
        [0, 1, 5], seed=1, num_resamples=11
    )
    for values in ([], [1.0], [1.0, math.nan]):
        assert all(map(math.isnan, comparison.bootstrap_interval(values)))
    with pytest.raises(ValueError, match="level"):
        comparison.bootstrap_interval([1, 2], level=95.0)


def test_differences_are_paired_only_where_the_seeds_match() -> None:
    first = {(s, 0): float(10 * s) for s in range(5)}
    second = {(s, 0): 10 * s + 1.0 + 0.01 * s for s in reversed(range(5))}
    paired = comparison.difference(first, second)
    assert paired.paired and paired.mean == pytest.approx(1.02)
    assert 1.0 <= paired.low <= paired.high <= 1.04, "the spread between seeds cancels"
    other = comparison.difference(first, {(s + 1, 0): v for (s, _), v in second.items()})
    assert not other.paired and other.mean == pytest.approx(1.02)
    assert other.low < -5 and other.high > 5
    assert math.isnan(comparison.difference(first, {(9, 0): 1.0}).low)


def test_comparison_pools_seeds_and_its_numbers_are_right(tmp_path: Path) -> None:
    a, b = [0.1, 0.2, 0.6], [0.2, 0.4, 0.9]
    folders = [
        run_folder(tmp_path / f"{name}{seed}", seed, lr, {"test/acc": x, EVIL: 1.0})
        for name, lr, values in (("a", 0.1, a), ("b", 0.2, b))
        for seed, x in enumerate(values)
    ]
    shutil.copytree(folders[0], tmp_path / "copy")
    text, document = compare.compare([*folders, tmp_path / "copy", folders[0]])
    page = Page(document)
    assert_harmless(page)
    overview = [row for row in page.rows if row[1:3] == ["0, 1, 2", "a0, a1, a2"]]
    assert overview
    assert ["optim.lr", "0.1", "0.2"] in page.rows and ["seed"] not in [r[:1] for r in page.rows]
    assert ["train.steps", "4"] in page.rows, "what all share stands once"
    assert max(map(len, text.splitlines())) <= 120 or str(tmp_path) in text
    low, high = comparison.bootstrap_interval(a)
    assert [f"0.3000 ± {np.std(a, ddof=1):.4f}", "3", f"[{low:.4f}, {high:.4f}]"] in [
        row[1:] for row in page.rows
    ]
    low, high = comparison.bootstrap_interval([0.1, 0.2, 0.3])
    assert ["B minus A", "+0.2", f"[{low:.4f}, {high:.4f}]", "paired by seed"] in page.rows
    assert "B minus A" in text and "left out" in text and "repeats seed 0" in text
    assert len(page.images()) == 3


def test_comparison_of_seeds_trained_side_by_side_and_of_other_steps(tmp_path: Path) -> None:
    metrics, seeds = {"test/acc": 0.4}, {"test/acc": [0.2, 0.6]}
    first = run_folder(tmp_path / "a", 0, 0.1, metrics, seeds)
    second = run_folder(tmp_path / "b", 1, 0.1, metrics, seeds)
    longer = run_folder(tmp_path / "c", 2, 0.1, metrics, seeds, steps=5)
    groups, remarks = comparison.load_groups([first, second, longer])
    assert [g.seeds for g in groups] == [[0, 1], [2]] and remarks == []
    assert sorted(groups[0].values["test/acc"].items()) == [
        ((0, 0), 0.2), ((0, 1), 0.6), ((1, 0), 0.2), ((1, 1), 0.6),
    ]  # fmt: skip


def test_write_comparison(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "a")
    text = compare.write_comparison([path], tmp_path / "out")
    assert str(tmp_path / "out" / "comparison.html") in text
    assert (tmp_path / "out" / "comparison.html").read_text().startswith("<!doctype html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        compare.write_comparison([path], tmp_path / "file")


@pytest.fixture
def toy_folders(tmp_path: Path) -> Iterator[list[Path]]:
    toy.install()
    yield [run_folder(tmp_path / "a"), run_folder(tmp_path / "b", lr=0.2)]
    toy.remove()


def test_a_system_adds_to_the_comparison_of_its_runs(toy_folders: list[Path]) -> None:
    text, document = compare.compare(toy_folders)
    page = Page(document)
    assert ["a", "1"] in page.rows and toy.PNG in page.images()
    assert "Letters in the name of each folder." in text and "Letters in the name" in document
    assert "One pixel for all of them." in document
    results = json.loads((toy_folders[1] / "results.json").read_text())
    for name in ("config.json", "results.json"):
        values = json.loads((toy_folders[1] / name).read_text()) | {"system": "other"}
        (toy_folders[1] / name).write_text(json.dumps(values))
    assert results["system"] == "toy"
    text, document = compare.compare(toy_folders)
    assert "Letters in the name" not in text, "there is no common system"
    assert "warning: B is a run of other, A of toy" in text


def test_runs_on_other_data_are_told_apart(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b")
    config = json.loads((b / "config.json").read_text())
    assert "warning" not in compare.compare([a, b])[0]
    config["data"] |= {"root": "/elsewhere", "name": "beauty"}
    (b / "config.json").write_text(json.dumps(config))
    text, document = compare.compare([a, b])
    words = "warning: B saw other data than A, in data.name: their numbers may not compare"
    assert words in text and words in document


def test_the_terminal_shows_a_few_metrics_in_short_lines(tmp_path: Path) -> None:
    metrics = {f"test/a_metric_with_a_name_of_many_letters/{i}": i / 7 for i in range(20)}
    folders = [run_folder(tmp_path / f"run{i}", lr=0.1 * i, metrics=metrics) for i in range(1, 9)]
    text, document = compare.compare(folders)
    lines = [line for line in text.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 120
    shown = {line.split()[0] for line in lines if line.strip().startswith("test/a_metric")}
    assert len(shown) == 12 and "8 more metrics: see the page" in text
    assert all(name in document for name in metrics)


def write_ranks(folder: Path, queries: Any, ranks: Any) -> Path:
    np.savez(folder / "ranks.npz", queries=np.array(queries), ranks=np.array(ranks))
    return folder


def test_ranks_are_compared_query_by_query(tmp_path: Path) -> None:
    """Against the metrics written out, and resamples drawn one query after the other."""
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 30, size=(2, 60))
    a = write_ranks(run_folder(tmp_path / "a"), np.arange(60), first)
    b = write_ranks(run_folder(tmp_path / "b", lr=0.2), np.arange(60), second)
    found = comparison.rank_differences(a / "ranks.npz", b / "ranks.npz", num_resamples=20_000)
    assert found is not None

    def metrics(ranks: Any) -> dict[str, list[float]]:
        return {
            "recall@10": [1.0 if r <= 9 else 0.0 for r in ranks],
            "ndcg@10": [math.log(2) / math.log(r + 2) if r <= 9 else 0.0 for r in ranks],
            "mrr": [1.0 / (1 + r) for r in ranks],
        }

    ours, theirs = metrics(first), metrics(second)
    for name, d in found.items():
        gaps = np.array(theirs[name]) - np.array(ours[name])
        means = [gaps[rng.integers(0, 60, size=60)].mean() for _ in range(20_000)]
        assert d.mean == pytest.approx(gaps.mean()) and d.paired
        half = (d.high - d.low) / 2
        assert half > 0.01, "the interval says something"
        expected = np.quantile(means, (0.025, 0.975))
        np.testing.assert_allclose((d.low, d.high), expected, rtol=0, atol=0.05 * half)
    text, document = compare.compare([a, b])
    assert "Query by query" in text and "b minus a" in text and "ndcg@10" in document
    write_ranks(b, np.arange(1, 61), second)
    assert "not paired: b ranked other queries than a" in compare.compare([a, b])[0]


@pytest.mark.parametrize("ranks", [[0.5, 1.0], [-1, 2], [1, 2, 3], [{}, {}]])
def test_damaged_ranks_are_named(ranks: Any, tmp_path: Path) -> None:
    write_ranks(tmp_path, [0, 1], ranks)
    with pytest.raises(UserError, match=r"ranks\.npz is damaged"):
        comparison.read_ranks(tmp_path / "ranks.npz")
    (tmp_path / "ranks.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"ranks\.npz is damaged"):
        comparison.read_ranks(tmp_path / "ranks.npz")


def test_many_differing_settings_are_folded(tmp_path: Path) -> None:
    """Settings that both have stand first; the terminal shows twelve and counts the rest."""
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", lr=0.2)
    config = json.loads((b / "config.json").read_text())
    (b / "config.json").write_text(json.dumps(config | {"extra": {f"k{i}": i for i in range(20)}}))
    text, document = compare.compare([a, b])
    assert "optim.lr" in text and "9 more differ: see the page" in text
    assert "21 settings that differ</summary>" in document
    assert ["extra.k19", "absent", "19"] in Page(document).rows


def test_pictures_keep_their_text_readable(tmp_path: Path) -> None:
    """A wide picture scrolls on a phone: text of `plots.TYPE` points never has less than 9 pixels,
    and a long name in a legend stands whole, in a line of its own."""
    figure, ((axes,),) = plots.new_axes(9, 3)
    axes.plot([0, 1], label="a line")
    plots.style(axes)
    two = np.arange(2)
    names = ["valid/first_token/pooled/layer1", "valid/first_token/pooled/layer2"]
    curves = [plots.Curve(name, two, two, 0 * two, False) for name in names]
    for data in (plots.png(figure), plots.draw("first_token/pooled", curves)):
        element = pages.picture("title", data, "What it shows.")
        least = int(re.search(r"min-width:(\d+)px", element)[1])  # type: ignore[index]
        assert plots.TYPE / 72 * plots.DPI * least / Image.open(io.BytesIO(data)).width >= 8.95
        assert "<div class=scroll><img" in element
    alpha = np.asarray(Image.open(io.BytesIO(data)))[..., 3]
    assert not alpha[:, -3:].any() and alpha[:80].any(), "ink of the legend, none cut off"
