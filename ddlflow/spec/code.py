"""User code named ``module:name``: found beside its pipeline first, and then where Python looks.

Code beside a pipeline travels with the job: `gather` copies it, `fingerprint` hashes it.
"""

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddlflow.errors import SpecError
from ddlflow.spec.explain import nearest
from ddlflow.spec.load import Plan
from ddlflow.spec.pipeline import Pipeline, UserCode


def names(pipeline: Pipeline) -> dict[str, str]:
    """Where a pipeline names user code, and the name: ``{"model.use": "net:Wide"}``."""
    places = {"model.use": pipeline.model, "train.objective.use": pipeline.train.objective}
    return {place: spec.use for place, spec in places.items() if isinstance(spec, UserCode)}


def resolve(name: str, folder: Path | None, place: str = "model.use") -> Callable[..., Any]:
    """Imports ``module:name``, modules in ``folder`` first.

    Raises:
        SpecError: no such module or name, it cannot be called, or its import raises.
    """
    module_name, _, attribute = name.partition(":")
    try:
        with _looked_up_first(folder, module_name.partition(".")[0]):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise SpecError(
                f"{place} is {name}: its import needs {error.name}, which is not installed."
            ) from None
        where = f"beside the pipeline in {folder} nor " if folder else ""
        raise SpecError(
            f"{place} is {name}: there is no module {module_name}, neither {where}installed. "
            f"Write {module_name.replace('.', '/')}.py beside the pipeline."
        ) from None
    except Exception as error:
        raise SpecError(
            f"{place} is {name}: importing {module_name} raises {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        known = [key for key in vars(module) if not key.startswith("_")]
        raise SpecError(
            f"{place} is {name}: {module.__file__} has no {attribute}.{nearest(attribute, known)}"
        )
    if not callable(found):
        raise SpecError(
            f"{place} is {name}: {attribute} is {found!r:.60}; expected a class or function."
        )
    return found  # type: ignore[no-any-return]


@contextmanager
def _looked_up_first(folder: Path | None, top: str) -> Iterator[None]:
    """Puts ``folder`` in front of Python's path, and forgets a namesake of another pipeline."""
    if folder is None:
        yield
        return
    here = folder.resolve()
    beside = (here / f"{top}.py").is_file() or (here / top).is_dir()
    known = sys.modules.get(top)
    if beside and known is not None and here not in Path(known.__file__ or "/").resolve().parents:
        for loaded in [m for m in sys.modules if m == top or m.startswith(f"{top}.")]:
            del sys.modules[loaded]
    sys.path.insert(0, str(here))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(here))


def files(plan: Plan) -> dict[str, Path]:
    """The Python files that travel with a pipeline, by their names under its folder.

    All modules of a folder pipeline; of a pipeline that is a single file, those modules and
    packages beside it that it names.
    """
    named = names(plan.pipeline)
    if not named:
        return {}
    folder = plan.code_folder
    if plan.pipeline_path.name == "pipeline.yaml":
        found = sorted(folder.rglob("*.py"))
    else:
        tops = {name.partition(":")[0].partition(".")[0] for name in named.values()}
        found = [folder / f"{top}.py" for top in sorted(tops)]
        found += [path for top in sorted(tops) for path in sorted((folder / top).rglob("*.py"))]
    return {str(path.relative_to(folder)): path for path in found if path.is_file()}


def fingerprint(plan: Plan) -> str:
    """The SHA-256 of all code that travels with the pipeline; empty where there is none."""
    found = files(plan)
    if not found:
        return ""
    total = hashlib.sha256()
    for name, path in found.items():
        total.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return total.hexdigest()


def gather(plan: Plan, to: Path) -> Path | None:
    """Copies the code that travels to ``to``; None where there is none."""
    found = files(plan)
    for name, path in found.items():
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return to if found else None
