"""Tables of Spark's or Dask's as they are given, and the user's code that makes them."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from pydantic import ValidationError

from ddlflow.errors import SpecError
from ddlflow.spec.code import line_in, with_imported
from ddlflow.spec.explain import explain
from ddlflow.spec.given import plain
from ddlflow.spec.section import Section
from ddlflow.spec.tables import PlaceOrTable, Table


class _Given(Section):
    source: PlaceOrTable


def is_table(source: object) -> bool:
    """Whether a source that is given to a command is a table: keys, or the text of such."""
    return isinstance(source, Mapping) or str(source).lstrip().startswith("{")


def load_table(source: str | Mapping[str, Any]) -> Table:
    """A table as a script or the command line gives it.

    Args:
        source: ``{"spark": "SELECT ..."}``, or that as YAML.

    Raises:
        SpecError: it is none; a line for each error.
    """
    try:
        values = {"source": yaml.safe_load(source) if isinstance(source, str) else plain(source)}
        found = _Given.model_validate(values).source
    except yaml.YAMLError:
        raise SpecError(f"source is {source!r:.80}, which is no valid YAML.") from None
    except ValidationError as error:
        lines = [text for _, text in explain(_Given, error, values, {})]
        raise SpecError("\n".join(lines)) from None
    if isinstance(found, str):
        raise SpecError(f"source is {found!r:.80}; expected {{spark: ...}} or {{dask: ...}}.")
    return found


def files_of(named: Iterable[str], folder: Path) -> dict[str, Path]:
    """The Python files beside a pipeline that some names stand for, by their names there."""
    found = with_imported(folder, {name.partition(":")[0].partition(".")[0] for name in named})
    return {str(path.relative_to(folder)): path for path in sorted(found)}


def modules_of(files: Iterable[Path]) -> tuple[ModuleType, ...]:
    """The modules that were imported from some files."""
    paths = {path.resolve() for path in files}
    loaded = ((module, getattr(module, "__file__", None)) for module in [*sys.modules.values()])
    return tuple(module for module, file in loaded if file and Path(file).resolve() in paths)


def raised_by(name: str, key: str, folder: Path, error: Exception) -> SpecError:
    """One line for what the user's own function raised as it was called here.

    Args:
        name: of the function.
        key: where it stands in the pipeline.
        folder: of the pipeline.
        error: what it raised.
    """
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return SpecError(
        f"{key} is {name}, which raises {said[:300]}{line_in(folder, error)}. Correct it."
    )
