"""Sources that are tables of Spark's or Dask's: what can be known of them before they are read."""

from collections.abc import Iterator
from typing import Any

from ddlflow.runs.check.finding import Finding
from ddlflow.spec import code
from ddlflow.spec.load import Request
from ddlflow.spec.tables import SparkReader, SparkTable, Table, code_of, options_of


def table(request: Request, source: Any, at: str) -> Iterator[Finding]:
    """What a table is, and that its rows and columns are not known yet; nothing of other sources.

    Args:
        request: whose pipeline it stands in.
        source: of any kind.
        at: where it stands.
    """
    if not isinstance(source, Table):
        return
    engine = request.site.engine.use
    if engine != source.engine:
        text = (
            f"{at} is {source.shown}, and engine.use of the site is {engine}. Run it on a site "
            f"with engine.use: {source.engine} (--on), or name files."
        )
        yield Finding("source", "error", text)
        return
    if isinstance(source, SparkTable) and isinstance(source.spark, SparkReader):
        options_of(source.spark, at)
    for key, name in code_of(source, at).items():
        code.resolve(name, request.code_folder, key)
    order = f"sorted by {', '.join(source.key)}" if source.key else "in the cluster's own order"
    yield Finding(
        "source",
        "ok",
        f"{at}: {source.shown}, which the workers export to the storage, {order}. Its columns and "
        "rows are looked at as a run begins: they are not known here.",
    )
    if not source.key:
        text = f"{at} has no key: another export may have its rows in another order, so a run "
        yield Finding(
            "source",
            "note",
            f"{text}cannot be repeated exactly. Set {at}.key to columns that tell the rows apart.",
        )
