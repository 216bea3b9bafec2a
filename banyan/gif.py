# SPDX-License-Identifier: Apache-2.0
"""Animated GIFs of rendered frames; lossless as long as all frames share at most 256 colors."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_FPS = 50  # a GIF counts in hundredths of a second, and viewers slow down below two of them
_MAX_COLORS = 256


def _codes(frames: np.ndarray) -> np.ndarray:
    """Colors [..., 3] as one integer each."""
    wide = frames.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _indexed(frames: np.ndarray) -> list[Image.Image]:
    """Palette images with the exact colors, or with the 256 most fitting ones."""
    seen = np.zeros(1 << 24, bool)  # one flag per color: much faster than sorting all pixels
    for frame in frames:
        seen[_codes(frame)] = True
    colors = np.flatnonzero(seen)
    if len(colors) > _MAX_COLORS:
        strip = Image.fromarray(frames.reshape(-1, frames.shape[2], 3))
        palette = strip.quantize(_MAX_COLORS)
        return [
            Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
            for frame in frames
        ]
    table = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1).astype(np.uint8)
    index = np.zeros(1 << 24, np.uint8)
    index[colors] = np.arange(len(colors))
    images = []
    for frame in frames:
        image = Image.fromarray(index[_codes(frame)])
        image.putpalette(table.tobytes())
        images.append(image)
    return images


def gif_bytes(frames: Sequence[UInt8[np.ndarray, "h w 3"]], fps: int | float = 10.0) -> bytes:
    """The frames as an endless GIF; consecutive equal frames become one that is shown longer.

    Raises:
        ValueError: no frame, frames of different sizes, fps outside 0.1..50.
    """
    if not len(frames):
        raise ValueError("frames: none given")
    if len({frame.shape for frame in frames}) != 1:
        raise ValueError(f"frames: sizes differ: {sorted({f.shape for f in frames})}")
    if not 0.1 <= fps <= MAX_FPS:
        raise ValueError(f"fps={fps}: must lie in 0.1..{MAX_FPS}")
    images = _indexed(np.stack(list(frames)))
    buffer = BytesIO()
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=round(100 / fps) * 10,
        loop=0,
        optimize=False,
    )
    return buffer.getvalue()


def save_gif(
    path: str | Path, frames: Sequence[UInt8[np.ndarray, "h w 3"]], fps: int | float = 10.0
) -> None:
    """Writes `gif_bytes`; see there."""
    Path(path).write_bytes(gif_bytes(frames, fps))
