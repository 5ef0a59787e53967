"""Results as JSON and back: stage.json in a stage's folder, summary.json, ``--json``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ddlflow.errors import DdlflowError
from ddlflow.runs.results import CrossValidationResult

Result = TypeVar("Result")
# Keys that JSON has only where there is something.
LEFT_OUT = ("search", "cross_validation")


def to_json(result: Any) -> dict[str, Any]:
    """A result as JSON values."""
    is_plain = isinstance(result, dict)
    values: dict[str, Any] = dict(result) if is_plain else _plain(asdict(result))
    for name in LEFT_OUT:
        if name in values and values[name] is None:
            del values[name]
    folds = values if isinstance(result, CrossValidationResult) else values.get("cross_validation")
    if folds is not None and folds["predictions"] is None:
        del folds["predictions"]
    return values


def from_json(kind: type[Result], values: Mapping[str, Any], where: str) -> Result:
    """A result of JSON values.

    Args:
        kind: of result.
        values: as `to_json` gave them.
        where: they stand, for the error.

    Raises:
        DdlflowError: another version of ddlflow wrote them.
    """
    try:
        if is_dataclass(kind):
            unknown = sorted({*values} - {one.name for one in fields(kind)})
            if unknown:
                raise DdlflowError(_of_another_version(where, f"it holds {', '.join(unknown)}"))
        adapter: TypeAdapter[Result] = _adapter(kind)  # type: ignore[arg-type] # a class is hashable
        found = adapter.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise DdlflowError(_of_another_version(where, what)) from None
    return found


def _of_another_version(where: str, what: str) -> str:
    return (
        f"{where} was written by another version of ddlflow ({what}). Use that version, or do the "
        "work again with --fresh."
    )


@lru_cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _plain(value: Any) -> Any:
    """Lists for tuples: what was read back equals what was written."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(inner) for inner in value]
    return value
