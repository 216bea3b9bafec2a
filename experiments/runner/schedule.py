# SPDX-License-Identifier: Apache-2.0
"""What is due at a step: the one place that says so."""

from typing import NamedTuple

from ml_collections import ConfigDict


class Schedule(NamedTuple):
    """Steps count finished updates: 0 is the fresh state, `total` the end."""

    total: int
    eval_every: int
    save_every: int
    log_every: int
    milestones: frozenset[int]
    selects: bool
    """The best checkpoint by a valid metric is tested, instead of the last."""

    def logs(self, step: int) -> bool:
        """The training metrics of this step; not of the last: a longer run must log the same."""
        return step % self.log_every == 0

    def validates(self, step: int) -> bool:
        """An evaluation on valid."""
        return self.total > 0 and (step % self.eval_every == 0 or step == self.total)

    def tests(self, step: int) -> bool:
        """Evaluations on the final splits."""
        return step in self.milestones or (step == self.total and not self.selects)

    def saves(self, step: int) -> bool:
        """A checkpoint."""
        regular = step > 0 and (
            step % self.save_every == 0 or (self.selects and self.validates(step))
        )
        return regular or step in self.milestones or step == self.total

    def settles(self, step: int) -> bool:
        """Something that has to come after the metrics of this very step."""
        return self.validates(step) or self.tests(step) or self.saves(step)


def of(config: ConfigDict, milestones: tuple[int, ...]) -> Schedule:
    """Schedule of a config and the milestones of its experiment."""
    return Schedule(
        total=config.train.steps,
        eval_every=config.eval.every,
        save_every=config.train.save_every,
        log_every=config.log.every,
        milestones=frozenset(milestones),
        selects=bool(config.eval.select[0]),
    )
