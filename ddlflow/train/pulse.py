"""Signs of life: whether a rank's work moves, told by a thread beside it.

A rank that is stopped or swapped out says nothing at all; the driver sees that by itself. One that
hangs in a collective still has this thread, which says how long the work has stood still. How long
is too long depends on the model: ten times the longest wait that ended well, at least ``limit_s``.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ddlflow.rank_protocol import RankBeat

BEAT_S = 1.0
FIRST_S = 120.0  # a first step may compile, or read its rows from a cold disk
FACTOR = 10.0


class Pulse:
    """Marked by the work at each step; a thread tells of it every `BEAT_S`.

    Args:
        emit: gets a beat.
        limit_s: how long work may stand still, at least; 0: as long as it likes.

    Attributes:
        at: when the work last moved, monotonic; the work sets it.
        step: the last step done; the work sets it.
        resting: set while something without steps goes on, such as writing the model: standing
            still is no fault then.
    """

    __slots__ = (
        *("_emit", "_fetching", "_limit_s", "_lock", "_longest_s", "_seen", "_thread"),
        *("at", "resting", "step"),
    )

    def __init__(self, emit: Callable[[RankBeat], None], limit_s: float) -> None:
        self.at = self._seen = time.monotonic()
        self.step = 0
        self.resting = False
        self._emit = emit
        self._fetching, self._lock = 0, threading.Lock()
        self._limit_s = limit_s
        self._longest_s: float | None = None  # None until the first step is done
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> "Pulse":
        """Begins to tell of it."""
        self._thread.start()
        return self

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """While shards are read or copied for the first time: a step may have to wait for them.

        Several threads may do so. The time counts from the end on: it measures no step.
        """
        with self._lock:
            self._fetching += 1
        try:
            yield
        finally:
            self.at = self._seen = time.monotonic()
            with self._lock:
                self._fetching -= 1

    def tell(self) -> None:
        """One beat now; before an error is told of, so that its step is exact."""
        self._emit(self.look(time.monotonic()))

    def look(self, now: float) -> RankBeat:
        """The beat of this moment.

        Args:
            now: monotonic.
        """
        moved_at = self.at
        if moved_at != self._seen:
            # What came before the first step (imports, meeting the others) measures no step.
            waited_s = 0.0 if self._longest_s is None else moved_at - self._seen - BEAT_S
            self._longest_s = max(self._longest_s or 0.0, waited_s)
            self._seen = moved_at
        limit_s = max(self._limit_s, FACTOR * (self._longest_s or 0.0))
        if self._longest_s is None:
            limit_s = max(limit_s, FIRST_S)
        idle_s = now - moved_at
        is_still = idle_s > limit_s and not self.resting and not self._fetching
        stuck = bool(self._limit_s) and is_still
        return RankBeat(self.step, idle_s, stuck)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            self.tell()
