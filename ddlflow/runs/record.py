"""What a pipeline run leaves in MLflow and in its report folder."""

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import ddlflow
from ddlflow.redact import redacted_values
from ddlflow.runs import drawn as drawing
from ddlflow.runs import ranks
from ddlflow.runs.evaluated import scores_of
from ddlflow.runs.events import TrainEvent
from ddlflow.runs.finished import Stage
from ddlflow.runs.installed import PACKAGES, git_commit, requirements, versions, wheel
from ddlflow.runs.model_example import model_example
from ddlflow.runs.results import EvaluateResult, PrepareResult, TrainAttempt, TrainResult
from ddlflow.runs.session import Session
from ddlflow.runs.stages import key_of
from ddlflow.spec import code
from ddlflow.spec.given import flat
from ddlflow.store import documents
from ddlflow.store.site_storage import storage_errors
from ddlflow.store.store import is_url, open_store
from ddlflow.tracking.run import Run
from ddlflow.train.events import EpochEnded


class RunRecord:
    """A pipeline run's record: an MLflow run and a folder ``<storage>/runs/<run>/``."""

    def __init__(self, session: Session, run: Run) -> None:
        self.session = session
        self.run = run
        self.folder = session.storage / "runs" / (run.run_id or run.local_id)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def run_id(self) -> str:
        """What a user is told: MLflow's id, once the server has given one."""
        return self.run.id_for_people()

    def settings(self, prepared: Stage[PrepareResult]) -> None:
        """The resolved pipeline and site, versions, commit, seeds and the data's fingerprint."""
        from ddlflow.data.fields import Field

        request = self.session.request
        pipeline = redacted_values(request.pipeline.model_dump(mode="json", by_alias=True))
        for name, values in (("pipeline", pipeline), ("site", redacted_site(self.session))):
            text = yaml.safe_dump(values, sort_keys=False)
            (self.folder / f"{name}.yaml").write_text(text)
            self.run.log_text(text, f"{name}.yaml")
        # MLflow keeps the first value that it is given: what a search chooses is logged after it.
        searched = list(request.pipeline.search.space) if request.pipeline.search else []
        self.run.log_params(
            {
                name: value
                for name, value in flat(pipeline).items()
                if not any(f"{name}.".startswith(f"{one}.") for one in searched)
            }
        )
        self.run.log_tags(
            {
                "ddlflow.version": ddlflow.__version__,
                "ddlflow.pipeline": request.pipeline.name,
                "ddlflow.data_digest": prepared.value.digest,
                **_counts(prepared),
                "ddlflow.code_digest": code.fingerprint(request),
                "ddlflow.git_commit": git_commit(request.pipeline_path.parent),
            }
        )
        if self.session.is_elsewhere:
            self.workers()
        else:  # the ranks will say the rest: this process would have to import PyTorch for it
            self._surroundings({"hosts": os.uname().nodename})
        manifest = self.here(prepared.folder, "manifest.json")
        self.run.log_file(manifest, "data")
        shipped = code.gather(request, self.folder / "code")
        if shipped is not None:
            self.run.log_file(shipped, "code")
        described = json.loads(manifest.read_text())["columns"]
        schema = dict.fromkeys(described["numeric"], "float32")
        schema |= {c["name"]: c["kind"] for c in described["categories"]}
        for one in map(Field.from_json, described.get("tensors", ())):
            schema[one.name] = one.shown.removeprefix(f"{one.name} ").strip("()")
        schema[described["label"]["name"]] = f"label ({described['label']['kind']})"
        self.run.log_dataset(
            request.pipeline.name,
            prepared.value.digest,
            source=str(prepared.value.location),
            schema=schema,
            profile=prepared.value.rows,
            context="training",
        )

    def workers(self) -> None:
        """What the workers say of themselves: of a sweep, which has no ranks to say it."""
        self._surroundings(ranks.together(self.session.workers))

    def _surroundings(self, said: dict[str, str]) -> None:
        """Versions, processor and hosts: those of the ranks, and for the rest of this process."""
        own = {k: v for k, v in said.items() if k != "ddlflow"}
        self.run.log_tags({f"ddlflow.{k}": v for k, v in {**versions(), **own}.items()})
        found = versions() | {k: v for k, v in said.items() if k in PACKAGES}
        self.run.log_text(json.dumps(found, indent=1), "versions.json")

    def on_train_event(self, event: TrainEvent) -> None:
        """An epoch's row of history as metrics, with the epoch as step; an attempt as a tag."""
        match event:  # the digest trail is logged as a whole at the end
            case TrainAttempt():
                world = f"{event.world} ranks" if event.world > 1 else "1 rank"
                ended = f", ended: {event.ended_by}" if event.ended_by is not None else ""
                self.run.log_tags({f"ddlflow.attempt.{event.number}": world + ended})
            case EpochEnded():
                known = {k: v for k, v in event.row.items() if v is not None and _is_metric(k)}
                self.run.log_metrics(known, step=int(event.row["epoch"]))

    def trained(self, trained: Stage[TrainResult]) -> None:
        """What a training says of itself."""
        names = (
            "model_digest",
            "virtual_ranks",
            "threads",
            "world",
            "device",
            "steps",
            "best_epoch",
        )
        self.run.log_tags({f"ddlflow.{name}": getattr(trained.value, name) for name in names})
        self.run.log_metrics(
            {"train_seconds": trained.value.seconds, "train_rows_per_s": rows_per_s(trained)}, 0
        )
        self.run.log_file(self.here(trained.value.model, "train.json"), "training")
        self.run.log_file(self.here(trained.folder, "ledger"), "training/ledger")
        self.run.log_file(self.here(trained.folder, ranks.FILE), "training")
        self._surroundings(ranks.said(open_store(trained.folder)))

    def evaluated(
        self,
        prepared: Stage[PrepareResult],
        trained: Stage[TrainResult],
        evaluated: Stage[EvaluateResult],
    ) -> Path:
        """The metrics and the plots; returns the report's folder."""
        scored = scores_of(evaluated)
        split = evaluated.value.split
        metrics = {f"{split}_{k}": v for k, v in scored.metrics.items()}
        metrics |= {f"baseline_{k}": v for k, v in scored.baseline.items()}
        self.run.log_metrics(metrics, step=trained.value.epochs)
        drawn = drawing.report(self.session, prepared, trained, evaluated)
        report = self.folder / "report"
        stands = open_store(drawn.folder).local_folder(drawing.FOLDER)
        shutil.copytree(stands, report, dirs_exist_ok=True)
        self.run.log_file(report, "report")
        return report

    def model(self, prepared: Stage[PrepareResult], trained: Stage[TrainResult]) -> str:
        """Logs the model with a signature and an input example; returns its URI or folder."""
        from ddlflow.tracking.log_model import log_model

        example = model_example(self.session, prepared, trained)
        uri = log_model(
            self.run,
            self.here(trained.folder, "model"),
            example=None if example is None else example.inputs,
            predictions=None if example is None else example.predictions,
            digest=trained.value.model_digest,
            wheel=wheel(self.folder / "wheels"),
            pip_requirements=requirements(ranks.said(open_store(trained.folder))),
            register_as=self.session.request.pipeline.register_as,
            tags={"ddlflow.data_digest": prepared.value.digest},
        )
        return uri or str(trained.value.model)

    def here(self, location: str, name: str) -> Path:
        """A file or folder of the storage, which stays where it is until MLflow has taken it.

        Of an object store that is a copy in the run's own folder: the cache may lose its own.
        """
        if not is_url(location):
            return Path(location) / name
        store, copy = open_store(location), self.folder / "stored" / name
        if store.exists(name):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store.local(name), copy)
        else:
            shutil.copytree(store.local_folder(name), copy, dirs_exist_ok=True)
        return copy


