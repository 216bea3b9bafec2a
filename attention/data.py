# SPDX-License-Identifier: Apache-2.0
"""Text for language models: Tiny Shakespeare, any file of yours, or text made from a seed."""

import gzip
import hashlib
import io
import zlib
from pathlib import Path

import numpy as np

# Path under the data root -> (sha256 of the unzipped content, public source).
FILES = {
    "tinyshakespeare/input.txt.gz": (
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
}
ABOUT = {
    "tinyshakespeare": (
        "Tiny Shakespeare: 1,115,394 characters of plays, 65 different ones",
        "public-domain text",
    )
}

MOST_INFLATED = 1 << 26
"""Bytes a gzip file may always inflate to."""
MOST_RATIO = 200
"""Times the size of a larger gzip file that it may inflate to; deflate reaches 1030."""
CHUNK = 1 << 20
"""Bytes inflated at a time."""

_NOUNS = "cat dog king ship tree moon bird fish wolf rose".split()
_VERBS = "sees finds hears follows leaves draws holds calls".split()
_ADJECTIVES = "old red small quiet golden wild".split()


def read_text(path: str | Path) -> str:
    """Content of a UTF-8 file, plain or gzip (recognized by its first bytes), without its
    byte-order mark.

    Raises:
        ValueError: a truncated gzip file, one that inflates out of all proportion, or bytes that
            are no UTF-8, with file and offset.
        OSError: it cannot be read.
    """
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = _inflate(raw, path)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is a truncated or damaged gzip file: {error}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} is no UTF-8; convert it: iconv -t utf-8"
        ) from error


def _inflate(packed: bytes, path: str | Path) -> bytes:
    """Content of a gzip file; stops with ValueError where it grows out of all proportion."""
    source = io.BytesIO(packed)
    parts = []
    total = 0
    with gzip.GzipFile(fileobj=source) as file:
        while part := file.read(CHUNK):
            total += len(part)
            if total > max(MOST_INFLATED, MOST_RATIO * source.tell()):
                raise ValueError(
                    f"{path} inflates to more than {MOST_RATIO} times its size, which no text "
                    "does; if it is right, unzip it: gunzip"
                )
            parts.append(part)
    return b"".join(parts)


def made_text(seed: int, characters: int) -> str:
    """English-like sentences of a small grammar, `characters` long, the same for a seed.

    The subject of a sentence is its object's predecessor in a fixed order, so that there is
    something to attend to beyond the last few letters [our choice].
    """
    rng = np.random.default_rng([seed, 0x7E87])
    lines: list[str] = []
    length = 0
    while length <= characters:
        first = int(rng.integers(len(_NOUNS)))
        subject = _NOUNS[first]
        target = _NOUNS[(first + 1) % len(_NOUNS)]
        verb = _VERBS[rng.integers(len(_VERBS))]
        of_subject, of_target = (_ADJECTIVES[i] for i in rng.integers(len(_ADJECTIVES), size=2))
        lines.append(f"the {of_subject} {subject} {verb} the {of_target} {target}.\n")
        length += len(lines[-1])
    return "".join(lines)[:characters]


def split(text: str, valid_share: float) -> tuple[str, str]:
    """(train, valid): the last `valid_share` of the characters are valid, as is usual for plays.

    Raises:
        ValueError: a side is empty.
    """
    cut = round(len(text) * (1 - valid_share))
    if not 0 < cut < len(text):
        raise ValueError(f"{len(text)} characters leave nothing for one side at {valid_share=}")
    return text[:cut], text[cut:]


def sha256(text: str) -> str:
    """SHA-256 (hex) of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
