# SPDX-License-Identifier: Apache-2.0
"""README's limits, links of all Markdown files, alternative texts, and citations."""

import re
from pathlib import Path

import pytest

from tests import ROOT

README = ROOT / "README.md"
HIDDEN = {".git", ".venv", "node_modules"}
ROOMS = r"\b(rooms?|doors?|houses?|rivals?|speaks|furnished)\b"
CODE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
# What a text calls a method, as a regular expression -> words of its entry's title in CITATION.cff.
PAPERS = {
    "PENCIL|Truong et al": "Plain Transformers are Surprisingly",
    "SEAL|Zhang and Chen 2018": "Link Prediction Based on Graph Neural",
    "NCNC?|Wang et al. 2024\\)": "Neural Common Neighbor",
    "MPLP|Dong et al": "Pure Message Passing",
    "GAE|graph auto-encoder": "Variational Graph Auto-Encoders",
    "Refined GAE|Ma et al": "Reconsidering the Performance of GAE",
    "HeaRT": "Current Pitfalls and New Benchmarking",
    "GCN": "Graph Convolutional",
    "SAGE": "Inductive Representation",
    "GAT": "Graph Attention Networks",
    "LPFormer": "LPFormer",
    "OGB|ogbl-": "Open Graph Benchmark",
    "GRID|Ju et al": "Practitioner's Handbook",
    "TIGER|Rajput et al": "Generative Retrieval",
    "SID-MLP|sid_mlp|Guo": "MLPs are Efficient Distilled",
    "SASRec|Kang and McAuley": "Self-Attentive Sequential",
    "RQ-VAE|rqvae": "Residual Quantization",
    "R-VQ|rvq": "SoundStream",
    "rotation trick": "Rotation Trick",
    "Gumbel": "Gumbel-Softmax",
    "OPQ|`opq`": "Optimized Product Quantization",
    "PSID|psid_": "Purely Semantic Indexing",
    "Snapchat": "at Snapchat",
    "LETTER|`letter`": "Learnable Item Tokenization",
    "BERT4Rec": "BERT4Rec",
    "GRU4Rec": "Session-based",
    "HSTU": "Trillion-Parameter",
    "\\bT5": "Text-to-Text",
    "ssmax": "Scalable-Softmax",
    "[Dd]ifferential softmax|\\bdiff\\b": "Differential Transformer",
    "entmax": "Sparse Sequence-to-Sequence",
    "\\brela\\b": "Sparse Attention with Linear Units",
    "\\bsigmoid\\b": "Sigmoid Self-Attention",
    "\\bTDA\\b|Huang, Ding": "Threshold Differential Attention",
    "\\bPPO\\b": "Proximal Policy",
    "Banyan|Seth, Shah": "Task diversity",
}
# Named, but not verified or no paper: a reason each.
UNCITED = {"eSASRec": "not verified", "Latte": "not verified", "PQN": "not here"}


def pages() -> list[Path]:
    found = [p for p in ROOT.rglob("*.md") if not HIDDEN & set(p.relative_to(ROOT).parts)]
    reports = {p for p in found if p.name == "report.md"}  # the runner's, kept without their pages
    return [p for p in found if p not in reports and p.relative_to(ROOT).parts[0] != "runs"]


def prose(path: Path) -> str:
    """The text without code blocks, in which brackets are no links."""
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def dead_links(path: Path) -> list[str]:
    """Relative links, pictures too, that lead nowhere; anchors must be headings there."""
    text = re.sub(r"`[^`]*`", "", prose(path))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    dead = []
    for link in links:
        file, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (path.parent / file).resolve() if file else path
        if not target.exists():
            dead.append(link)
        elif anchor and target.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            if anchor not in slugs:
                dead.append(link)
    return dead


def without_alt(text: str) -> list[str]:
    """Pictures without an alternative text of at least four words."""
    html = [tag for tag in re.findall(r"<img\b[^>]*>", text)]
    alts = [re.search(r'\balt="([^"]*)"', tag) for tag in html]
    named = [(tag, alt[1] if alt else "") for tag, alt in zip(html, alts, strict=True)]
    named += [(f"![]({source})", alt) for alt, source in re.findall(r"!\[(.*?)\]\((\S+)\)", text)]
    return [tag for tag, alt in named if len(alt.split()) < 4]


def over_limits(text: str) -> list[str]:
    lines = text.splitlines()
    first = "\n".join(lines[:60])
    rules = {
        "250 lines": len(lines) <= 250,
        "16 KB": len(text.encode()) <= 16 * 1024,
        "installation within 60 lines": "pip install -e . && python experiments/run.py" in first,
        "one table of results": text.count("<!-- results:begin -->") == 1,
        "four pictures": len(re.findall(r"<img\b|!\[", text)) == 4,
        "plain words": not re.search(ROOMS, text),
    }
    return [rule for rule, holds in rules.items() if not holds]


