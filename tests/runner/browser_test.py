# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: on a desk, in the dark and on a phone."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.runner import report
from tests.runner import report_test

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: no page is looked at"),
]
PHONE = 390  # pixels across
VIEWS = {
    "desk": ((1280, 1600), ()),
    "dark": ((1280, 1600), ("--blink-settings=preferredColorScheme=0",)),
    "phone": ((PHONE, 1600), ()),
}
FRAME = """<!doctype html><title>none</title>
<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>onload=()=>document.title="wide "+frames[0].document.documentElement.scrollWidth</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = report_test.run_folder(tmp_path_factory.mktemp("browser"))
    report.write_report(path, {}, None, report_test.HEADLINE, report_test.ABOUT)
    return path / "report.html"


def browse(page: Path, size: tuple[int, int], *flags: str) -> str:
    """What chromium prints for a page in a window of so many pixels."""
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--hide-scrollbars",
        f"--user-data-dir={page.parent / 'profile'}",
        f"--window-size={size[0]},{size[1]}",
        *flags,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.parametrize("view", VIEWS)
def test_the_page_shows(view: str, page: Path, tmp_path: Path) -> None:
    """The ground is light or dark as asked, and there is ink all over the page."""
    size, flags = VIEWS[view]
    shot = tmp_path / f"{view}.png"
    browse(page, size, f"--screenshot={shot}", *flags)
    pixels = np.asarray(Image.open(shot).convert("L"), np.int32)
    assert pixels.shape == size[::-1]
    ground = np.bincount(pixels.ravel()).argmax()
    assert (ground < 60) == (view == "dark") and (ground > 200) == (view != "dark")
    for part in np.array_split(pixels, 4):
        assert np.mean(np.abs(part - ground) > 40) > 0.002, "a part of the page is blank"


def test_nothing_is_wider_than_a_phone(page: Path) -> None:
    """Measured from outside a frame as wide as a phone: no window of chromium is that narrow."""
    text = page.read_text()
    for added, is_wide in (("", False), ("<p style='width:900px'>wide</p>", True)):
        shown = html.escape(text.replace("</main>", added + "</main>"), quote=True)
        frame = page.with_name("frame.html")
        frame.write_text(FRAME.format(width=PHONE, page=shown))
        found = re.search(r"<title>wide (\d+)</title>", browse(frame, (1280, 1600), "--dump-dom"))
        assert found is not None
        assert (int(found[1]) > PHONE) == is_wide, found[1]
