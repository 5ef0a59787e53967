"""What each kind of fault does to a training under way; a fault may be undone later."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from course import (
    ADDED_WORKER,
    AWAY_MLFLOW,
    CUT_RANKS,
    CUT_WORKER,
    FLIPPED_BYTE,
    FULL_DISK,
    KILLED_DRIVER,
    KILLED_NANNY,
    KILLED_RANK,
    KILLED_WORKER,
    STOPPED_RANK,
    STOPPED_WORKER,
    Fault,
)
from place import Nanny, Place

Undo = Callable[[], None]
# Those that a healthy training goes on through: no attempt ends by them.
HARMLESS = frozenset({ADDED_WORKER, AWAY_MLFLOW, FULL_DISK})


def hit(fault: Fault, place: Place, driver: psutil.Popen, storage: Path) -> tuple[str, Undo | None]:
    """Does it; returns what was done in words, and what undoes it after ``fault.lasts_s``."""
    signals = {KILLED_RANK: signal.SIGKILL, STOPPED_RANK: signal.SIGSTOP}
    if fault.kind in signals:
        return _signal(_pick(fault, place.ranks()), signals[fault.kind]), None
    if fault.kind == KILLED_WORKER:
        return _signal(_worker(_pick_nanny(fault, place)), signal.SIGKILL), None
    if fault.kind == STOPPED_WORKER:
        worker = _worker(_pick_nanny(fault, place))
        return _signal(worker, signal.SIGSTOP), lambda: _resume(worker)
    if fault.kind == KILLED_NANNY:
        return _signal(_pick_nanny(fault, place).process, signal.SIGKILL), None
    if fault.kind == KILLED_DRIVER:
        words = ""
        if fault.pick < 0.5 and (ranks := place.ranks()):
            words = f", after {_signal(ranks[0], signal.SIGSTOP)}"
        return _signal(driver, signal.SIGKILL) + words, None
    if fault.kind == ADDED_WORKER:
        return f"process {place.add_worker().process.pid}", None
    if fault.kind == FULL_DISK:
        filler = _fill(place.disk)
        words = f"{filler.stat().st_size >> 20} MB filled"
        if fault.pick < 0.5 and (ranks := place.ranks()):
            words += f", and {_signal(ranks[-1], signal.SIGKILL)}"
        return words, filler.unlink
    if fault.kind == CUT_WORKER:
        nanny = _pick_nanny(fault, place)
        nanny.link_up(False)
        return f"link {nanny.link} down", lambda: nanny.link_up(True)
    if fault.kind == CUT_RANKS:
        for nanny in place.nannies:
            nanny.alone(True)
        return "every worker from every other", lambda: [n.alone(False) for n in place.nannies]
    if fault.kind == FLIPPED_BYTE:
        return _flip(fault, place, storage), None
    assert fault.kind == AWAY_MLFLOW
    place.kill_mlflow()
    return "killed", place.start_mlflow


def may_come(fault: Fault, place: Place, storage: Path) -> bool:
    """Whether what it means to hit is there."""
    if fault.kind in (KILLED_RANK, STOPPED_RANK, CUT_RANKS):
        return bool(place.ranks())
    if fault.kind in (KILLED_WORKER, STOPPED_WORKER):
        return any(nanny.worker for nanny in place.nannies)
    if fault.kind == KILLED_NANNY:
        return sum(nanny.process.poll() is None for nanny in place.nannies) > 1
    if fault.kind == FLIPPED_BYTE:
        return bool(_checkpoints(storage)) and bool(place.ranks())
    if fault.kind == AWAY_MLFLOW:
        return place.mlflow is not None and place.mlflow.poll() is None
    return True


def _signal(process: psutil.Process, number: signal.Signals) -> str:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
    return f"{number.name} to process {process.pid}"


def _resume(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.resume()


def _pick(fault: Fault, among: list[psutil.Process]) -> psutil.Process:
    return among[int(fault.pick * len(among))]


def _pick_nanny(fault: Fault, place: Place) -> Nanny:
    """One that has a worker; those with a rank are likelier, as they are what matters."""
    alive = [n for n in place.nannies if n.process.poll() is None and n.worker is not None]
    with_rank = {parent.pid for rank in place.ranks() for parent in _parents(rank)}
    busy = [nanny for nanny in alive if nanny.worker and nanny.worker.pid in with_rank]
    among = busy if busy and fault.pick < 0.8 else alive
    return among[int(fault.pick * 97) % len(among)]


def _parents(process: psutil.Process) -> list[psutil.Process]:
    """A rank's worker is its parent, or that of the fork server that its parent is."""
    try:
        return process.parents()[:2]
    except psutil.NoSuchProcess:
        return []


def _worker(nanny: Nanny) -> psutil.Process:
    worker = nanny.worker
    assert worker is not None
    return worker


def _fill(disk: Path) -> Path:
    """A file that leaves no page of the disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


def _checkpoints(storage: Path) -> list[Path]:
    return sorted(storage.glob("train/*/checkpoints/*.ckpt"))


def _flip(fault: Fault, place: Place, storage: Path) -> str:
    """Flips a byte of the newest checkpoint (or both) once no rank can write a newer one."""
    for rank in place.ranks():
        _signal(rank, signal.SIGKILL)
    time.sleep(0.05)
    chance = random.Random(fault.pick)
    harmed = _checkpoints(storage)[0 if fault.pick < 0.3 else -1 :]
    for path in harmed:
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file = os.open(path, os.O_WRONLY)  # in place: a reader of its old bytes may have it open
        os.pwrite(file, data, 0)
        os.close(file)
    return f"{', '.join(path.name for path in harmed)}, and SIGKILL to all ranks"
