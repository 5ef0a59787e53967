"""The driver's watch over a gang: relays the store, passes events on, finds the first cause.

When one rank dies the others soon fail too, with a reset connection or a time-out in a
collective. So a cause is ranked before it is dated: what a rank's own code raised, a signal and a
lost worker come first, a bare exit status second, and errors that speak of peers last. The gang is
given a moment after its first failure, since the true cause may still be under way to us.
"""

import queue
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ddlflow.engines import Failure, GangEvent, GangJob, GangResult, OnGangEvent
from ddlflow.engines.causes import BARE_EXIT, OWN, PEER, severity_of, signal_text
from ddlflow.engines.rank_process import Lines, RankEnd, log_path
from ddlflow.rank_protocol import (
    PROGRESS,
    RankBeat,
    RankError,
    RankEvent,
    RankImporting,
    RankResult,
    RankSaid,
    RankStopped,
    StoreOpened,
    event_of,
)

STOP_S = 20.0  # from SIGTERM to SIGKILL: a step and a checkpoint
_FOLLOW_S = 5.0  # the other ranks' time to end after rank 0 has stopped
_SETTLE_OWN_S = 0.3  # an earlier failure of another rank may be under way
_SETTLE_PEER_S = 2.0  # the failure that this one follows from may be under way
_START_SILENCE_S = 30.0  # before the first step: an import can hold a whole process for seconds
_TICK_S = 0.2
_LOST_EVERY_S = 0.5
_SLEPT_S = 2.0  # between two looks: longer, and it is the watcher who was away
_TRACEBACK_CHARACTERS = 4000


@dataclass(frozen=True, slots=True)
class Heard:
    """Event lines of a rank."""

    rank: int
    lines: Lines


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a rank's process."""

    rank: int
    end: RankEnd


Inbox = queue.SimpleQueue[Heard | Ended]


class GangRanks(Protocol):
    """How an engine reaches the ranks of a gang."""

    def meet(self, store_host: str, store_port: int) -> None:
        """Tell every rank where the store is."""

    def terminate(self) -> None:
        """Send SIGTERM to rank 0."""

    def kill(self) -> None:
        """Kill every rank, and wait until their workers are free again."""

    def lost(self) -> dict[int, str]:
        """Ranks that will not be heard of again, each with the reason."""


@dataclass(slots=True)
class _Member:
    rank: int
    host: str
    heard: bool = False
    beaten: float = 0.0  # when its last beat came, monotonic; 0: none yet
    step: int | None = None
    results: list[Any] = field(default_factory=list)
    stopped: bool = False
    failed: bool = False
    ended: bool = False


