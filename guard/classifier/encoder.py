"""Runs windows of tokens through the encoder's graph; callers who come together share a pass. Knows no heads."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Condition
from time import monotonic

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ringfence.guard.classifier.tokens import Window

BATCH = 16
"""Windows in one pass: more gain nothing on a CPU and cost memory."""

Features = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class Job:
    """What one caller brought.

    Attributes:
        todo: the windows that no pass has taken yet, by index, the shortest first.
        left: how many are not answered yet.
        error: why the graph failed on one of them.
    """

    windows: Sequence[Window]
    features: list[Features | None]
    todo: list[int]
    left: int
    error: Exception | None = None

    @classmethod
    def of(cls, windows: Sequence[Window]) -> "Job":
        """Open a job."""
        todo = sorted(range(len(windows)), key=lambda at: len(windows[at].ids))
        return cls(windows, [None] * len(windows), todo, len(windows))

    def length(self, at: int) -> int:
        """Tokens of a window."""
        return len(self.windows[at].ids)

    def near(self, length: int) -> Sequence[int]:
        """Return windows not yet taken, among them the `BATCH` nearest to a length."""
        middle = bisect_left(self.todo, length, key=self.length)
        return self.todo[max(0, middle - BATCH) : middle + BATCH]

    def take(self, at: int) -> None:
        """Count a window as taken."""
        del self.todo[self.todo.index(at, bisect_left(self.todo, self.length(at), key=self.length))]


class Encoder:
    """The graph `(ids, kinds, mask: int64 (B, T)) → features (B, W)`. Thread-safe.

    Nobody waits for company: a caller who finds the graph idle runs it, and those who come meanwhile share the passes
    that follow. Every other pass begins with the caller who has least to read, so that a short text does not stand in
    line behind long ones, and the rest with the one who has waited longest. What a window yields depends on that window
    alone, whatever else is in its pass.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._jobs: list[Job] = []  # those with windows to take, in the order of their coming
        self._passes = 0
        self._busy = False
        self._changed = Condition()

    def features(self, windows: Sequence[Window], until: float | None = None) -> Features:
        """Return the features (windows, W) of windows.

        Args:
            until: when nobody waits for them any more, in seconds of `time.monotonic`.

        Raises:
            TimeoutError: that time has come; passes not yet begun are not run.
            Exception: what the runtime raised.
        """
        if not windows:
            return np.empty((0, 0), np.float32)
        job = Job.of(windows)
        with self._changed:
            self._jobs.append(job)
        while True:
            with self._changed:
                left = None if until is None else max(0.0, until - monotonic())
                self._changed.wait_for(lambda: not job.left or not self._busy, left)
                if not job.left:
                    break
                if until is not None and monotonic() >= until:
                    job.todo = []
                    self._jobs = [other for other in self._jobs if other is not job]
                    raise TimeoutError("took longer than it was given")
                self._busy, taken = True, self._take()
            self._run(taken)
        if job.error:
            raise job.error
        return np.stack([one for one in job.features if one is not None])

    def _take(self) -> list[tuple[Job, int]]:
        """Choose the windows of the next pass: one caller's shortest, and those nearest to it in length, whosever.

        Windows are padded to the longest, so that unlike ones would cost more together than apart.
        """
        self._passes += 1
        first = self._jobs[0] if self._passes % 2 else min(self._jobs, key=lambda job: job.left)
        length = first.length(first.todo[0])
        near = [
            (job, at) for job in (first, *(one for one in self._jobs if one is not first)) for at in job.near(length)
        ]
        near.sort(key=lambda one: abs(one[0].length(one[1]) - length))  # stable: of those alike, the first caller's
        taken = near[:BATCH]
        for job, at in taken:
            job.take(at)
        self._jobs = [job for job in self._jobs if job.todo]
        return taken

    def _run(self, taken: Sequence[tuple[Job, int]]) -> None:
        """Run one pass and tell those whose windows are in it."""
        error: Exception | None = RuntimeError("the pass was interrupted")
        answers: Sequence[Features] = ()
        try:
            answers = self._session.run(None, feed([job.windows[at] for job, at in taken]))[0]
            error = None
        except Exception as raised:  # noqa: BLE001  # the runtime raises bare ones; each caller raises it again
            error = raised
        finally:
            with self._changed:
                self._busy = False
                if error:
                    for job, _ in taken:
                        job.error, job.left, job.todo = error, 0, []
                    self._jobs = [job for job in self._jobs if job.todo]
                else:
                    for (job, at), answer in zip(taken, answers, strict=True):
                        job.features[at] = answer
                        job.left -= 1
                self._changed.notify_all()


def feed(windows: Sequence[Window]) -> dict[str, NDArray[np.int64]]:
    """Pad windows to the longest of them."""
    shape = (len(windows), max(len(window.ids) for window in windows))
    ids, kinds, mask = (np.zeros(shape, np.int64) for _ in range(3))
    for row, window in enumerate(windows):
        length = len(window.ids)
        ids[row, :length], kinds[row, :length], mask[row, :length] = window.ids, window.kinds, 1
    return {"ids": ids, "kinds": kinds, "mask": mask}
