"""A trained model applied from a script; the command line calls the same."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ddlflow.errors import SpecError
from ddlflow.spec.given import Changes, Given, as_changes, as_source
from ddlflow.spec.load import load_site, request_of_site
from ddlflow.spec.table_code import is_table, load_table
from ddlflow.store.object_client import SCHEMES
from ddlflow.store.store import Place, open_store

if TYPE_CHECKING:  # torch takes seconds
    from ddlflow.infer.model import TrainedModel

AnyModel = str | os.PathLike[str] | Mapping[str, Any]


def load_model(
    model: AnyModel, on: Given = "local", set: Changes = (), *, trust_code: bool = False
) -> "TrainedModel":
    """Loads a trained model; its ``predict_frame`` takes a frame and gives one.

    Args:
        model: what ``ddlflow.run`` returned, a model's folder, or an MLflow model URI
            (``runs:/ID/model``, ``models:/NAME@ALIAS``).
        on: the site, whose tracking store has the models of URIs.
        set: values on top of the site file.
        trust_code: run the Python code that the model brings, if it does.

    Raises:
        SpecError: there is no such model, or it brings code that is not trusted.
        TrackingError: the tracking store does not answer.
    """
    from ddlflow.infer.model import load_model as load

    with place_of_model(model, on, set) as (place, is_trusted):
        return load(place, trust_code=trust_code or is_trusted)


@contextmanager
def place_of_model(
    model: AnyModel, on: Given = "local", set: Changes = ()
) -> Iterator[tuple[Place, bool]]:
    """Where the folder of a model is until the end of the block, and whether the site trusts code.

    Args:
        model: as in ``load_model``.
        on: the site, whose tracking store has the models of URIs.
        set: values on top of the site file.

    Raises:
        SpecError: there is no such model.
        TrackingError: the tracking store does not answer.
    """
    from ddlflow.tracking.fetch import fetch_model

    place = _place_of(model)
    if _is_stored(place):
        yield place, False
        return
    if not place.startswith(("runs:/", "models:/")) and (Path(place) / "model.json").is_file():
        yield Path(place), False  # no site has to be there for it
        return
    site = load_site(on, as_changes(set))
    with tempfile.TemporaryDirectory(prefix="ddlflow-model-") as fetched:
        yield fetch_model(place, site.tracking.uri, Path(fetched)), site.trust_code


def predict(
    model: AnyModel,
    source: Any,
    *,
    out: str | Path,
    on: Given = "local",
    keys: Sequence[str] = (),
    set: Changes = (),
    fresh: bool = False,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Predicts every row of a source with a trained model.

    Args:
        model: what ``ddlflow.run`` returned, a model's folder, or an MLflow model URI
            (``runs:/ID/model``, ``models:/NAME@ALIAS``).
        source: a file, glob, folder or URL; a relative path is looked up here, then in data_root.
            Or a pandas, Polars or Arrow table, which is kept under the storage, or a table of the
            site's engine: ``{"spark": "SELECT ...", "key": ["id"]}``.
        out: the folder of the predictions, a Parquet file a range and ``_SUCCESS``.
        on: the site.
        keys: columns of the source to keep beside each prediction.
        set: values on top of the site file.
        fresh: replace what another model or source left in ``out``.
        trust_code: run the Python code that the model brings, if it does.

    Returns:
        predictions (the folder), rows, files, classes, and of each column the model reads how many
        values were missing or never seen in training; notes name columns that most are of.

    Raises:
        SpecError, DataError: the input is wrong, or the model brings code that is not trusted.
    """
    from ddlflow.data.sources.frames import is_frame
    from ddlflow.infer.predict import infer
    from ddlflow.report.screen import Screen
    from ddlflow.runs.exports import place_of
    from ddlflow.runs.finished import hashed
    from ddlflow.runs.scratch import scratch
    from ddlflow.runs.session import Session
    from ddlflow.runs.tables import keeping
    from ddlflow.tracking.fetch import fetch_model

    request = request_of_site(on, as_changes(set))
    with ExitStack() as stack:
        session = stack.enter_context(Session(request, Screen()))
        if is_frame(source):
            location = stack.enter_context(keeping(session.storage, session.bucket))(source)
        elif is_table(source):
            location = place_of(session, load_table(source), "source")
        else:
            given = as_source(source)
            location = str(Path(given).absolute()) if Path(given).exists() else given
        fetched = stack.enter_context(scratch(session.storage))
        folder = place = _place_of(model)
        if not _is_stored(place):
            folder = str(fetch_model(place, request.site.tracking.uri, fetched).absolute())
        session.keep_of(folder)
        # Two commands may be given one folder, and --fresh empties it.
        lock = session.store.at(f"predictions/{hashed(str(Path(out).absolute()))}")
        with session.lease(lock, f"the predictions in {out}"):
            done = infer(
                folder,
                location,
                Path(out).absolute(),
                keys=keys,
                data_root=session.data_root,
                threads=session.resources.threads,
                map_over=session.map_over,
                fresh=fresh,
                trust_code=trust_code or request.site.trust_code,
            )
        for note in done.notes:
            session.screen.say(f"note: {note}")
    return {"predictions": str(out), **done.to_json()}


def _place_of(model: AnyModel) -> str:
    """A folder or a URI; of what a run returned the folder, as long as it is there.

    Raises:
        SpecError: it is of a command that trained no model.
    """
    if not isinstance(model, Mapping):
        return os.fspath(model)
    if not {"model", "model_uri"} <= {*model}:
        raise SpecError(
            f"The result of run {model.get('run_id', '?')} holds no model. Give what ddlflow.run "
            "returned, without only=; or a model's folder or MLflow URI."
        )
    folder = str(model["model"])
    is_there = open_store(folder).exists("model.json")
    return folder if is_there else str(model["model_uri"])


def _is_stored(place: str) -> bool:
    """Whether a place is in an object store."""
    return urlsplit(place).scheme in SCHEMES