@dataclass(slots=True)
class _GangWatch:
    """What is known of the gang so far."""

    job: GangJob
    members: list[_Member]
    ranks: GangRanks
    on_event: OnGangEvent
    causes: list[tuple[int, float, Failure]] = field(default_factory=list)
    settle_at: float = float("inf")  # when the first cause is taken as found, monotonic
    end_by: float = float("inf")  # when a gang that stops is killed, monotonic
    start_by: float = float("inf")  # when ranks that were not heard of count as lost, monotonic
    asked: bool = False  # SIGTERM was sent
    looked: float = field(default_factory=time.monotonic)  # for silence

    def over(self) -> bool:
        now = time.monotonic()
        return all(m.ended for m in self.members) or now >= min(self.settle_at, self.end_by)

    def ask_to_stop(self) -> None:
        self.asked = True
        self.end_by = time.monotonic() + STOP_S
        self.ranks.terminate()

    def heard(self, message: Heard) -> None:
        member = self.members[message.rank]
        for at, line in message.lines:
            try:
                event = event_of(line)
            except ValueError:
                text = f"The rank wrote a line that is no event: {line[:200]!r}."
                self.blame(member, "BadEvent", text, at=at)
                member.heard = True
                continue
            if isinstance(event, RankImporting):
                self.start_by = time.monotonic() + self.job.start_timeout_s
                continue
            member.heard = True
            self._take(member, event, at)
            if not isinstance(event, RankBeat):
                self.on_event(GangEvent(member.rank, member.host, event))

    def _take(self, member: _Member, event: RankEvent, at: float) -> None:
        match event:
            case RankSaid(name, values) if name == PROGRESS:
                member.step = values.get("step", member.step)
            case RankBeat(step, idle_s, stuck):
                member.beaten = time.monotonic()
                member.step = step
                if stuck and not member.failed:
                    # It waits for a peer more often than it is the one that hangs.
                    text = f"its work has stood still for {idle_s:.0f} s"
                    self.blame(member, "Hung", text, severity=PEER)
            case StoreOpened(port):
                self.ranks.meet(member.host, port)
            case RankResult(value):
                member.results = [value]
            case RankStopped():
                member.stopped = True
            case RankError(kind, message, trace):
                severity = severity_of(kind, message)
                self.blame(member, kind, message, trace, at=at, severity=severity)

    def ended(self, message: Ended) -> None:
        member, end = self.members[message.rank], message.end
        member.ended = True
        if member.stopped or self.asked:
            grace_s = _FOLLOW_S if member.rank == 0 else STOP_S
            self.end_by = min(self.end_by, time.monotonic() + grace_s)
        if end.returncode == 0 and (member.results or member.stopped):
            return
        if member.failed or (self.asked and end.returncode == -signal.SIGTERM):
            return
        if end.returncode < 0:
            text = end.reason or signal_text(-end.returncode)
            self.blame(member, "Killed", text, end.log_end, at=end.time)
        else:
            text = f"exited with status {end.returncode}"
            text += "" if end.returncode else " without a result"
            self.blame(member, "Exited", text, end.log_end, at=end.time, severity=BARE_EXIT)

    def lost(self, rank: int, reason: str) -> None:
        member = self.members[rank]
        if not member.ended:
            member.ended = True
            self.blame(member, "WorkerLost", reason)

    def look_for_silence(self) -> None:
        """A rank whose beats have ended is stopped, swapped out or cut off."""
        if not self.job.silence_s or self.asked:
            return
        now = time.monotonic()
        slept_s, self.looked = now - self.looked - _SLEPT_S, now
        if slept_s > 0:  # the driver itself was stopped or swapped out, and has heard nobody
            for member in self.members:
                member.beaten += slept_s if member.beaten else 0.0
        started = any(member.step for member in self.members)
        limit_s = self.job.silence_s if started else max(self.job.silence_s, _START_SILENCE_S)
        for member in self.members:
            silent_s = now - member.beaten
            gone = member.ended or member.failed or member.stopped or member.results
            if member.beaten and not gone and silent_s > limit_s:
                self.blame(member, "Hung", f"no sign of life for {silent_s:.0f} s")

    def never_started(self) -> None:
        silent = [m for m in self.members if not m.heard and not m.ended]
        if silent:
            which = ", ".join(str(m.rank) for m in silent)
            text = f"no sign of life within {self.job.start_timeout_s:g} s of the start"
            text += f" (rank {which} of {len(self.members)})"
            self.blame(silent[0], "StartTimeout", text)

    def blame(
        self,
        member: _Member,
        kind: str,
        message: str,
        trace: str = "",
        *,
        at: float | None = None,
        severity: int = OWN,
    ) -> None:
        member.failed = True
        failure = Failure(
            rank=member.rank,
            host=member.host,
            step=member.step,
            kind=kind,
            message=message,
            traceback=trace[-_TRACEBACK_CHARACTERS:],
            log=str(log_path(self.job, member.rank)),
        )
        self.causes.append((severity, time.time() if at is None else at, failure))
        settle_s = _SETTLE_OWN_S if severity == OWN else _SETTLE_PEER_S
        self.settle_at = min(self.settle_at, time.monotonic() + settle_s)

    def result(self) -> GangResult:
        stopped = self.asked or any(m.stopped for m in self.members)
        if all(m.results for m in self.members) and not self.causes:
            return GangResult([m.results[0] for m in self.members], None, stopped=False)
        causes = sorted(self.causes, key=lambda cause: cause[:2])
        if stopped:
            # Ranks that lose a stopping peer fail as they must; a failure of their own counts.
            causes = [cause for cause in causes if cause[0] == OWN]
        return GangResult(None, causes[0][2] if causes else None, stopped)


def watch_gang(
    job: GangJob,
    hosts: Sequence[str],
    ranks: GangRanks,
    inbox: Inbox,
    *,
    on_event: OnGangEvent,
    stop: threading.Event | None,
) -> GangResult:
    """Watch ranks that were just started until they are done, fail or are stopped.

    Args:
        job: what they run.
        hosts: each rank's host as the others reach it.
        ranks: how to reach them; all are dead when this returns or raises.
        inbox: what they say, in order for each rank.
        on_event: see `Engine.gang`.
        stop: see `Engine.gang`.
    """
    members = [_Member(rank, host) for rank, host in enumerate(hosts)]
    gang = _GangWatch(job, members, ranks, on_event)
    gang.start_by = time.monotonic() + job.start_timeout_s
    look_at = time.monotonic() + _LOST_EVERY_S
    try:
        while not gang.over():
            if stop is not None and stop.is_set() and not gang.asked:
                gang.ask_to_stop()
            try:
                message = inbox.get(timeout=_TICK_S)
            except queue.Empty:
                pass
            else:
                if isinstance(message, Heard):
                    gang.heard(message)
                else:
                    gang.ended(message)
            now = time.monotonic()
            if now >= gang.start_by:
                gang.start_by = float("inf")
                gang.never_started()
            if now >= look_at:
                look_at = now + _LOST_EVERY_S
                for rank, reason in ranks.lost().items():
                    gang.lost(rank, reason)
                gang.look_for_silence()
    finally:
        ranks.kill()
    return gang.result()
