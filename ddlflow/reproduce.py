"""A recorded run trained once more, and compared with itself as it goes.

All that is needed stands in the run's MLflow record (pipeline, code, data fingerprint, versions,
virtual ranks, threads and the digest trail) and in the source; the first run's storage is not
looked at.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ddlflow import stages
from ddlflow.errors import SpecError
from ddlflow.record import machine, versions
from ddlflow.report.screen import Screen
from ddlflow.session import Session, Stage, storage_of
from ddlflow.spec.load import Plan, load, load_site
from ddlflow.tracking.read import Reader, Recorded
from ddlflow.tracking.run import open_run


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as it was.

    Attributes:
        what: data, setting, version, threads or machine.
        text: a sentence: what it was and what it is.
    """

    what: str
    text: str


@dataclass(slots=True)
class Verdict:
    """How a reproduction came out.

    Attributes:
        run_id: of the run that was trained again.
        child_run_id: of the training that did it.
        verdict: identical or different.
        differences: known before the training began.
        first_difference: the first entry of the digest trail that differs: its step, both digests
            and losses; None where all are the same.
        steps_compared: entries of the trail that were the same.
        model_digest: of the new model; None if the training was ended at the first difference.
    """

    run_id: str
    child_run_id: str
    verdict: Literal["identical", "different"] = "identical"
    differences: list[Difference] = field(default_factory=list)
    first_difference: dict[str, Any] | None = None
    steps_compared: int = 0
    model_digest: str | None = None

    @property
    def cause(self) -> str:
        """The likeliest reason of a difference, in words."""
        for what in ("data", "setting", "threads", "version", "machine"):
            found = [d.text for d in self.differences if d.what == what]
            if found:
                return found[0]
        return (
            "nothing that ddlflow records differs: look for randomness or time in code of your "
            "own, or for another kernel of a library"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "cause": None if self.verdict == "identical" else self.cause}


class Parted(Exception):  # noqa: N818 - no error: the answer was found before the end
    """The new training has parted from the recorded one."""


def reproduce(
    run_id: str, *, on: str = "local", changes: Sequence[str] = (), workers: int | None = None
) -> Verdict:
    """Trains a recorded run again as a child run.

    Args:
        run_id: MLflow's id of a run that ddlflow finished.
        on: the site; any number of workers gives the same bits.
        changes: ``KEY=VALUE`` on top of what was recorded; each is named as a difference.
        workers: ranks, instead of the site's.

    Raises:
        SpecError: the run cannot be trained again, with the reason.
        TrackingError: there is no such run.
    """
    screen = Screen()
    uri = load_site(on, [c for c in changes if c.startswith("tracking.")]).tracking.uri
    reader = Reader(uri)
    recorded = reader.run(run_id)
    place = storage_of(load_site(on)) / "reproduce-from" / run_id
    place.mkdir(parents=True, exist_ok=True)
    trained = _trail_of(reader, recorded, place)
    plan = _plan(reader, recorded, place, on=on, changes=changes, workers=workers)
    verdict = Verdict(run_id, "")
    verdict.differences += _surroundings(reader, recorded, plan, place, changes)
    with Session(plan, screen) as session:
        prepared = stages.prepare(session)
        verdict.differences += _data(reader, recorded, prepared, place)
        for difference in verdict.differences:
            screen.say(f"differs: {difference.text}")
        if not verdict.differences:
            screen.say("nothing that is recorded differs: data, settings, versions, machine")
        spool = session.storage / "tracking" / f"reproduce-{run_id}-{prepared.key}"
        with open_run(
            uri,
            spool,
            experiment=recorded.tags.get("pipeline", plan.pipeline.name),
            name=f"reproduce {recorded.name}",
            tags={"ddlflow.reproduces": run_id},
            parent=run_id,
            say=screen.say,
        ) as run:
            verdict.child_run_id = run.run_id or run.local_id
            _train(session, prepared, trained["trail"], verdict)
            same = verdict.model_digest == recorded.tags.get("model_digest")
            if verdict.first_difference is not None or not same:
                verdict.verdict = "different"
            run.log_tags({"ddlflow.verdict": verdict.verdict})
            run.log_text(json.dumps(verdict.to_json(), indent=1), "reproduce.json")
    return verdict


