# SPDX-License-Identifier: Apache-2.0
"""Sizes and recipe of a semantic-ID tokenizer, checked. Imports nothing heavy."""

import dataclasses

METHODS = ("rkmeans", "rvq", "rqvae", "opq", "random", "lsh")
TRAINED = ("rkmeans", "rvq", "rqvae")
CONFLICTS = ("digit", "psid_ecm", "psid_rrs", "none")


@dataclasses.dataclass(frozen=True)
class SIDConfig:
    """Which semantic IDs and how they are learned.

    Attributes:
        method: one of `METHODS`. "rkmeans" and "rvq" train level after level, "rqvae" all levels at
            once; "opq", "random" and "lsh" are complete after `init`.
        levels, codes: L digits of W codes each. codes is a power of two for "lsh".
        steps: updates in all; those of layer-wise methods are shared equally between the levels.
        batch: rows drawn (with replacement) for one update.
        init_rows: rows of the buffer that k-means++ starts from, >= codes (GRID: 3072).
        lloyd: full-batch k-means iterations at the end of an rkmeans level, of the k-means start
            of an rqvae, and all of the alternations of opq.
        normalise: rkmeans and rvq divide residuals by their norm before every level (GRID).
        lr: learning rate of rvq and rqvae; optimiser: "adam" or "adagrad".
        warmup: steps of linear warm-up; decay: linear decay to 0 at the last step.
        beta: weight of the commitment term, >= 0.
        estimator: gradient through the quantiser of rqvae: "ste", "rotation" or "gumbel";
            temperature: of "gumbel", > 0.
        dense_gradient: rqvae selects codes by cosine and every code gets a gradient (Snapchat);
            it replaces the estimator, which must be "ste".
        kmeans_init: rqvae codebooks start from k-means, else from a normal distribution.
        dead_code_reset: rqvae replaces codes unused for so many steps, 0 never.
        standardise: rqvae and lsh see features of mean 0 and standard deviation 1.
        hidden: widths of rqvae's encoder layers, mirrored by the decoder; latent: its last width.
        source_widths: of the features that an input row concatenates, () for one source; rqvae has
            an encoder and a decoder for each.
        conflict: how items of one SID are told apart: "digit" appends a counter, "psid_ecm" and
            "psid_rrs" move items to other codes, "none" leaves buckets.
        digit_limit: codes of the appended digit; a group must be smaller.
    """

    method: str = "rkmeans"
    levels: int = 3
    codes: int = 256
    steps: int = 300
    batch: int = 2048
    init_rows: int = 3072
    lloyd: int = 10
    normalise: bool = True
    lr: int | float = 1e-3
    optimiser: str = "adam"
    warmup: int = 0
    decay: bool = False
    beta: int | float = 0.25
    estimator: str = "ste"
    temperature: int | float = 0.7
    dense_gradient: bool = False
    kmeans_init: bool = True
    dead_code_reset: int = 50
    standardise: bool = True
    hidden: tuple[int, ...] = (256, 128)
    latent: int = 64
    source_widths: tuple[int, ...] = ()
    conflict: str = "digit"
    digit_limit: int = 256

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r}: {rule}")

        allowed = {
            "method": METHODS,
            "optimiser": ("adam", "adagrad"),
            "estimator": ("ste", "rotation", "gumbel"),
            "conflict": CONFLICTS,
        }
        for name, values in allowed.items():
            require(getattr(self, name) in values, name, f"must be one of {values}")
        for name in ("levels", "batch", "latent", "digit_limit"):
            require(getattr(self, name) >= 1, name, "must be at least 1")
        require(self.codes >= 2, "codes", "must be at least 2")
        for name in ("steps", "lloyd", "warmup", "dead_code_reset", "beta"):
            require(getattr(self, name) >= 0, name, "must be at least 0")
        for name in ("lr", "temperature"):
            require(getattr(self, name) > 0, name, "must be > 0")
        for name in ("hidden", "source_widths"):
            require(all(width >= 1 for width in getattr(self, name)), name, "widths are at least 1")
        require(self.init_rows >= self.codes, "init_rows", f"must be at least codes={self.codes}")
        if self.method in ("rkmeans", "rvq"):
            rule = f"must be at least levels={self.levels}: levels are trained one by one"
            require(self.steps >= self.levels, "steps", rule)
        if self.method == "lsh":
            require(self.codes & (self.codes - 1) == 0, "codes", "must be a power of two for lsh")
        if self.dense_gradient:
            require(self.method == "rqvae", "dense_gradient", "only for method='rqvae'")
            require(self.estimator == "ste", "estimator", "must be 'ste' with dense_gradient")
        if self.conflict.startswith("psid"):
            rule = f"needs the residuals of one of {TRAINED}"
            require(self.method in TRAINED and not self.dense_gradient, "conflict", rule)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of every digit of the finished SIDs, the appended counter included."""
        counter = (self.digit_limit,) if self.conflict == "digit" else ()
        return (self.codes,) * self.levels + counter
