"""One rank's process: started and watched by the worker that it runs on, on every engine.

It is forked from a process that has its modules imported (`forked`), or a fresh interpreter where
there is none.

What they say to each other stands in `ddlflow.rank_protocol`.
"""

import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ddlflow.engines import GangJob
from ddlflow.engines.environment import rank_environment
from ddlflow.engines.fork_owner import ForkServers, Offer, key_of
from ddlflow.engines.fork_server import Order
from ddlflow.engines.forked import Forked
from ddlflow.rank_protocol import (
    EVENTS_OPTION,
    RankError,
    RankImporting,
    RankStart,
    StoreAddress,
    event_line,
    line_of,
)

SECRET_BYTES = 16  # of a gang; nobody guesses it
# Lines as they were read, each with this host's clock at that moment.
Lines = list[tuple[float, str]]

_BATCH_S = 0.02  # events are read at most this often: thousands a second travel in few messages
_FORK_POLL_S = 0.005  # a fork takes 20 ms
_IMPORTING_EVERY_S = 0.5
_IMPORT_S = 120.0  # for what a rank imports, on a busy machine with a cold disk
_POLL_S = 0.1  # how soon an exit is seen where a child of the rank keeps the pipe open
_FEEDER_S = 5.0  # a feeder only hangs on a pipe kept open by a process that left the group
_LOG_END_BYTES = 4000


@dataclass(frozen=True, slots=True)
class RankEnd:
    """How a rank's process ended: on this host's clock, with Popen's return code.

    Attributes:
        reason: in words, where the return code does not tell it.
    """

    time: float
    returncode: int
    log_end: str
    reason: str = ""


def not_started() -> RankEnd:
    """The end of a rank that was ended before it began."""
    return RankEnd(time.time(), -signal.SIGTERM, "")


