"""The training loop: one data stream, one teacher, k students side by side, with the same results as if each were trained alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from kdbench.errors import RankLostError, StoppedError
from kdbench.train.evaluate import Predictions, measured, predict_all
from kdbench.train.feed import Feed
from kdbench.train.member import NEVER, Member
from kdbench.train.ranks import ALONE, Ranks
from kdbench.train.result import digest_of
from kdbench.train.stream import BatchPlan
from kdbench.train.teacher import LiveTeacher

Position = tuple[int, int]
"""(epoch, step within it) of the next step."""


class Recorder(Protocol):
    """Saves the results of students."""

    def began(self, member: Member, position: Position) -> None: ...
    def save(self, member: Member, position: Position, must: bool = False) -> None: ...
    def finished(self, member: Member) -> None: ...
    def diverged(self, member: Member, step: int) -> None: ...
    def failed(self, member: Member, error: Exception) -> None: ...


def train(
    members: Sequence[Member],
    plan: BatchPlan,
    teacher: LiveTeacher | None,
    recorder: Recorder,
    start: Position = (0, 0),
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> None:
    """Train a bundle from `start` to its last epoch. A student that diverges or raises leaves the bundle; the others continue. Raises
    StoppedError if `stop` returns True on a rank, after every student was saved at its position, and RankLostError if a rank has ended."""
    _Training(plan, teacher, recorder, ranks).run(list(members), start, stop)


@dataclass
class _Training:
    plan: BatchPlan
    teacher: LiveTeacher | None
    recorder: Recorder
    ranks: Ranks

    def run(self, live: list[Member], start: Position, stop: Callable[[], bool]) -> None:
        epochs, plan, recorder = live[0].recipe["epochs"], self.plan, self.recorder
        if not epochs:  # taken as it is
            live = self._evaluated(live, -1)
        for epoch in range(start[0], epochs):
            skipped = start[1] if epoch == start[0] else 0
            if not skipped:
                for member in live:
                    member.begin_epoch()
            live = [member for member in live if self._survives(member, recorder.began, member, (epoch, skipped))]
            if not live:
                return
            with closing(Feed(plan, self.teacher, live, self.ranks).epoch(epoch, skipped)) as steps:
                for step in range(skipped, plan.steps):
                    if self.ranks.any(stop()):
                        for member in live:
                            self._survives(member, recorder.save, member, (epoch, step), True)
                        raise StoppedError(f"asked to stop in epoch {epoch + 1} at step {step + 1}: saved there")
                    given = next(steps)
                    live = [member for member in live if self._together(member, member.take, given, step == 0)]
                    if not live:
                        return
            live = self._ended(live, epoch)
            if not live:
                return
        for member in live:
            self._survives(member, recorder.finished, member)

    def _survives(self, member: Member, act: Callable[..., bool | None], *arguments: Any) -> bool:
        """Whether the student continues; an error, on whatever rank, is a failure of this student only."""
        try:
            return self.ranks.tried(lambda: act(*arguments) is not False)
        except RankLostError:
            raise
        except Exception as error:
            self.recorder.failed(member, error)
            return False

    def _together(self, member: Member, act: Callable[..., bool | None], *arguments: Any) -> bool:
        """`_survives` of what the ranks do together, saying how they fare."""
        try:
            return act(*arguments) is not False
        except RankLostError:
            raise
        except Exception as error:
            if not self.ranks.knows(error):
                raise
            self.recorder.failed(member, error)
            return False

    def _evaluated(self, live: list[Member], epoch: int) -> list[Member]:
        """End an epoch of some students with an evaluation of all in one pass over the images, and keep what they said of the test images;
        of models that are not trained it is epoch -1. Returns those that go on."""
        metrics: dict[str, dict[str, Any]] = {member.cell.id: {} for member in live}
        for split in ("val", "test"):
            if live and self.plan.data.size(split):
                models = [member.deployed for member in live]
                found = predict_all(live[0].task, models, self.plan.data, split, live[0].numerics, ranks=self.ranks)
                told = [(member, said, metrics[member.cell.id]) for member, said in zip(live, found, strict=True)]
                live = [member for member, *rest in told if self._together(member, self._judged, member, split, *rest)]
        return [member for member in live if self._survives(member, member.end_epoch, epoch, metrics[member.cell.id])]

    def _judged(self, member: Member, split: str, said: Predictions | Exception, metrics: dict[str, Any]) -> None:
        """`said` is on the first rank."""

        def judge() -> dict[str, Any]:
            if isinstance(said, Exception):
                raise said
            return measured(member.task, said)

        metrics[split] = self.ranks.first(judge)
        if split == "test" and not isinstance(said, Exception):
            member.predicted = said

    def _ended(self, live: list[Member], epoch: int) -> list[Member]:
        """End an epoch: those leave that have a value that is not finite, the others are evaluated where it is time, and saved."""
        live = [member for member in live if self._together(member, self._is_finite, member, epoch)]
        if not live:
            return live
        last, every = epoch + 1 == live[0].recipe["epochs"], live[0].recipe["evaluate_every"]  # shared by a bundle
        if last or (epoch + 1) % every == 0:
            live = self._evaluated(live, epoch)
        else:
            live = [member for member in live if self._survives(member, member.end_epoch, epoch, {})]
        return live if last else [member for member in live if self._survives(member, self.recorder.save, member, (epoch + 1, 0))]

    def _is_finite(self, member: Member, epoch: int) -> bool:
        def judge() -> int:
            if len(set(digests)) > 1:
                raise RuntimeError("the ranks have different weights after an epoch: their machines or libraries compute differently")
            bad = member.went_bad((epoch + 1) * self.plan.steps - 1)
            if bad != NEVER:
                member.end_epoch(epoch, {})
                self.recorder.diverged(member, bad)
            return bad

        digests = self.ranks.told(digest_of(member.trained.state_dict())) if self.ranks.world > 1 else []
        return self.ranks.tried(judge) == NEVER
