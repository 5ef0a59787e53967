"""The stage infer: the trained model over a source."""

from ddlflow.redact import redacted
from ddlflow.runs.exports import located, place_of
from ddlflow.runs.finished import Stage
from ddlflow.runs.results import InferResult, PrepareResult, TrainResult
from ddlflow.runs.session import Session
from ddlflow.runs.versions import VERSION
from ddlflow.store.store import Store


def infer(
    session: Session, prepared: Stage[PrepareResult], trained: Stage[TrainResult]
) -> Stage[InferResult]:
    """The model over the pipeline's inference source (by default its test or whole source)."""
    from ddlflow.infer.reading import Reading

    spec = session.request.pipeline
    location = inferred_source(session, prepared)
    is_test = spec.data.test_source is not None and location == located(session).test_source
    is_own = is_test or redacted(location) == prepared.value.location
    found = Reading.of(trained.value.model).open(location, session.data_root)
    settings = {
        "version": VERSION["infer"],
        "model": trained.value.model_digest,
        "trained": trained.key,
        "source": [redacted(found.address), found.fingerprint],
        "location": redacted(location),
        "keys": spec.infer.keys,
        "splits": prepared.value.digest if is_own else None,
    }

    def work(folder: Store) -> InferResult:
        # Here: predictions that stand need no PyTorch.
        from ddlflow.infer.predict import PreparedSource
        from ddlflow.infer.predict import infer as predict

        predictions = folder.at("predictions")
        done = predict(
            trained.value.model,
            location,
            predictions,
            keys=spec.infer.keys,
            data_root=session.data_root,
            threads=session.resources.threads,
            map_over=session.map_over,
            trust_code=True,
            prepared=PreparedSource(prepared.folder, is_test) if is_own else None,
        )
        return InferResult(
            predictions=predictions.location,
            location=redacted(location),
            rows=done.rows,
            columns=done.columns,
            notes=tuple(done.notes),
        )

    inferred = session.stage(
        "infer", settings, work, InferResult, results=["predictions/*.parquet"]
    )
    for note in inferred.value.notes:
        session.screen.say(f"note: {note}")
    return inferred


def inferred_source(session: Session, prepared: Stage[PrepareResult]) -> str:
    """Where the rows of the infer stage are: what a stage's value says of it has no secrets."""
    spec = session.request.pipeline
    if spec.infer.source is not None:
        return place_of(session, spec.infer.source, "infer.source")
    if spec.data.test_source is not None:
        return place_of(session, spec.data.test_source, "data.test_source")
    return spec.data.source if isinstance(spec.data.source, str) else prepared.value.location
