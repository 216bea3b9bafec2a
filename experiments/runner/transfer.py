# SPDX-License-Identifier: Apache-2.0
"""One file over HTTP into `<name>.part`: resumed by Range, bounded in time and tries."""

import errno
import fcntl
import http.client
import os
import shutil
import sys
import time as clock
import urllib.error
import urllib.request
from io import FileIO
from pathlib import Path

from tqdm import tqdm

from experiments.runner.errors import UserError

CHUNK = 1 << 16  # bytes; small enough that a slow line still shows progress
LINE_EVERY_S = 10.0  # between progress lines where there is no terminal
RETRY_STATUS = (408, 429, 500, 502, 503, 504)


class DataError(UserError):
    """Raw data that is missing, wrong or cannot be fetched. The message says what to do."""


class _Broken(Exception):
    """A transfer that may succeed when tried again."""


def fetch(
    url: str, part: Path, *, timeout_s: float | int, attempts: int, pause_s: float | int
) -> None:
    """Bring `part` to the full content of `url`, going on from what it already holds.

    Raises:
        DataError: refused by the server, no space, or still broken after `attempts` tries.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: only http and https addresses can be fetched")
    try:
        file = FileIO(part, "a+")  # no buffer: a full disk shows in write, nowhere else
    except OSError as error:
        raise DataError(f"cannot write {part}: {error.strerror}; choose --root=DIR") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another process is downloading {part}") from error
        reason = ""
        for attempt in range(attempts):
            if attempt:
                print(f"  {reason}; trying again ({attempt + 1}/{attempts})", file=sys.stderr)
                clock.sleep(pause_s * 2 ** (attempt - 1))
            try:
                _attempt(url, file, part, timeout_s)
                return
            except _Broken as error:
                reason = str(error)
    if part.stat().st_size == 0:
        part.unlink()
    raise DataError(
        f"{url}: {reason}, {attempts} tries\n  the same command goes on from what has arrived"
    )


def _attempt(url: str, file: FileIO, part: Path, timeout_s: float | int) -> None:
    have = os.fstat(file.fileno()).st_size
    headers = {"User-Agent": "banyan-stack", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            _receive(reply, file, part, have)
    except urllib.error.HTTPError as error:
        with error:
            _refused(error, file, url, have)
    except TimeoutError as error:
        raise _Broken(f"no byte for {timeout_s:g} s") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
        raise _Broken(f"connection failed ({getattr(error, 'reason', error)})") from error


def _refused(error: urllib.error.HTTPError, file: FileIO, url: str, have: int) -> None:
    """Returns where the refusal means that nothing was left to send."""
    if error.code == 416 and have:  # nothing beyond what we hold: all of it, or another file
        if error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
            return
        file.truncate(0)
        raise _Broken("the part held already does not belong to this file")
    if error.code in RETRY_STATUS:
        raise _Broken(f"HTTP {error.code} {error.reason}")
    if have == 0:
        Path(os.fsdecode(file.name)).unlink(missing_ok=True)
    raise DataError(f"{url}: HTTP {error.code} {error.reason}")


def _receive(reply: http.client.HTTPResponse, file: FileIO, part: Path, have: int) -> None:
    if reply.headers.get("Content-Encoding", "identity") != "identity":
        raise DataError(f"{reply.url}: the server sends it encoded, which was not asked for")
    if have and reply.status == 206:
        span = reply.headers.get("Content-Range", "")
        if not span.startswith(f"bytes {have}-"):
            file.truncate(0)
            raise _Broken(f"the server resumed at another place ({span!r})")
    elif have:  # the server ignores Range and sends everything
        file.truncate(0)
        have = 0
    length = reply.headers.get("Content-Length")
    total = have + int(length) if length is not None and length.isdigit() else None
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - have > free:
        raise DataError(f"disk full: {part.parent} has {free:,} bytes, {total - have:,} needed")
    show = _Progress(part.name.removesuffix(".part"), have, total)
    try:
        while chunk := reply.read1(CHUNK):
            _write(file, chunk, part)
            have += len(chunk)
            show.step(have)
    finally:
        show.close()
    if total is not None and have < total:
        raise _Broken(f"connection closed after {have:,} of {total:,} bytes")


def _write(file: FileIO, chunk: bytes, part: Path) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) or 0 :]
    except OSError as error:
        text = "disk full" if error.errno == errno.ENOSPC else f"cannot write: {error.strerror}"
        raise DataError(f"{text} at {part}; free some space, the same command goes on") from error


class _Progress:
    """A bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, name: str, have: int, total: int | None) -> None:
        self._name = name
        self._total = total
        self._printed = clock.monotonic()
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name)
        else:
            self._line(have)

    def _line(self, have: int) -> None:
        of = f" of {self._total:,}" if self._total is not None else ""
        print(f"  {self._name}: {have:,}{of} bytes", file=sys.stderr, flush=True)

    def step(self, have: int) -> None:
        if self._bar is not None:
            self._bar.update(have - self._bar.n)
        elif clock.monotonic() - self._printed >= LINE_EVERY_S:
            self._printed = clock.monotonic()
            self._line(have)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
