"""The user's code that makes a table of Spark's or Dask's: what it is, and what it raised."""

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from ddlflow.errors import SpecError
from ddlflow.spec.code import line_in, with_imported


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
