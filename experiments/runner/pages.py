# SPDX-License-Identifier: Apache-2.0
"""Tables and pages: one form of table, shown as HTML, Markdown or text for a terminal.

An HTML page loads nothing and runs nothing: pictures are data URIs, every text is escaped, and a
content policy forbids the rest.
"""

import base64
import html
import math
from typing import Any, NamedTuple

PICTURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}
FINENESS = 1.5  # dots of a picture per pixel of the page
SMALLEST = 0.72  # of its width: below it text of 9 points has less than 9 pixels, so it scrolls
SHORT = 24  # letters of a table cell that stay on one line
LONGEST_WORD = 32  # letters without a space that a table cell keeps on one line
STYLE = """
:root{--bg:#fff;--fg:#1d2129;--soft:#5c6470;--line:#e3e6eb;--card:#f6f7f9;--hi:#1f5fd0;--warn:#a34a00}
@media(prefers-color-scheme:dark){:root{--bg:#15181d;--fg:#e4e7ec;--soft:#9aa3b0;--line:#2d333c;
--card:#1c2027;--hi:#7fb0ff;--warn:#f0a860}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:26px;margin:0 0 4px}
h2{font-size:18px;margin:40px 0 10px;padding-bottom:4px;border-bottom:1px solid var(--line)}
h3{font-size:15px;margin:24px 0 6px}
p.note,figcaption{color:var(--soft);font-size:13px;max-width:76em}p.note{margin:6px 0}
figcaption{margin:4px 0 0}.lead{font-size:16px;margin:6px 0 18px;max-width:60em}
.scroll{overflow-x:auto}
table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums}
th,td{padding:5px 18px 5px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{position:sticky;left:0;background:var(--bg)}
td.whole{white-space:nowrap}td.long{overflow-wrap:anywhere;min-width:12em}
td.text{min-width:16em}
th{font-weight:600;color:var(--soft);font-size:13px;white-space:nowrap}
td.n{text-align:right;white-space:nowrap}th.n{text-align:right}
code,pre{font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}
pre{background:var(--card);padding:12px 14px;border-radius:6px;white-space:pre-wrap;
overflow-wrap:anywhere;margin:8px 0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(165px,1fr));gap:10px;
margin:20px 0}
.card{background:var(--card);border-radius:6px;padding:9px 13px;overflow-wrap:anywhere}
.card b{display:block;font-size:12px;font-weight:500;color:var(--soft)}
.warn{color:var(--warn)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(440px,100%),1fr));gap:14px}
figure{margin:0}figure img{max-width:100%;height:auto}.grid img{width:100%}
.bar{display:flex;height:18px;border-radius:4px;overflow:hidden;margin:8px 0 12px}
.dot{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:8px}
summary{cursor:pointer;color:var(--hi);margin:10px 0}
@media(max-width:600px){main{padding:20px 14px 48px}.cards{grid-template-columns:1fr 1fr}
th,td{padding-right:12px;font-size:14px}td.long{min-width:9em;max-width:60vw}}
"""


class Cell(NamedTuple):
    """Text of a table cell; `exact` is shown on hover, `color` as a dot before the text."""

    text: str
    strong: bool = False
    exact: str = ""
    number: bool = False
    color: str = ""


class Table(NamedTuple):
    """The one form in which both pages get their content."""

    head: tuple[str, ...]
    rows: list[list[Cell]]


def escape(value: Any) -> str:
    """Text for HTML, quotes included."""
    return html.escape(str(value), quote=True)


def markdown(value: Any) -> str:
    """Text for a Markdown table: one line, no markup of its own."""
    text = " ".join(str(value).split())
    for char in "\\`*_[]|":
        text = text.replace(char, "\\" + char)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def number(value: Any) -> str:
    """Four decimals in the usual range, four digits elsewhere."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def numeric(value: Any, strong: bool = False) -> Cell:
    """A number with all its digits on hover."""
    return Cell(number(value), strong, repr(value), True)


def _width_class(text: str, is_first: bool) -> str:
    """CSS class of a cell: the first column and short text stay on one line, long words break."""
    if max(map(len, text.split()), default=0) > LONGEST_WORD:
        return "long"
    if len(text) <= (LONGEST_WORD if is_first else SHORT):
        return "whole"
    return "text" if len(text) > LONGEST_WORD else ""


def html_table(table: Table) -> str:
    """A table whose columns of numbers are right-aligned."""
    right = [
        bool(table.rows) and all(row[i].number or not row[i].text for row in table.rows)
        for i in range(len(table.head))
    ]
    head = "".join(
        f"<th{' class=n' if r else ''}>{escape(h)}</th>"
        for h, r in zip(table.head, right, strict=True)
    )
    lines = []
    for row in table.rows:
        cells = []
        for index, (cell, r) in enumerate(zip(row, right, strict=True)):
            title = f' title="{escape(cell.exact)}"' if cell.exact else ""
            text = f"<b>{escape(cell.text)}</b>" if cell.strong else escape(cell.text)
            if cell.color:
                text = f'<span class=dot style="background:{cell.color}"></span>{text}'
            kind = "n" if r else _width_class(cell.text, index == 0)
            cells.append(f"<td{f' class={kind}' if kind else ''}{title}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return (
        f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n"
        "</tbody></table></div>\n"
    )


def markdown_table(table: Table) -> str:
    rows = [[markdown(h) for h in table.head], ["---"] * len(table.head)]
    for row in table.rows:
        rows.append(
            [f"**{markdown(c.text)}**" if c.strong and c.text else markdown(c.text) for c in row]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def picture(title: str, data: bytes, caption: str = "", show_title: bool = False) -> str:
    """A figure element with the picture inside and its caption below.

    Raises:
        ValueError: neither PNG nor GIF.
    """
    kind = next((kind for magic, kind in PICTURES.items() if data.startswith(magic)), None)
    if kind is None:
        raise ValueError(f"figure {title!r} is neither PNG nor GIF (starts with {data[:8]!r})")
    head = f"<b>{escape(title)}</b> " if show_title else ""
    text = f"<figcaption>{head}{escape(caption)}</figcaption>" if head or caption else ""
    source = base64.b64encode(data).decode()
    size = ""
    if kind == "image/png":
        width = _shown_width(data)
        size = f' width="{width}" style="min-width:{round(SMALLEST * width)}px"'
    image = f'<img alt="{escape(title)}"{size} src="data:{kind};base64,{source}">'
    return f"<figure><div class=scroll>{image}</div>{text}</figure>\n"


def _shown_width(png: bytes) -> int:
    """Pixels of the page for a PNG, whose own are finer, so that its text is as large as ours."""
    return max(1, round(int.from_bytes(png[16:20], "big") / FINENESS))


def page(title: str, body: str) -> str:
    """A whole document that may load nothing but its own pictures."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}</main></body></html>\n"
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def text_table(table: Table, width: int = 0) -> str:
    """Aligned columns for a terminal, its lines cut to `width` where that is not 0.

    The widest columns are cut first.
    """
    rows = [list(table.head), *([c.text for c in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    while width and sum(widths) + 2 * len(widths) > width and max(widths) > 4:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in rows:
        cells = [_cut(text, room).ljust(room) for text, room in zip(row, widths, strict=True)]
        line = "  " + "  ".join(cells).rstrip()
        lines.append(_cut(line, width) if width else line)
    return "\n".join(lines)
