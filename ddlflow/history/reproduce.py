"""A recorded run trained once more, and compared with itself as it goes.

All that is needed stands in the run's MLflow record (pipeline, code, data fingerprint, versions,
virtual ranks, threads and the digest trail) and in the source; the first run's storage is not
looked at.
"""

import json
import re
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ddlflow.errors import SpecError
from ddlflow.history.artifacts import RecordedTraining, recorded_training
from ddlflow.history.differences import Difference, data, surroundings
from ddlflow.redact import GONE
from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.events import TrainEvent
from ddlflow.runs.finished import Stage
from ddlflow.runs.results import PrepareResult
from ddlflow.runs.session import Session
from ddlflow.runs.tables import check_there
from ddlflow.spec.code import check_trusted
from ddlflow.spec.given import flat
from ddlflow.spec.load import Request, load, load_site
from ddlflow.spec.site import Site
from ddlflow.tracking.pending import send_pending
from ddlflow.tracking.read import Reader, Recorded
from ddlflow.tracking.run import open_run
from ddlflow.train.events import DigestMarked

CAUSES = (("setting", "threads", "data"), ("version", "machine"))  # the likelier first


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """The first entry of the digest trail that differs: of the recorded run, and of the new one."""

    step: int
    digest: tuple[str, str]
    loss: tuple[float, float]


@dataclass(frozen=True, slots=True)
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
    verdict: Literal["identical", "different"]
    differences: tuple[Difference, ...]
    first_difference: FirstDifference | None
    steps_compared: int
    model_digest: str | None

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
        """Plain values by these names, and the cause of a difference."""
        return {**asdict(self), "cause": None if self.verdict == "identical" else self.cause}


@dataclass(frozen=True, slots=True)
class Compared:
    """What a new training came to; the names are those of a ``Verdict``."""

    steps: int
    first_difference: FirstDifference | None
    model_digest: str | None


class Parted(Exception):  # noqa: N818 - no error: the answer was found before the end
    """The new training has parted from the recorded one."""


def reproduce(
    run_id: str,
    *,
    on: str = "local",
    changes: Sequence[str] = (),
    workers: int | None = None,
    trust_code: bool = False,
) -> Verdict:
    """Trains a recorded run again as a child run.

    Args:
        run_id: MLflow's id of a run that ddlflow finished.
        on: the site; any number of workers gives the same bits.
        changes: ``KEY=VALUE`` on top of what was recorded; each is named as a difference.
        workers: ranks, instead of the site's.
        trust_code: run the Python code that was recorded with the run, if it has any.

    Raises:
        SpecError, DataError: the run cannot be trained again, with the reason.
        TrackingError: the store does not answer.
        TrainingError, EngineError: the new training failed.
    """
    of_site = [change for change in changes if re.split("[.=]", change)[0] in Site.model_fields]
    site = load_site(on, of_site)
    reader = Reader(site.tracking.uri)
    recorded = reader.run(run_id)
    with tempfile.TemporaryDirectory(prefix="ddlflow-reproduce-") as folder:
        place = Path(folder)
        trained = _trained(reader, recorded, place)
        _fetch_pipeline(reader, recorded, place, trusted=trust_code or site.trust_code)
        fixed = _fixed(recorded, trained, place, workers)
        request = load(str(place / "pipeline" / "pipeline.yaml"), on, [*fixed, *changes])
        _check_known(recorded, request)
        with Session(request, Screen()) as session:
            return _again(session, reader, recorded, trained.trail, place)


def _check_known(recorded: Recorded, request: Request) -> None:
    """Secrets are not recorded: what held one has to be given anew.

    Raises:
        SpecError: it was not.
    """
    settings = flat(request.pipeline.model_dump(mode="json", by_alias=True))
    lacking = [name for name, value in settings.items() if GONE in str(value)]
    if lacking:
        raise SpecError(
            f"Run {recorded.run_id} was recorded without the secrets in {', '.join(lacking)}. Give "
            f"the whole value anew: ddlflow reproduce {recorded.run_id} --set {lacking[0]}=..."
        )


def _again(
    session: Session, reader: Reader, recorded: Recorded, trail: Sequence[DigestMarked], place: Path
) -> Verdict:
    """Says what differs, trains under a child run, and compares."""
    request, screen = session.request, session.screen
    differences = surroundings(session, reader, recorded, place)
    check_there(request.pipeline.data, recorded.run_id)
    prepared = stages.prepare(session)
    differences += data(session, reader, recorded, prepared, place)
    for difference in differences:
        screen.say(f"differs: {difference.text}")
    if not differences:
        screen.say("nothing that is recorded differs: data, settings, versions, machine")
    root = session.storage / "tracking"
    for sentence in send_pending(root, request.site.tracking.uri):
        screen.say(sentence)
    with open_run(
        request.site.tracking.uri,
        root / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}-reproduce",
        experiment=recorded.experiment,  # beside the run that it repeats
        name=f"reproduce {recorded.name}",
        tags={"ddlflow.reproduces": recorded.run_id},
        parent=recorded.run_id,
        say=screen.say,
    ) as run:
        compared = _train(session, prepared, trail, recorded.run_id)
        same = compared.model_digest == recorded.tags["model_digest"]  # None after a difference
        verdict = Verdict(
            run_id=recorded.run_id,
            child_run_id=run.id_for_people(),
            verdict="identical" if same else "different",
            differences=tuple(differences),
            first_difference=compared.first_difference,
            steps_compared=compared.steps,
            model_digest=compared.model_digest,
        )
        run.log_tags({"ddlflow.verdict": verdict.verdict})
        run.log_text(json.dumps(verdict.to_json(), indent=1), "reproduce.json")
    return verdict