def test_readme_keeps_its_limits() -> None:
    text = README.read_text(encoding="utf-8")
    assert over_limits(text) == []
    assert without_alt(text) == []
    assert "250 lines" in over_limits(text + "\n" * 250)
    assert "16 KB" in over_limits(text + "x" * 16384)
    assert "installation within 60 lines" in over_limits("\n" * 60 + text)
    assert "plain words" in over_limits(text + " a house ")
    assert over_limits(text.replace("<img", "<div", 1)) == ["four pictures"]


def test_three_ways_in_are_short() -> None:
    text = README.read_text(encoding="utf-8")
    for title in ("Train, resume, check", "Your own CSV", "Add a system"):
        section = text.split(f"### {title}\n")[1].split("\n#")[0]
        lines = [line for line in section.splitlines() if line.strip()]
        assert 0 < len(lines) <= 6, title


@pytest.mark.parametrize("path", pages(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_resolve_and_pictures_have_words(path: Path) -> None:
    assert dead_links(path) == []
    assert without_alt(prose(path)) == []


def test_a_dead_link_and_a_missing_text_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A head\n[a](gone.md) [b](#a-head) [c](#lost) [d](https://x.y)\n`[e](f)`\n")
    assert dead_links(page) == ["gone.md", "#lost"]
    assert without_alt('![](a.svg) <img src="b"> <img alt="it says what one sees" src="c">') == [
        '<img src="b">',
        "![](a.svg)",
    ]


def cited() -> list[tuple[str, int, str, str]]:
    """(title, year, first author, arXiv id) of every reference of CITATION.cff."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    entries = text.split("\nreferences:\n")[1].split("\n  - type: ")
    found = []
    for entry in entries:
        title = re.search(r'title: "(.*)"', entry)
        year = re.search(r"year: (\d+)", entry)
        author = re.search(r"family-names: (.*)", entry)
        arxiv = re.search(r"arXiv:([\d.]+)", entry)
        assert title and year and author, entry
        found.append((title[1], int(year[1]), author[1], arxiv[1] if arxiv else ""))
    return found


def uncited(text: str) -> list[str]:
    """What the text names and CITATION.cff does not: methods, arXiv ids, authors with a year."""
    entries = cited()
    titles = " ".join(entry[0] for entry in entries)
    lacking = [
        name for name, title in PAPERS.items() if re.search(name, text) and title not in titles
    ]
    ids = {entry[3] for entry in entries}
    lacking += [i for i in re.findall(r"arXiv[: ]?(\d{4}\.\d{5})", text) if i not in ids]
    known = {(author, year) for _, year, author, _ in entries}
    for author, year in re.findall(r"([A-Z][a-z]+)(?: et al\.| and [A-Z]\w+),? (\d{4})\b", text):
        if (author, int(year)) not in known:
            lacking.append(f"{author} {year}")
    return lacking


def test_every_paper_named_is_cited() -> None:
    texts = [path.read_text(encoding="utf-8") for path in ROOT.glob("*/README.md")]
    for path in ROOT.glob("experiments/configs/*/*.py"):
        texts.append(
            path.read_text(encoding="utf-8").split('"""')[1] if path.stat().st_size else ""
        )
    texts += [
        path.read_text(encoding="utf-8") for path in ROOT.glob("experiments/runner/result_*.py")
    ]
    assert uncited("\n".join(texts)) == []
    for library in ("banyan", "rec", "graph", "attention"):
        for path in (ROOT / library).rglob("*.py"):
            assert uncited(path.read_text(encoding="utf-8")) == [], path
    everything = "\n".join(texts)
    assert all(re.search(name, everything) for name in [*PAPERS, *UNCITED]), "a name nobody uses"
    assert uncited("Nobody et al. 2020, arXiv 1234.56789") == ["1234.56789", "Nobody 2020"]


def test_citations_are_well_formed() -> None:
    entries = cited()
    assert len({title for title, *_ in entries}) == len(entries)
    ids = [arxiv for *_, arxiv in entries if arxiv]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"\d{4}\.\d{5}", i) for i in ids)
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert text.startswith("cff-version: 1.2.0\n")
    for key in ("message", "title", "authors", "version", "license"):
        assert re.search(rf"^{key}:", text, re.MULTILINE), key


def test_slow_tests_and_their_times_exist() -> None:
    """Every test that tests/README.md gives a time for is there."""
    names = re.findall(r"^\| `(test_\w+)`", (ROOT / "tests/README.md").read_text(), re.MULTILINE)
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*_test.py"))
    assert names and [name for name in names if f"def {name}(" not in code] == []
