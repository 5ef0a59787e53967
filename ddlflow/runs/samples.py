"""Sources that are made or fetched: by a pipeline that asks for one, or by ``ddlflow data``."""

from pathlib import Path
from typing import Any

from ddlflow.report.screen import Screen
from ddlflow.runs.finished import Stage
from ddlflow.runs.results import SampleResult
from ddlflow.runs.session import Session
from ddlflow.spec.pipeline import Made
from ddlflow.store.store import Store

SAMPLE_VERSION = 1  # raised when a made source's rows change for the same settings


def make_sample(session: Session, wanted: Made) -> Stage[SampleResult]:
    """Makes a source's rows under the storage."""
    from ddlflow.data.samples.generators import GENERATORS, plan, write_part

    def work(folder: Store) -> SampleResult:
        session.warm_ranks()
        parts = plan(wanted.use, wanted.rows, folder.location, wanted.seed)
        written = list(session.map_over(write_part, parts, wanted.use))
        return SampleResult(wanted.rows, len(written))

    versions = [SAMPLE_VERSION, GENERATORS[wanted.use].VERSION]
    settings = {"version": versions, **wanted.model_dump(mode="json")}
    return session.stage("source", settings, work, SampleResult, results=["*"])


def fetch_higgs(folder: Path) -> list[Path]:
    """Fetches UCI's HIGGS.csv.gz, checks it, and turns it into ``train`` and ``test``."""
    from ddlflow.data.samples.download import DownloadRetried, WorkProgressed
    from ddlflow.data.samples.higgs import fetch, to_parquet

    screen = Screen()
    written: list[Path] = []

    def step(name: str, unit: str, work: Any) -> Any:
        with screen.bar(name, 1.0, unit) as show:

            def on_event(event: WorkProgressed | DownloadRetried) -> None:
                if isinstance(event, WorkProgressed):
                    show(event.done / max(event.total, 1))
                else:
                    screen.say(f"{name}: {event.reason}; again in {event.wait_s:.0f} s")

            return work(on_event)

    archive = step("fetch", "bytes", lambda on_event: fetch(folder, on_event=on_event))
    written += step(
        "parquet", "rows", lambda on_event: to_parquet(archive, folder, on_event=on_event)
    )
    return written
