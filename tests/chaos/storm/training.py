"""One training and what comes upon it: its command is given again whenever it was killed."""

import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from course import FLIPPED_BYTE, FULL_DISK, KILLED_DRIVER, Course, Fault
from faults import HARMLESS, Undo, hit, may_come
from place import Place

from ddlflow.history.audit import audit_ledgers
from ddlflow.runs.finished import STAGE_FILE
from ddlflow.runs.result_json import from_json
from ddlflow.runs.results import TrainResult

HERE = Path(__file__).parent
SILENCE_S = 2.0
START_S = 4.0  # a fault "while an attempt starts" comes within so much of its begin
UNHARMED_S = SILENCE_S + 2.5  # a training that still steps so long after a fault goes on through it
GIVE_UP_S = 600.0
LEASE_S = 30.0  # a rank may outlive its driver for so long


class Failed(Exception):  # noqa: N818 - of the training, and the reason to look at it
    """A training did not end as it has to."""


@dataclass(slots=True)
class Hit:
    """A fault that came.

    Attributes:
        fault: which.
        at: when, monotonic.
        step: the last step told of before.
        attempts: that had begun before.
        words: what was done.
        recovered_s: from it to the next step of a later attempt, if there had to be one.
        again: steps that had to be done again.
        joined: another fault came before the training had recovered: that one is measured.
    """

    fault: Fault
    at: float
    step: int
    attempts: int
    words: str
    recovered_s: float | None = None
    again: int = 0
    joined: bool = False


@dataclass(slots=True)
class Ended:
    """How a training ended."""

    course: Course
    hits: list[Hit]
    worlds: list[int]
    seconds: float
    value: dict[str, Any]
    leases: list[float] = field(default_factory=list)  # from a driver's end to its last rank's