class RankProcess:
    """A rank's process. `run` blocks in one thread; the other methods may be called from any."""

    def __init__(
        self,
        job: GangJob,
        rank: int,
        world: int,
        *,
        host: str,
        secret: str,
        servers: ForkServers,
        offered: Offer | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Prepare it.

        Args:
            job: what it runs.
            rank: its number.
            world: how many there are.
            host: the address that others reach it by.
            secret: of the gang.
            servers: this process's own, to fork it from.
            offered: another process's server on this host; it comes first where it fits.
            environment: all of its variables; None: this process's with what the job says.
        """
        self._job = job
        self._environment = environment or rank_environment(job.threads, job.env, job.python_path)
        self._log = log_path(job, rank)
        self._log_start = 0
        self._servers, self._offered = servers, offered
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._killed = False
        self._lock = threading.Lock()
        self._input: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._say(RankStart(rank, world, host, secret, os.getpid(), job.payload))

    def run(self, emit: Callable[[Lines], None], wanted: Callable[[], bool]) -> RankEnd:
        """Start the process and watch it to its end. Nothing that it started in turn outlives it.

        Args:
            emit: takes the event lines as they come; they are not parsed here.
            wanted: asked several times a second; the rank is killed once it says no.
        """
        events, events_of_rank = os.pipe()
        stdin_of_rank, stdin = os.pipe()
        pipe = os.fdopen(stdin, "wb")
        try:
            try:
                self._start(stdin_of_rank, events_of_rank, emit, wanted)
            except OSError as error:
                emit([(time.time(), _as_event(error))])
                return RankEnd(time.time(), 1, "")
            finally:
                os.close(events_of_rank)
                os.close(stdin_of_rank)
            if self._process is None:  # ended before it was started
                return not_started()
            feeder = threading.Thread(target=self._feed, args=(pipe,), daemon=True)
            feeder.start()
            try:
                self._read(events, self._process, emit, wanted)
                returncode = self._process.wait()
                is_orphaned = isinstance(self._process, Forked) and self._process.orphaned
                reason = "its fork server was killed, and took it along" if is_orphaned else ""
                return RankEnd(time.time(), returncode, self._log_end(), reason)
            finally:
                self.kill()
                self._process.wait()
                self._input.put(None)
                feeder.join(_FEEDER_S)
        finally:
            os.close(events)
            if self._process is None:
                pipe.close()

    def meet(self, store_host: str, store_port: int) -> None:
        """Tell the rank where rank 0's store is."""
        self._say(StoreAddress(store_host, store_port, self._job.start_timeout_s))

    def terminate(self) -> None:
        """Ask the rank to finish its step and end (SIGTERM)."""
        with self._lock:
            if self._process is None:
                self._killed = True
            elif self._process.returncode is None:
                self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the rank and all that it started; if it has not been started, it will not be."""
        with self._lock:
            self._killed = True
            if isinstance(self._process, Forked):
                self._process.kill_group()
            elif self._process is not None:
                # The group of an exited rank lives on in its children; without any it is gone.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def _start(
        self,
        stdin: int,
        events: int,
        emit: Callable[[Lines], None],
        wanted: Callable[[], bool],
    ) -> None:
        with self._open_log() as log:
            self._log_start = log.tell()
            descriptors = (stdin, log.fileno(), events)
            if self._fork(descriptors, emit, wanted):
                return
            with self._lock:
                if self._killed:
                    return
                self._process = subprocess.Popen(
                    [sys.executable, "-m", self._job.module, EVENTS_OPTION, str(events)],
                    stdin=stdin,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    pass_fds=(events,),
                    start_new_session=True,  # a group to kill; no Ctrl-C from the terminal
                )

    def _fork(
        self,
        descriptors: Sequence[int],
        emit: Callable[[Lines], None],
        wanted: Callable[[], bool],
    ) -> bool:
        """Have it forked where there is a server; False where it has to be started afresh."""
        environment, offer = self._environment, self._offered
        if offer is None or offer.key != key_of(environment, self._job.preload):
            offer = self._servers.offer(environment, self._job.preload)
        if offer is None:
            return False
        order = Order(self._job.module, (), EVENTS_OPTION, str(Path.cwd()), environment)
        with self._lock:
            if self._killed:
                return True
            try:
                forked = Forked(offer, order, descriptors)
            except OSError:
                return False
            self._process = forked
        began = said = time.monotonic()
        while forked.pid is None and forked.returncode is None:
            now = time.monotonic()
            if now - said > _IMPORTING_EVERY_S and now - began < _IMPORT_S:
                said = now
                emit([(time.time(), event_line(RankImporting()))])
            if not wanted():
                self.kill()
            time.sleep(_FORK_POLL_S)
        if forked.lost:
            self._process = None
        return not forked.lost

    def _open_log(self) -> BinaryIO:
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            return self._log.open("ab")
        except OSError:  # a full disk: the rank may get on without a log
            return Path(os.devnull).open("ab")

    def _read(
        self,
        events: int,
        process: subprocess.Popen[bytes] | Forked,
        emit: Callable[[Lines], None],
        wanted: Callable[[], bool],
    ) -> None:
        """Pass on whole lines until the pipe's end, or until the rank has exited."""
        poller = select.poll()
        poller.register(events, select.POLLIN)
        rest = b""
        while True:
            if not wanted():
                self.kill()
            if not poller.poll(_POLL_S * 1000):
                if process.poll() is not None:
                    return
                continue
            chunk = os.read(events, 1 << 16)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            if lines:
                now = time.time()
                emit([(now, line.decode(errors="replace")) for line in lines])
                time.sleep(_BATCH_S)

    def _say(self, message: RankStart | StoreAddress) -> None:
        self._input.put(line_of(message).encode() + b"\n")

    def _feed(self, pipe: BinaryIO) -> None:
        """Write what was said to standard input; in a thread, as a rank may be slow to read."""
        # A rank that ended needs no input; why it ended is told by its exit.
        with suppress(BrokenPipeError), pipe:
            while (line := self._input.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _log_end(self) -> str:
        with suppress(OSError), self._log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - _LOG_END_BYTES))
            return log.read().decode(errors="replace")
        return ""


def log_path(job: GangJob, rank: int) -> Path:
    """Where a rank's standard output and error go."""
    return Path(job.log_folder) / f"rank-{rank}.log"


def _as_event(error: OSError) -> str:
    message = f"The rank's process could not be started: {error}."
    return event_line(RankError(type(error).__name__, message, ""))
