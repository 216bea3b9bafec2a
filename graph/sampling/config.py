# SPDX-License-Identifier: Apache-2.0
"""What is sampled around a link. Free of jax: a config is checked before jax is imported."""

import dataclasses
from typing import Literal

MAX_SLOTS = 1 << 20  # sort keys of the host give a token of a link 20 bits
MAX_HOPS = 3
Slots = Literal["random", "sorted"]


def num_slots(hops: int, fanout: int) -> int:
    """Largest number of nodes around a link, 2 * sum of fanout^i for i = 0 .. hops: two full trees
    that share nothing (PENCIL's N_max)."""
    return 2 * sum(fanout**i for i in range(hops + 1))


def levels(hops: int, fanout: int) -> tuple[int, ...]:
    """First position of each level of two full trees, roots aside, 1 .. hops."""
    return tuple(num_slots(hop, fanout) for hop in range(hops))


def ladder(size: int) -> tuple[int, ...]:
    """The usual buckets up to `size` slots: 32, 64, 128, 256 and 512 below it, and `size`."""
    return (*(b for b in (32, 64, 128, 256, 512) if b < size), size)


def check_slots(slots: str) -> None:
    """Raises ValueError: an order of slots that is not known."""
    if slots not in ("random", "sorted"):
        raise ValueError(f"slots={slots!r}: must be 'random' or 'sorted'")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Size and order of a sample.

    hops: 1 .. 3, k; fanout: neighbours drawn of each node of a frontier, f >= 1; cap: slots of a
    link, 2 .. num_slots(hops, fanout), 0 for all of them; too many nodes stay out hop by hop from
    the last, by chance within a hop; buckets: ascending sizes links are padded
    to, the last of them `cap` or more (empty: `cap` alone); reference_order: draw first and take
    the target edge out afterwards, as the released code of PENCIL does; it lets the edge shape the
    sample (a leak) and is there for parity only.

    Raises:
        ValueError: a field out of range, by name.
    """

    hops: int
    fanout: int
    cap: int = 0
    buckets: tuple[int, ...] = ()
    reference_order: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.hops <= MAX_HOPS:
            raise ValueError(f"hops={self.hops}: must be 1 .. {MAX_HOPS}")
        if self.fanout < 1:
            raise ValueError(f"fanout={self.fanout}: must be at least 1")
        slots = num_slots(self.hops, self.fanout)
        if slots > MAX_SLOTS:
            raise ValueError(
                f"fanout={self.fanout} over hops={self.hops} gives {slots} slots, more than "
                f"{MAX_SLOTS}: lower one of them"
            )
        if self.cap and not 2 <= self.cap <= slots:
            raise ValueError(f"cap={self.cap}: must be 2 .. {slots}, or 0 for {slots}")
        if any(b < 2 for b in self.buckets) or list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"buckets={self.buckets}: must ascend from 2 or more")
        if self.buckets and self.buckets[-1] < self.size:
            raise ValueError(
                f"buckets={self.buckets}: the last must hold cap={self.size} tokens; add "
                f"{self.size}"
            )

    @property
    def size(self) -> int:
        """Slots of a link, N."""
        return self.cap or num_slots(self.hops, self.fanout)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Buckets, or the one size there is."""
        return self.buckets or (self.size,)
