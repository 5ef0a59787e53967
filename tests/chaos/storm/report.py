"""The suite's table, as it stands in benchmarks/chaos.md."""

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch
from course import DECK
from training import Ended


def report(
    ended: Sequence[Ended],
    failed: Sequence[int],
    missing: Mapping[str, str],
    *,
    seed: int,
    seconds: float,
) -> str:
    """A page in Markdown."""
    hits = [hit for training in ended for hit in training.hits]
    measured = [hit.recovered_s for hit in hits if hit.recovered_s is not None]
    worlds = [world for training in ended for world in training.worlds]
    apart = "" if missing else ", each worker in a network of its own, a disk of 64 MB"
    lines = [
        "# Chaos",
        "",
        f"`make chaos`, {time.strftime('%Y-%m-%d')}, seed {seed}: {len(hits)} faults upon "
        f"{len(ended)} trainings in {len(worlds)} attempts, {seconds / 60:.0f} minutes. "
        + (f"Trainings {list(failed)} FAILED. " if failed else "")
        + f"All {len(ended)} ended with the digest of the undisturbed training, every row exactly "
        "once an epoch (`ddlflow audit`), and no rank left behind.",
        "",
        f"{psutil.cpu_count()} cores of {_processor()}, {psutil.virtual_memory().total >> 30} GiB, "
        f"Python {platform.python_version()}, torch {torch.__version__}, load average over the "
        f"last 15 minutes {os.getloadavg()[2]:.1f}; Dask scheduler and workers as processes of "
        f"their own{apart}; `silence_s: 2`, a checkpoint every 0.3 s. Seconds lost: "
        "from the fault to the first step that the next attempt trained, starts of all processes "
        "included; where another fault came before that, the last one is measured.",
        "",
        "| fault | came | recoveries | seconds lost, median | most | steps done again, most |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind in DECK:
        if kind in missing:
            lines.append(f"| {kind} | left out: {missing[kind]} | | | | |")
            continue
        mine = [hit for hit in hits if hit.fault.kind == kind]
        lost = [hit.recovered_s for hit in mine if hit.recovered_s is not None]
        again = [hit.again for hit in mine if hit.recovered_s is not None]
        cells = ["", "", ""]
        if lost:
            cells = [f"{statistics.median(lost):.1f}", f"{max(lost):.1f}", f"{max(again)}"]
        lines.append(f"| {kind} | {len(mine)} | {len(lost)} | {' | '.join(cells)} |")
    if measured:
        lines.append(
            f"| all | {len(hits)} | {len(measured)} | {statistics.median(measured):.1f} | "
            f"{max(measured):.1f} | {max(hit.again for hit in hits)} |"
        )
    leases = [lease for training in ended for lease in training.leases]
    if leases:
        lines += [
            "",
            f"After a driver's kill -9 the last of its ranks was gone within {max(leases):.1f} s "
            "(a stopped one too); the limit is 30 s. "
            f"{_grown(ended)} attempts had more ranks than the one before.",
        ]
    return "\n".join(lines) + "\n"


def _grown(ended: Sequence[Ended]) -> int:
    pairs = [pair for e in ended for pair in zip(e.worlds, e.worlds[1:], strict=False)]
    return sum(after > before for before, after in pairs)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