@contextmanager
def recorded(session: Session, prepared: Stage[PrepareResult]) -> Iterator[RunRecord]:
    """An MLflow run around the rest of a pipeline: FINISHED, FAILED or KILLED at its end.

    A run of the same pipeline that did not finish is gone on with; one that is under way on this
    storage is waited for.
    """
    from ddlflow.tracking.pending import send_pending
    from ddlflow.tracking.run import open_run
    from ddlflow.tracking.spool import is_held
    from ddlflow.tracking.system import system_metrics

    request = session.request
    root = session.storage / "tracking"
    marks, mark = session.store.at("unfinished"), f"{key_of(session, prepared)}.json"
    spool = (
        root / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}-{request.pipeline.name}"
    )
    with (
        storage_errors(session.store.location, of_work=True),
        session.lease(
            marks.at(mark), f"this run of {request.pipeline.name} in {session.store.location}"
        ) as lease,
    ):
        marked = documents.load(marks, mark)
        if isinstance(marked, dict) and "spool" in marked and not session.fresh:
            known = Path(marked["spool"])
            spool = known if known.exists() and not is_held(known) else spool
        for sentence in send_pending(root, request.site.tracking.uri):
            session.screen.say(sentence)
        with open_run(
            request.site.tracking.uri,
            spool,
            experiment=request.site.tracking.experiment,
            name=f"{request.pipeline.name} {time.strftime('%Y-%m-%d %H:%M')}",
            tags={"ddlflow.pipeline": request.pipeline.name},
            say=session.screen.say,
        ) as run:
            documents.save(marks, mark, {"spool": str(spool)}, indent=1)
            record = RunRecord(session, run)
            record.settings(prepared)
            with system_metrics(run):
                yield record
            lease.confirm()
            marks.remove(mark)


def _counts(prepared: Stage[PrepareResult]) -> dict[str, str]:
    """What the source has and the data set has not, as tags; the manifest has it by column."""
    tags = {}
    both = {"dropped": prepared.value.dropped, "replaced": prepared.value.replaced}
    for name, counts in both.items():
        found = [f"{key} {count}" for key, count in counts.items() if count]
        if found:
            tags[f"ddlflow.{name}"] = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
    return tags


def redacted_site(session: Session) -> dict[str, Any]:
    """The site without passwords."""
    values: dict[str, Any] = redacted_values(session.request.site.model_dump(mode="json"))
    return values


def rows_per_s(trained: Stage[TrainResult]) -> float:
    """Rows trained on a second, over all epochs; validation is not counted in."""
    # 0: an attempt that went on behind an epoch's last step did nothing but its end.
    found = [row["rows_per_s"] for row in trained.value.history]
    speeds = [speed for speed in found if speed is not None and speed > 0]
    return len(speeds) / sum(1 / speed for speed in speeds) if speeds else 0.0


def _is_metric(name: str) -> bool:
    return name not in {"epoch", "step", "rank"}
