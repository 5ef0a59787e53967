"""What the rows, once they are counted, mean for the pipeline. Of a small source at once.

A small source is prepared as a run prepares it, in this process and in a folder that goes away: so
``check`` finds what a run would find, in the same words.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.sources.source import Source
from ddlflow.runs.check.finding import Finding, open_named
from ddlflow.spec.load import Request

SMALL_BYTES = 4 << 20  # of all files; such a source is prepared in about a tenth of a second


def small(request: Request) -> Manifest | None:
    """The data set as a run would prepare it; None where the source is too large for that.

    Raises:
        DataError: as prepare raises it.
    """
    from ddlflow.data.prepare.prepare import prepare

    pipeline = request.pipeline
    spec, data_root = pipeline.data, Path(request.site.data_root).expanduser().absolute()
    if not isinstance(spec.source, str) or not isinstance(spec.test_source, str | None):
        return None
    if _is_large(open_named(request, spec.source, "data.source")):
        return None
    if spec.test_source is not None:
        data = spec.model_copy(update={"source": spec.test_source})
        if _is_large(open_named(request, spec.test_source, "data.test_source", data)):
            return None
    with tempfile.TemporaryDirectory(prefix="ddlflow-check-") as folder:
        return prepare(
            spec,
            pipeline.labels,
            data_root=data_root,
            folder=Path(folder) / "data",
            map=lambda function, items, _: map(function, items),
            cv=pipeline.cv.of_repeat(0) if pipeline.cv is not None else None,
        )


def _is_large(source: Source) -> bool:
    return source.num_bytes is None or source.num_bytes > SMALL_BYTES


def weights(request: Request, manifest: Manifest) -> Iterator[Finding]:
    """Whether classes that have weights are the label's."""
    from ddlflow.train.tasks.weights import weighting

    weighting(request.pipeline.train, manifest)
    yield from ()


def counted(request: Request, manifest: Manifest) -> Iterator[Finding]:
    """What prepare says of the rows, and what needs rows that are not there."""
    for warning in manifest.warnings:
        yield Finding("source", "note", warning)
    if manifest.rows("validation"):
        return
    search = request.pipeline.search
    if request.pipeline.train.early_stopping is not None:
        text = "train.early_stopping needs validation rows, and data.split leaves none."
        yield Finding("train", "error", f"{text} Set data.split.validation.")
    if search is not None and not search.cv:
        text = "search scores its trials by validation rows, and data.split leaves none."
        advice = "Set data.split.validation, or search.cv: true with a cv section."
        yield Finding("search", "error", f"{text} {advice}")