def _trained(reader: Reader, recorded: Recorded, place: Path) -> RecordedTraining:
    """What the run's training said at its end, with its digest trail."""
    missing = {"model_digest", "virtual_ranks", "threads", "device"} - set(recorded.tags)
    if recorded.status != "FINISHED" or missing:
        raise SpecError(
            f"Run {recorded.run_id} is {recorded.status} and holds no trained model: there is "
            "nothing to compare with. Give a run that `ddlflow run` finished."
        )
    return recorded_training(reader, recorded.run_id, place)


def _fetch_pipeline(reader: Reader, recorded: Recorded, place: Path, *, trusted: bool) -> None:
    """Fetches the recorded pipeline and the code that it ran into ``place/pipeline``.

    Raises:
        SpecError: the code is not the recorded one, or not trusted.
    """
    own = place / "pipeline"
    own.mkdir()
    reader.files(recorded.run_id, "pipeline.yaml", own)
    if not reader.has(recorded.run_id, "code"):
        return
    code = reader.files(recorded.run_id, "code", place)
    digest = recorded.tags.get("code_digest", "")
    check_trusted(code, digest, of=f"Run {recorded.run_id}", trusted=trusted)
    for path in sorted(code.rglob("*.py")):
        target = own / path.relative_to(code)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


def _fixed(
    recorded: Recorded, trained: RecordedTraining, place: Path, workers: int | None
) -> list[str]:
    """What has to be set for the same bits.

    Raises:
        SpecError: the training cannot be repeated, or not with so many workers.
    """
    written = yaml.safe_load((place / "pipeline" / "pipeline.yaml").read_text())
    determinism = written["train"].get("determinism", "elastic")
    _check_repeatable(recorded, determinism, trained, workers)
    fixed = [f"engine.threads={recorded.tags['threads']}", f"device={recorded.tags['device']}"]
    if determinism == "elastic":
        fixed.append(f"train.virtual_ranks={recorded.tags['virtual_ranks']}")
        fixed.append("train.micro_batch_rows=null")  # the virtual ranks were made from it
    else:
        workers = int(recorded.tags["world"])
    if workers is not None:
        fixed.append(f"engine.workers={workers}")
    return fixed


def _check_repeatable(
    recorded: Recorded, determinism: str, trained: RecordedTraining, workers: int | None
) -> None:
    """Without elastic determinism the same world alone gives the same bits, or none does."""
    run_id, worlds = recorded.run_id, trained.worlds
    if determinism == "off":
        raise SpecError(
            f"Run {run_id} was trained with train.determinism: off; its bits cannot come again. "
            "Train with elastic or world to be able to reproduce."
        )
    if determinism == "elastic":
        return
    if len(worlds) > 1:
        raise SpecError(
            f"Run {run_id} was trained with train.determinism: world, and its attempts had "
            f"{' and '.join(map(str, worlds))} ranks: its bits cannot come again. Train with "
            "elastic to be able to reproduce."
        )
    world = int(recorded.tags["world"])
    if workers not in {None, world}:
        raise SpecError(
            f"Run {run_id} was trained with train.determinism: world on {world} rank(s); {workers} "
            "give other bits. Leave --workers out."
        )


def _train(
    session: Session, prepared: Stage[PrepareResult], trail: Sequence[DigestMarked], run_id: str
) -> Compared:
    """Trains, and ends at the first entry of the trail that differs."""
    first: FirstDifference | None = None
    expected = {entry.step: entry for entry in trail}
    equal: set[int] = set()  # an attempt that goes on from a checkpoint tells some steps again

    def compare(event: TrainEvent) -> None:
        if not isinstance(event, DigestMarked) or event.step not in expected:
            return
        nonlocal first
        was = expected[event.step]
        if was.digest != event.digest:
            first = FirstDifference(event.step, (was.digest, event.digest), (was.loss, event.loss))
            raise Parted
        equal.add(event.step)

    try:
        done = stages.train(session, prepared, compare, again=run_id)
    except Parted:
        return Compared(len(equal), first, None)
    return Compared(len(equal), None, done.value.model_digest)
