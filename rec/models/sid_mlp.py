# SPDX-License-Identifier: Apache-2.0
"""SID-MLP: what a trained generator knows of the next item, in an MLP per digit.

Guo et al. 2026. A frozen teacher reads the history; one attention reads its
states H out into a vector z, and digit t has the logits

    f_t([z; e(c_1); ...; e(c_t-1)]),   f = Linear, norm, GELU, dropout, Linear

with the teacher's code vectors e, so decoding keeps no keys and values. The loss of a digit is
alpha tau^2 KL(teacher, student) + (1 - alpha) cross-entropy, over the codes of the digit.

Two identities save work without changing a number. The read-out has one query, so W_k is applied to
it and not to the states, and W_v to their weighted mean. The first product of f_t is linear in each
of its parts: `fold` multiplies the vectors of all codes once, and a beam adds up rows of tables.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import layers
from attention.dropout import drop_in
from rec import training
from rec.models.digits import side_by_side
from rec.models.packed import Packed
from rec.models.sid_mlp_pp import Affine, LayerNorm, Mixer, states_error, valid_mean
from rec.models.student_config import DistillConfig
from rec.models.tiger import Tiger

FEW = 16  # children are scored alone where they are at most one in this many codes of a level


class Prefix(NamedTuple):
    """What the next digit is written from; no cache."""

    history: jax.Array  # float32 [B, D], the read-out
    codes: jax.Array  # int32 [R, l], digits so far; row i belongs to history i // (R / B)

    def take(self, rows: jax.Array) -> "Prefix":
        """Row i is the old row rows[i], of the same history as before."""
        return Prefix(self.history, self.codes[rows])


class Lesson(NamedTuple):
    """Logits of every level at a target's digits, each L times float32 [B, sizes[l]]."""

    student: list[jax.Array]
    teacher: list[jax.Array]
    """Empty where the loss does not ask for them."""
    states_error: jax.Array
    """Of an encoder that imitates the teacher's, else 0; float32 []."""


class ReadOut(nn.Module):
    """One attention over the states of a history, and an MLP."""

    cfg: DistillConfig
    width: int

    def setup(self) -> None:
        cfg, D = self.cfg, self.width
        self.pool = Affine(D, D)
        self.query = Affine(D, cfg.inner, bias=False)
        self.key = Affine(D, cfg.inner, bias=False)
        self.value = Affine(D, cfg.inner, bias=False)
        self.out = Affine(cfg.inner, D, bias=False)
        self.attention_norm = LayerNorm(D)
        self.up = Affine(D, cfg.mlp_width)
        self.down = Affine(cfg.mlp_width, D)
        self.mlp_norm = LayerNorm(D)

    def __call__(self, states: jax.Array, ids: jax.Array, deterministic: bool) -> jax.Array:
        """float32 [B, D] of states [B, S, D] and ids int32 [B, S], 0 = padding."""
        cfg = self.cfg
        size = cfg.inner // cfg.heads
        pooled = self.pool(valid_mean(states, ids))
        query = self.query(pooled).reshape(-1, cfg.heads, size)
        by_head = (self.width, cfg.heads, size)
        asked = jnp.einsum("bhe,dhe->bhd", query, self.key.kernel.reshape(by_head))
        scores = jnp.einsum("bhd,bsd->bhs", asked, states) * size**-0.5
        # Finite, so that a history of padding alone gives no NaN.
        scores = jnp.where((ids > 0)[:, None], scores, -1e30)
        weights = drop_in(self, jax.nn.softmax(scores, axis=-1), cfg.dropout, deterministic)
        means = jnp.einsum("bhs,bsd->bhd", weights, states)
        values = jnp.einsum("bhd,dhe->bhe", means, self.value.kernel.reshape(by_head))
        x = self.attention_norm(pooled + self.out(values.reshape(-1, cfg.inner)))
        hidden = drop_in(self, jax.nn.relu(self.up(x)), cfg.dropout, deterministic)
        return self.mlp_norm(x + self.down(hidden))


