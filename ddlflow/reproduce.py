"""A recorded run trained once more, and compared with itself as it goes.

All that is needed stands in the run's MLflow record (pipeline, code, data fingerprint, versions,
virtual ranks, threads and the digest trail) and in the source; the first run's storage is not
looked at.
"""

import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

import ddlflow
from ddlflow import stages
from ddlflow.errors import SpecError
from ddlflow.record import flat, machine, versions
from ddlflow.report.screen import Screen
from ddlflow.session import Session, Stage
from ddlflow.spec.load import Plan, load, load_site
from ddlflow.spec.site import Site
from ddlflow.tracking.pending import send_pending
from ddlflow.tracking.read import Reader, Recorded
from ddlflow.tracking.run import open_run

CAUSES = (("setting", "threads", "data"), ("version", "machine"))  # the likelier first
SHOWN = 3  # ranges that a sentence names


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
        """The likeliest reasons of a difference, in words."""
        for group in CAUSES:
            found = [difference.text for difference in self.differences if difference.what in group]
            if found:
                return "; ".join(found)
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
        SpecError, DataError: the run cannot be trained again, with the reason.
        TrackingError: the store does not answer.
        TrainingError, EngineError: the new training failed.
    """
    of_site = [change for change in changes if re.split("[.=]", change)[0] in Site.model_fields]
    reader = Reader(load_site(on, of_site).tracking.uri)
    recorded = reader.run(run_id)
    with tempfile.TemporaryDirectory(prefix="ddlflow-reproduce-") as folder:
        place = Path(folder)
        trail = _trail_of(reader, recorded, place)
        plan = _plan(reader, recorded, place, on=on, changes=changes, workers=workers)
        with Session(plan, Screen()) as session:
            return _again(session, reader, recorded, trail, place)


def _again(
    session: Session, reader: Reader, recorded: Recorded, trail: list[dict[str, Any]], place: Path
) -> Verdict:
    """Says what differs, trains under a child run, and compares."""
    plan, screen = session.plan, session.screen
    verdict = Verdict(recorded.run_id, "")
    verdict.differences += _surroundings(session, reader, recorded, place)
    prepared = stages.prepare(session)
    verdict.differences += _data(session, reader, recorded, prepared, place)
    for difference in verdict.differences:
        screen.say(f"differs: {difference.text}")
    if not verdict.differences:
        screen.say("nothing that is recorded differs: data, settings, versions, machine")
    root = session.storage / "tracking"
    for sentence in send_pending(root, plan.site.tracking.uri):
        screen.say(sentence)
    with open_run(
        plan.site.tracking.uri,
        root / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-reproduce",
        experiment=recorded.tags.get("pipeline", plan.pipeline.name),
        name=f"reproduce {recorded.name}",
        tags={"ddlflow.reproduces": recorded.run_id},
        parent=recorded.run_id,
        say=screen.say,
    ) as run:
        verdict.child_run_id = run.run_id or run.local_id
        _train(session, prepared, trail, verdict)
        if verdict.model_digest != recorded.tags["model_digest"]:  # None after a difference
            verdict.verdict = "different"
        run.log_tags({"ddlflow.verdict": verdict.verdict})
        run.log_text(json.dumps(verdict.to_json(), indent=1), "reproduce.json")
    return verdict


def _trail_of(reader: Reader, recorded: Recorded, place: Path) -> list[dict[str, Any]]:
    missing = {"model_digest", "virtual_ranks", "threads", "device"} - set(recorded.tags)
    if recorded.status != "FINISHED" or missing:
        raise SpecError(
            f"Run {recorded.run_id} is {recorded.status} and holds no trained model: there is "
            "nothing to compare with. Give a run that `ddlflow run` finished."
        )
    trained: dict[str, Any] = reader.json(recorded.run_id, "training/train.json", place)
    return list(trained["trail"])


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
    own = place / "pipeline"
    own.mkdir()
    reader.files(recorded.run_id, "pipeline.yaml", own)
    if reader.has(recorded.run_id, "code"):
        code = reader.files(recorded.run_id, "code", place)
        for path in sorted(code.rglob("*.py")):
            target = own / path.relative_to(code)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    fixed = [
        f"train.virtual_ranks={recorded.tags['virtual_ranks']}",
        f"engine.threads={recorded.tags['threads']}",
        f"device={recorded.tags['device']}",
    ]
    if workers is not None:
        fixed.append(f"engine.workers={workers}")
    return load(str(own / "pipeline.yaml"), on, [*fixed, *changes])


def _surroundings(
    session: Session, reader: Reader, recorded: Recorded, place: Path
) -> list[Difference]:
    """What differs in settings, threads, versions and the machine."""
    tags = recorded.tags
    found = [
        Difference("setting", f"{name} was {was}, now {is_}")
        for name, was, is_ in _settings(session.plan, recorded, place)
    ]
    threads = str(session.resources.threads)
    if threads != tags["threads"]:
        text = f"threads of a rank were {tags['threads']}, now {threads}"
        found.append(Difference("threads", text))
    before: Mapping[str, str] = reader.json(recorded.run_id, "versions.json", place)
    before = {"ddlflow": tags.get("version", ""), "Python": tags.get("python", ""), **before}
    now = {"ddlflow": ddlflow.__version__, "Python": platform.python_version(), **versions()}
    found += [
        Difference("version", f"{name} was {was or 'not there'}, now {is_ or 'not there'}")
        for name in sorted({*before, *now})
        if (was := before.get(name, "")) != (is_ := now.get(name, ""))
    ]
    if tags.get("machine") != machine():
        text = f"the processor was {tags.get('machine', 'not recorded')}, now {machine()}"
        found.append(Difference("machine", text))
    return found


def _settings(plan: Plan, recorded: Recorded, place: Path) -> list[tuple[str, Any, Any]]:
    """(name, then, now) of what the pipeline of today does not have as the recorded one."""
    before = flat(yaml.safe_load((place / "pipeline" / "pipeline.yaml").read_text()))
    now = flat(plan.pipeline.model_dump(mode="json", by_alias=True))
    before["train.virtual_ranks"] = int(recorded.tags["virtual_ranks"])  # it may be `auto` there
    before["device"], now["device"] = recorded.tags["device"], plan.site.device
    return [
        (name, before.get(name, "not set"), now.get(name, "not set"))
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def _data(
    session: Session, reader: Reader, recorded: Recorded, prepared: Stage, place: Path
) -> list[Difference]:
    """Whether the source still gives the same shards, and where it does not."""
    if recorded.tags.get("data_digest") == prepared.value["digest"]:
        return []
    before = reader.json(recorded.run_id, "data/manifest.json", place)["shards"]
    now = json.loads((Path(prepared.folder) / "manifest.json").read_text())["shards"]
    old = {shard["path"]: shard["sha256"] for shard in before}
    new = {shard["path"]: shard["sha256"] for shard in now}
    changed = sorted(path for path in {*old, *new} if old.get(path) != new.get(path))
    # shards/train/00003-00000.arrow: the first piece of what range 3 gives to the training rows.
    files = _files(session, prepared.value["location"])
    found = [(int(Path(p).stem.partition("-")[0]), Path(p).parent.name) for p in changed]
    ranges = [f"{number} ({split}{files.get(number, '')})" for number, split in found]
    shown = ", ".join(dict.fromkeys(ranges[:SHOWN]))
    more = f" and {len(ranges) - SHOWN} more" if len(ranges) > SHOWN else ""
    was, is_ = map(_rows, (before, now))
    rows = "" if was == is_ else f"; rows were {was}, now {is_}"
    text = (
        f"the data changed: {prepared.value['location']} gives {len(changed)} of {len(new)} shards "
        f"with other bytes, in its range {shown}{more}{rows}"
    )
    return [Difference("data", text)]


def _rows(shards: list[dict[str, Any]]) -> str:
    """The rows of each split."""
    splits = dict.fromkeys(shard["split"] for shard in shards)
    rows = {name: sum(s["rows"] for s in shards if s["split"] == name) for name in splits}
    return " + ".join(f"{rows[name]:,} {name}" for name in splits)


def _files(session: Session, location: str) -> dict[int, str]:
    """By range of the source, its file in words."""
    from ddlflow.data.source import open_source, ranges

    found = open_source(location, session.plan.pipeline.data, session.data_root)
    return {part.index: f", {found.files[part.file].name}" for part in ranges(found)}


def _train(
    session: Session, prepared: Stage, trail: list[dict[str, Any]], verdict: Verdict
) -> None:
    """Trains, and ends at the first entry of the trail that differs."""
    expected = {entry["step"]: entry for entry in trail}
    equal: set[int] = set()  # an attempt that goes on from a checkpoint tells some steps again

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
        equal.add(event["step"])
        verdict.steps_compared = len(equal)

    try:
        done = stages.train(session, prepared, tell, again=verdict.run_id)
    except Parted:
        return
    verdict.model_digest = done.value["model_digest"]