class Training:
    """Runs one course in a storage of its own, prepared before."""

    def __init__(self, place: Place, course: Course, prepared: Path, mlflow: bool) -> None:
        self.place, self.course = place, course
        self.storage = place.disk / f"training-{course.number}"
        shutil.copytree(prepared, self.storage)
        self.site = place.folder / f"site-{course.number}.yaml"
        tracking = place.mlflow_uri if mlflow else f"sqlite:///{place.folder}/none.db"
        write_site(self.site, place, self.storage, course.workers, tracking)
        self.log = place.folder / f"training-{course.number}.log"
        self.events: queue.SimpleQueue[tuple[int, float, dict[str, Any] | None]]
        self.events = queue.SimpleQueue()
        self.waiting = list(course.faults)
        self.hits: list[Hit] = []
        self.undo: list[tuple[float, Undo]] = []
        self.worlds: list[int] = []
        self.leases: list[float] = []
        self.orphans: list[tuple[float, list[psutil.Process]]] = []
        self.began = time.monotonic()
        self.step = self.attempts = self.drivers = 0
        self.began_at = self.told_at = self.full_until = 0.0
        self.stepped = False  # in this attempt
        self.due_at: float | None = None
        self.done: dict[str, Any] | None = None

    def run(self) -> Ended:
        """Trains to the end.

        Raises:
            Failed: naming what was seen.
        """
        try:
            self._start()
            while self.done is None or self.driver.poll() is None:
                self._hear()
                self._look(time.monotonic())
                if time.monotonic() - self.began > GIVE_UP_S:
                    raise Failed(f"no end after {GIVE_UP_S:.0f} s\n{self._log_end()}")
        finally:
            with suppress(psutil.NoSuchProcess):  # it has ended
                self.driver.kill()
            for _, undo in self.undo:
                undo()
        self._await_orphans()
        self._check(self.done)
        seconds = time.monotonic() - self.began
        return Ended(self.course, self.hits, self.worlds, seconds, self.done["value"], self.leases)

    def _check(self, done: dict[str, Any]) -> None:
        """What has to hold of a training that ended, but for its digest."""
        if self.driver.wait():
            raise Failed(f"the command ended with {self.driver.returncode}\n{self._log_end()}")
        folder, name = Path(done["folder"]), f"training {self.course.number}"
        audit = audit_ledgers(
            name, folder / "ledger", from_json(TrainResult, done["value"], STAGE_FILE)
        )
        if audit.faults:
            raise Failed(f"the audit found: {audit.faults}\n{self._log_end()}")
        flipped = any(hit.fault.kind == FLIPPED_BYTE for hit in self.hits)
        if flipped and "is damaged" not in self.log.read_text(errors="replace"):
            raise Failed("the user was not told of a damaged checkpoint")

    # ---- the driver ------------------------------------------------------------------------

    def _start(self) -> None:
        self.drivers += 1
        more = ["--record"] if self.course.recorded else []
        with self.log.open("ab") as log:
            self.driver = psutil.Popen(
                [sys.executable, HERE / "driver.py", HERE / "pipeline", self.site, *more],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.place.folder,
                start_new_session=True,
            )
        threading.Thread(target=self._read, args=(self.driver, self.drivers), daemon=True).start()

    def _read(self, driver: psutil.Popen, number: int) -> None:
        for line in driver.stdout:
            try:
                self.events.put((number, time.monotonic(), json.loads(line)))
            except ValueError:  # the last words of a driver that was killed
                print(f"  the driver wrote {line!r}", flush=True)
        driver.wait()
        self.events.put((number, time.monotonic(), None))

    def _ended(self) -> None:
        """The command has ended before the training did: it is given again, where it may be."""
        if self.done is not None:
            return
        killed = self.driver.returncode == -9
        no_space = time.monotonic() < self.full_until + 10 and "No space left" in self._log_end()
        if not killed and not no_space:
            text = f"the command ended with status {self.driver.returncode}\n{self._log_end()}"
            raise Failed(text)
        self._start()

    def say(self, text: str) -> None:
        print(f"  {time.monotonic() - self.began:5.1f} s, step {self.step:3}: {text}", flush=True)

    def _log_end(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    # ---- what is told ----------------------------------------------------------------------

    def _hear(self) -> None:
        """The driver's next event, if there is one in a moment."""
        try:
            number, at, event = self.events.get(timeout=0.05)
        except queue.Empty:
            return
        if event is not None:
            self._take(event, at)
        elif number == self.drivers:
            self._ended()

    def _take(self, event: dict[str, Any], at: float) -> None:
        if event["event"] == "done":
            self.done = event
        elif event["event"] == "attempt" and "ended_by" in event:
            self.say(f"attempt {event['number']} ended: {event['ended_by']}")
        elif event["event"] == "attempt":
            self.attempts += 1
            self.worlds.append(event["world"])
            self.began_at, self.stepped = at, False
            self.say(f"an attempt of {event['world']} begins")
        elif event["event"] == "digest":
            self.told_at, self.stepped = at, True
            for hit in self.hits:
                is_open = hit.recovered_s is None and self._ends_attempts(hit)
                if is_open and self.attempts > hit.attempts:
                    hit.recovered_s = at - hit.at
                    self.say(f"recovered from {hit.fault.kind} in {hit.recovered_s:.1f} s")
                    hit.again = max(0, hit.step - event["step"] + 1)
            self.step = event["step"]

    def _ends_attempts(self, hit: Hit) -> bool:
        return not hit.joined and (hit.fault.kind not in HARMLESS or "SIGKILL" in hit.words)

    def _settled(self, now: float) -> bool:
        """Whether the last fault is over, or goes unnoticed."""
        if not self.hits or not self._ends_attempts(self.hits[-1]):
            return True
        last = self.hits[-1]
        goes_on = now - last.at > UNHARMED_S and now - self.told_at < 1 and self.stepped
        return last.recovered_s is not None or (goes_on and self.attempts == last.attempts)

    # ---- what comes upon it ----------------------------------------------------------------

    def _look(self, now: float) -> None:
        for due in [due for due in self.undo if now >= due[0]]:
            self.undo.remove(due)
            due[1]()
        for due in list(self.orphans):
            if not any(process.is_running() and _runs(process) for process in due[1]):
                self.leases.append(now - due[0])
                self.orphans.remove(due)
            elif now - due[0] > LEASE_S:
                raise Failed(f"{due[1]} run {LEASE_S:.0f} s after their driver was killed")
        if self.waiting and self.done is None and self._is_due(self.waiting[0], now):
            fault = self.waiting[0]
            if may_come(fault, self.place, self.storage):
                self.waiting.pop(0)
                self.due_at = None
                self._hit(fault, now)

    def _is_due(self, fault: Fault, now: float) -> bool:
        if fault.at_step is None:
            if self.attempts and not self.stepped:
                return now >= self.began_at + fault.after_s / 0.4 * START_S
            if not self._settled(now) or not self.hits:
                return False
        elif not (self._settled(now) and self.stepped and self.step >= fault.at_step):
            return False
        self.due_at = self.due_at or now + fault.after_s
        return now >= self.due_at

    def _hit(self, fault: Fault, now: float) -> None:
        for before in self.hits:
            # Its recovery begins anew with this one, or it needed none.
            before.joined = before.recovered_s is None
        if fault.kind == KILLED_DRIVER and (ranks := self.place.ranks()):
            self.orphans.append((now, ranks))
        at = time.monotonic()
        words, undo = hit(fault, self.place, self.driver, self.storage)
        self.hits.append(Hit(fault, at, self.step, self.attempts, words))
        if undo is not None:
            lasts_s = fault.lasts_s
            if fault.kind == FULL_DISK:
                lasts_s /= 2
                self.full_until = now + lasts_s
            self.undo.append((now + lasts_s, undo))
        self.say(f"{fault.kind}: {words}")

    def _await_orphans(self) -> None:
        """No rank of this training may be left."""
        give_up = time.monotonic() + LEASE_S
        while ranks := self.place.ranks():
            if time.monotonic() > give_up:
                raise Failed(f"{ranks} are left after the training")
            self._look(time.monotonic())
            time.sleep(0.2)
        self._look(time.monotonic())


def write_site(path: Path, place: Place, storage: Path, workers: int, tracking: str) -> None:
    """A site on the suite's cluster."""
    engine = {
        "use": "dask",
        "address": place.address,
        "workers": workers,
        "threads": 1,
        "max_restarts": 50,
        "silence_s": SILENCE_S,
        "start_timeout_s": 30,
    }
    site = {
        "engine": engine,
        "device": "cpu",
        "data_root": str(place.folder / "data"),
        "storage": str(storage),
        "tracking": {"uri": tracking},
    }
    path.write_text(yaml.safe_dump(site))


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