def _trail_of(reader: Reader, recorded: Recorded, place: Path) -> dict[str, Any]:
    if recorded.status != "FINISHED" or "model_digest" not in recorded.tags:
        raise SpecError(
            f"Run {recorded.run_id} is {recorded.status} and holds no trained model: there is "
            "nothing to compare with. Give a run that `ddlflow run` finished."
        )
    trained: dict[str, Any] = reader.json(recorded.run_id, "training/train.json", place)
    return trained


def _plan(
    reader: Reader,
    recorded: Recorded,
    place: Path,
    *,
    on: str,
    changes: Sequence[str],
    workers: int | None,
) -> Plan:
    """The recorded pipeline with its code, on a site of today."""
    reader.files(recorded.run_id, "pipeline.yaml", place)
    if reader.has(recorded.run_id, "code"):
        code = reader.files(recorded.run_id, "code", place)
        for path in sorted(code.rglob("*.py")):
            target = place / path.relative_to(code)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    fixed = [
        f"train.virtual_ranks={recorded.tags['virtual_ranks']}",
        f"engine.threads={recorded.tags['threads']}",
        f"device={recorded.tags['device']}",
    ]
    if workers is not None:
        fixed.append(f"engine.workers={workers}")
    return load(str(place / "pipeline.yaml"), on, [*fixed, *changes])


def _surroundings(
    reader: Reader, recorded: Recorded, plan: Plan, place: Path, changes: Sequence[str]
) -> list[Difference]:
    """What differs in settings, versions and the machine."""
    found = []
    for change in changes:
        key, _, value = change.partition("=")
        if key == "engine.threads" and value != recorded.tags["threads"]:
            text = f"threads of a rank were {recorded.tags['threads']}, now {value}"
            found.append(Difference("threads", text))
        elif key.split(".")[0] in {"data", "model", "train"}:
            was = recorded.params.get(key, "not set")
            found.append(Difference("setting", f"{key} was {was}, now {value}"))
    before: Mapping[str, str] = reader.json(recorded.run_id, "versions.json", place)
    now = versions()
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            text = f"{name} was {before.get(name, 'not there')}, now {now.get(name, 'not there')}"
            found.append(Difference("version", text))
    if recorded.tags.get("python") != platform.python_version():
        text = f"Python was {recorded.tags.get('python')}, now {platform.python_version()}"
        found.append(Difference("version", text))
    if recorded.tags.get("machine") != machine():
        text = f"the processor was {recorded.tags.get('machine')}, now {machine()}"
        found.append(Difference("machine", text))
    return found


def _data(reader: Reader, recorded: Recorded, prepared: Stage, place: Path) -> list[Difference]:
    """Whether the source still gives the same shards, and where it does not."""
    if recorded.tags.get("data_digest") == prepared.value["digest"]:
        return []
    before = reader.json(recorded.run_id, "data/manifest.json", place)["shards"]
    now = json.loads((Path(prepared.folder) / "manifest.json").read_text())["shards"]
    old = {shard["path"]: shard["sha256"] for shard in before}
    new = {shard["path"]: shard["sha256"] for shard in now}
    changed = sorted(path for path in {*old, *new} if old.get(path) != new.get(path))
    shown = ", ".join(Path(path).stem for path in changed[:3])
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    location = prepared.value["location"]
    text = (
        f"the data changed: {location} gives {len(changed)} of {len(new)} shards with other bytes "
        f"(ranges {shown}{more})"
    )
    return [Difference("data", text)]


def _train(
    session: Session, prepared: Stage, trail: list[dict[str, Any]], verdict: Verdict
) -> None:
    """Trains, and ends at the first entry of the trail that differs."""
    expected = {entry["step"]: entry for entry in trail}

    def tell(event: dict[str, Any]) -> None:
        if event["event"] != "digest" or event["step"] not in expected:
            return
        was = expected[event["step"]]
        if was["digest"] != event["digest"]:
            verdict.first_difference = {
                "step": event["step"],
                "digest": [was["digest"], event["digest"]],
                "loss": [was["loss"], event["loss"]],
            }
            raise Parted
        verdict.steps_compared += 1

    try:
        done = stages.train(session, prepared, tell, again=verdict.run_id)
    except Parted:
        return
    verdict.model_digest = done.value["model_digest"]