class Head(nn.Module):
    """f of one digit.

    level: digits before it; sizes: codes of every level; folded: of `fold`, whose first product has
    a table for every digit before.
    """

    cfg: DistillConfig
    width: int
    sizes: tuple[int, ...]
    level: int
    folded: bool

    def setup(self) -> None:
        cfg = self.cfg
        parts = 1 if self.folded else 1 + self.level
        self.up = Affine(parts * self.width, cfg.head_width)
        self.norm = LayerNorm(cfg.head_width)
        self.down = Affine(cfg.head_width, self.sizes[self.level])
        if self.folded:
            zeros = nn.initializers.zeros
            self.tables = [
                self.param(f"table_{j}", zeros, (self.sizes[j], cfg.head_width))
                for j in range(self.level)
            ]

    def hidden(
        self, written: Prefix, vectors: list[jax.Array], deterministic: bool = True
    ) -> jax.Array:
        """Hidden units, float32 [R, F], after the digits of `written`.

        Args:
            vectors: of the codes of every level, L times [sizes[l], D].
        """
        z, codes = written
        B, R = len(z), len(codes)
        if self.folded:
            first = jnp.repeat(self.up(z), R // B, axis=0)
            for table, code in zip(self.tables, codes.T, strict=True):
                first += table[code]
        else:
            parts = [jnp.repeat(z, R // B, axis=0)]
            parts += [vectors[j][codes[:, j]] for j in range(self.level)]
            first = self.up(jnp.concatenate(parts, axis=-1))
        hidden = layers.gelu(self.norm(first))
        return drop_in(self, hidden, self.cfg.dropout, deterministic)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [R, W] of hidden units [R, F]."""
        return self.down(hidden)

    def child_logits(self, hidden: jax.Array, codes: jax.Array) -> jax.Array:
        """float32 [R, K] of codes int32 [R, K]; where they are few, of them alone."""
        if codes.shape[1] * FEW > self.sizes[self.level]:
            return jnp.take_along_axis(self.logits(hidden), codes, axis=1)
        rows = self.down.kernel.T[codes]  # [R, K, F]
        return jnp.einsum("rf,rkf->rk", hidden, rows) + self.down.shift[codes]


class SidMlp(nn.Module):
    """A student of `teacher`, whose parameters are the subtree "teacher".

    reader: what the history is read with: None is the teacher, a `Mixer` that of SID-MLP++, a
    generator one that is trained anew (cfg.control is "scratch").
    folded: parameters are those of `fold`.
    """

    cfg: DistillConfig
    teacher: Tiger | Packed
    reader: Tiger | Packed | Mixer | None = None
    folded: bool = False

    def setup(self) -> None:
        width = self.teacher.cfg.width
        if self.cfg.control != "blind":
            self.read_out = ReadOut(self.cfg, width)
        self.heads = [
            Head(self.cfg, width, self.sizes, level, self.folded)
            for level in range(len(self.sizes))
        ]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of every level."""
        return self.teacher.sizes

    def __call__(
        self,
        history: jax.Array,
        mask: jax.Array,
        users: jax.Array,
        target: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits of all codes at the target's digits, float32 [R, L, sum(sizes)]; arguments are
        those of `Tiger.__call__`."""
        memory, ids = self.read(history, mask, users, deterministic=deterministic)
        return self.write(memory, ids, target)

    def read(
        self, history: jax.Array, mask: jax.Array, users: jax.Array, *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """The read-out of each history, float32 [B, 1, D], and its segment ids int32 [B, 1]."""
        z = self._summarize(*self.history_states(history, mask, users), deterministic)[:, None]
        return z, jnp.ones(z.shape[:2], jnp.int32)

    def write(self, memory: jax.Array, ids: jax.Array, target: jax.Array) -> jax.Array:
        """Logits [R, L, sum(sizes)] of target int32 [R, L] after what `read` gave; those of a level
        at another one's digit are 0."""
        del ids
        return side_by_side(self.digit_logits(memory[:, 0], target), self.sizes)

    def start(
        self, history: jax.Array, mask: jax.Array, users: jax.Array
    ) -> tuple[jax.Array, Prefix]:
        """Hidden units of the first digit, [B, F], and what the next one is written from."""
        memory, _ = self.read(history, mask, users)
        written = Prefix(memory[:, 0], jnp.zeros((len(memory), 0), jnp.int32))
        return self.heads[0].hidden(written, self.code_vectors()), written

    def advance(self, written: Prefix, digit: jax.Array, level: int) -> tuple[jax.Array, Prefix]:
        """Hidden units of digit level + 1, [R, F], after digit int32 [R] of `level`."""
        codes = jnp.concatenate([written.codes, digit[:, None]], axis=1)
        written = written._replace(codes=codes)
        return self.heads[level + 1].hidden(written, self.code_vectors()), written

    def logits(self, hidden: jax.Array, level: int | None = None) -> jax.Array:
        """float32 [..., sizes[level]].

        Raises:
            ValueError: no level: every level has a head of its own.
        """
        if level is None:
            raise ValueError('normaliser="full": a student scores level by level')
        return self.heads[level].logits(hidden)

    def child_logits(self, hidden: jax.Array, level: int, codes: jax.Array) -> jax.Array:
        """float32 [R, K] of hidden units [R, F] and codes int32 [R, K] of `level`."""
        return self.heads[level].child_logits(hidden, codes)

    def digit_logits(
        self, z: jax.Array, target: jax.Array, deterministic: bool = True
    ) -> list[jax.Array]:
        """Logits of every level, teacher forced: L times float32 [R, sizes[l]].

        Args:
            z: float32 [B, D]; target: int32 [R, L], R a multiple of B.
        """
        vectors = self.code_vectors()
        out = []
        for level, head in enumerate(self.heads):
            hidden = head.hidden(Prefix(z, target[:, :level]), vectors, deterministic)
            out.append(head.logits(hidden))
        return out

    def learn(
        self,
        history: jax.Array,
        mask: jax.Array,
        users: jax.Array,
        target: jax.Array,
        *,
        deterministic: bool = True,
    ) -> Lesson:
        """What the loss compares; the teacher reads and answers without dropout, in the same pass.

        Args:
            history, mask, users: see `Tiger.__call__`; target: int32 [B, L].
        """
        inputs = (history, mask, users)
        error = jnp.zeros(())
        by_teacher: list[jax.Array] = []
        if self.cfg.alpha or isinstance(self.reader, Mixer):
            states, ids, by_teacher = self.teacher.teach(*inputs, target)
            if isinstance(self.reader, Mixer):
                wanted = jax.lax.stop_gradient(states)
                states, ids = self.history_states(*inputs)
                error = states_error(states, wanted, ids)
        else:
            states, ids = self.history_states(*inputs, deterministic=deterministic)
        z = self._summarize(states, ids, deterministic)
        if self.cfg.control == "shuffled_labels":
            by_teacher = [jnp.roll(logits, 1, axis=0) for logits in by_teacher]
        frozen = [jax.lax.stop_gradient(logits) for logits in by_teacher]
        return Lesson(self.digit_logits(z, target, deterministic), frozen, error)

    def imitate(
        self, history: jax.Array, mask: jax.Array, users: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """Mean squared distance of the reader's states to the teacher's, float32 []."""
        wanted, ids = self.teacher.history_states(history, mask, users)
        states = self._mix(history, mask, users, deterministic)
        return states_error(states, jax.lax.stop_gradient(wanted), ids)

    def history_states(
        self, history: jax.Array, mask: jax.Array, users: jax.Array, *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """States of a history that are read out, [B, S, D], and ids int32 [B, S], 0 = padding;
        dropout is only of a reader that is trained anew."""
        inputs = (history, mask, users)
        if self.reader is None:
            return self.teacher.history_states(*inputs)
        if isinstance(self.reader, Mixer):  # trained before the heads, and then at rest
            _, ids = self.teacher.history(*inputs)
            return self._mix(*inputs, True), ids
        return self.reader.history_states(*inputs, deterministic=deterministic)

    def code_vectors(self) -> list[jax.Array]:
        """Vectors of the codes of every level, L times float32 [sizes[l], D]."""
        if isinstance(self.reader, Tiger | Packed):
            return [table.astype(jnp.float32) for table in self.reader.code_vectors()]
        vectors = self.teacher.code_vectors()
        return [jax.lax.stop_gradient(table.astype(jnp.float32)) for table in vectors]

    def _mix(
        self, history: jax.Array, mask: jax.Array, users: jax.Array, deterministic: bool
    ) -> jax.Array:
        assert isinstance(self.reader, Mixer)
        tokens, ids = self.teacher.history(history, mask, users)
        return self.reader(jax.lax.stop_gradient(tokens), ids, deterministic=deterministic)

    def _summarize(self, states: jax.Array, ids: jax.Array, deterministic: bool) -> jax.Array:
        """float32 [B, D] of states [B, S, D]; those of a teacher or a `Mixer` get no gradient."""
        if self.cfg.control == "blind":
            return jnp.zeros((len(states), states.shape[2]))
        if self.cfg.control != "scratch":
            states = jax.lax.stop_gradient(states)
        return self.read_out(states.astype(jnp.float32), ids, deterministic)


def fold(model: SidMlp, params: Any) -> Any:
    """Parameters of the folded model: the first product of every head as a table per digit before.

    Args:
        params: of a model that is not folded.
    """
    vectors: Any = model.apply({"params": params}, method=SidMlp.code_vectors)
    folded = dict(params)
    D = model.teacher.cfg.width
    for level in range(len(model.sizes)):
        head = params[f"heads_{level}"]
        parts = head["up"]["kernel"].reshape(1 + level, D, -1)
        tables = {f"table_{j}": vectors[j] @ parts[1 + j] for j in range(level)}
        up = {**head["up"], "kernel": parts[0]}
        folded[f"heads_{level}"] = {**head, **tables, "up": up}
    return folded


def digit_losses(
    student: list[jax.Array], teacher: list[jax.Array], target: jax.Array, tau: float
) -> tuple[jax.Array, jax.Array]:
    """(KL(teacher, student) at temperature tau, negative log-probability of the target), float32
    [B] each in nats, summed over digits.

    Args:
        student, teacher: logits, L times float32 [B, sizes[l]]; no teacher gives a KL of 0.
        target: int32 [B, L].
    """
    kl = jnp.zeros(len(target))
    for ours, theirs in zip(student, teacher, strict=bool(teacher)):
        wanted = jax.nn.log_softmax(theirs / tau, axis=-1)
        found = jax.nn.log_softmax(ours / tau, axis=-1)
        kl += (jnp.exp(wanted) * (wanted - found)).sum(axis=-1)
    nats = jnp.zeros(len(target))
    for level, ours in enumerate(student):
        nats += layers.cross_entropy(ours, target[:, level])
    return kl, nats


def loss(
    model: SidMlp, params: Any, batch: dict[str, jax.Array], key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over rows of the sum over digits of alpha tau^2 KL + (1 - alpha) cross-entropy, and its
    parts by name.

    Args:
        params: the teacher's among them, as "teacher".
        batch: history [B, T, L], mask [B, T], users [B], target [B, L].
        key: of dropout; None is none.
    """
    inputs = (batch["history"], batch["mask"], batch["users"], batch["target"])
    lesson = training.forward(model, params, inputs, key, SidMlp.learn)
    cfg = model.cfg
    kl, nats = digit_losses(lesson.student, lesson.teacher, batch["target"], cfg.tau)
    total = (cfg.alpha * cfg.tau**2 * kl + (1 - cfg.alpha) * nats).mean()
    parts = {"kl": kl.mean(), "nats": nats.mean()}
    if isinstance(model.reader, Mixer):
        parts["states_error"] = lesson.states_error
    return total, parts


def imitation_loss(
    model: SidMlp, params: Any, batch: dict[str, jax.Array], key: jax.Array | None = None
) -> jax.Array:
    """Mean squared distance of a `Mixer`'s states to the teacher's; arguments are those of
    `loss`."""
    inputs = (batch["history"], batch["mask"], batch["users"])
    return training.forward(model, params, inputs, key, SidMlp.imitate)
