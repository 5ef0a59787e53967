"""User code named ``module:name``: found beside its pipeline first, and then where Python looks.

Code beside a pipeline travels with the job: `gather` copies it, `fingerprint` hashes it.
"""

import ast
import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddlflow.errors import SpecError
from ddlflow.spec.explain import nearest
from ddlflow.spec.load import Request, shown
from ddlflow.spec.pipeline import Pipeline, UserCode
from ddlflow.spec.tables import code_of


def names(pipeline: Pipeline) -> dict[str, str]:
    """Where a pipeline names user code, and the name: ``{"model.use": "net:Wide"}``."""
    places = {"model.use": pipeline.model, "train.objective.use": pipeline.train.objective}
    return {place: spec.use for place, spec in places.items() if isinstance(spec, UserCode)}


def names_of_sources(pipeline: Pipeline) -> dict[str, str]:
    """Where a pipeline's sources name user code, and the name; no model needs it to predict."""
    places = {
        "data.source": pipeline.data.source,
        "data.test_source": pipeline.data.test_source,
        "infer.source": pipeline.infer.source,
    }
    return {at: name for key, one in places.items() for at, name in code_of(one, key).items()}


def searched(pipeline: Pipeline) -> list[str]:
    """The names of user models that a search tries."""
    space = pipeline.search.space if pipeline.search else {}
    listed = space["model.use"].values if "model.use" in space else None
    whole = space["model"].values if "model" in space else None
    uses = [*(listed or []), *(m.get("use") for m in whole or [] if isinstance(m, dict))]
    return [use for use in uses if isinstance(use, str) and ":" in use]


def resolve(name: str, folder: Path | None, place: str = "model.use") -> Callable[..., Any]:
    """Imports ``module:name``, modules in ``folder`` first.

    Raises:
        SpecError: no such module or name, it cannot be called, or its import raises.
    """
    module_name, _, attribute = name.partition(":")
    try:
        with _beside_first(folder, module_name.partition(".")[0]):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise SpecError(
                f"{place} is {name}: its import needs {error.name}, which is not installed"
                f"{line_in(folder, error)}. Install it, or take that import out."
            ) from None
        where = f", neither beside the pipeline in {shown(folder)} nor" if folder else ""
        file = f"{module_name.replace('.', '/')}.py"
        raise SpecError(
            f"{place} is {name}: there is no module {module_name}{where} installed. "
            f"Write {file} beside the pipeline, or correct the name."
        ) from None
    except (Exception, SystemExit) as error:
        raise SpecError(
            f"{place} is {name}: importing {module_name} raises {type(error).__name__}: {error}"
            f"{line_in(folder, error)}. Correct it."
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        known = [key for key, value in vars(module).items() if _is_own(value, module_name)]
        listed = f" It has: {', '.join(known)}." if known else ""
        near = nearest(attribute, known) or listed
        file = shown(Path(module.__file__)) if module.__file__ else module_name
        raise SpecError(f"{place} is {name}: {file} has no {attribute}.{near}")
    if not callable(found):
        raise SpecError(
            f"{place} is {name}: {attribute} is {found!r:.60}; expected a class or function."
        )
    return found  # type: ignore[no-any-return]


def _is_own(value: Any, module_name: str) -> bool:
    """Whether a class or function is the module's own, and not one that it imports."""
    return callable(value) and getattr(value, "__module__", None) == module_name


def line_in(folder: Path | None, error: BaseException) -> str:
    """`` (net.py:14)``: the last line in the user's folder that the error passed."""
    if folder is None or isinstance(error, SyntaxError):
        return ""
    inside = [
        f" ({Path(frame.filename).relative_to(folder.resolve())}:{frame.lineno})"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(folder.resolve())
    ]
    return inside[-1] if inside else ""


# Modules imported from beside a pipeline in this process: name -> (file, its change time).
_from_beside: dict[str, tuple[Path, int]] = {}


@contextmanager
def _beside_first(folder: Path | None, top: str) -> Iterator[None]:
    """Modules in ``folder`` are found first, and namesakes of another pipeline are forgotten.

    So are those that were edited since (in a notebook, say). No bytecode is written beside them.
    """
    here = folder.resolve() if folder else None
    loaded = getattr(sys.modules.get(top), "__file__", None)
    if here and loaded and _beside(here, top) and not _lies_beside(Path(loaded), here, top):
        for name in [m for m in sys.modules if f"{m}.".startswith(f"{top}.")]:
            del sys.modules[name]
    if any(_is_stale(here, *known) for known in _from_beside.values()):
        for name in _from_beside:
            sys.modules.pop(name, None)
        _from_beside.clear()
    if here is None:
        yield
        return
    before, writes_none = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(here))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(here))
        sys.dont_write_bytecode = writes_none
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and _lies_beside(Path(file), here, name):
                _from_beside[name] = (Path(file), Path(file).stat().st_mtime_ns)


def _is_stale(here: Path | None, file: Path, changed_ns: int) -> bool:
    if here is None or not file.is_relative_to(here):
        return True
    return not file.exists() or file.stat().st_mtime_ns != changed_ns


def _lies_beside(file: Path, here: Path, name: str) -> bool:
    """Whether a module's file is where ``import name`` finds it in ``here``: no other package."""
    base = here.joinpath(*name.split("."))
    return file in (base.with_suffix(".py"), base / "__init__.py")


def files(request: Request, *, of_sources: bool = True) -> dict[str, Path]:
    """The Python files that travel with a pipeline, by their names under its folder.

    Those modules and packages beside it that it names, and those beside it that these import. What
    else lies there (a script with a password in it, say) stays where it is.

    Args:
        request: whose pipeline it is.
        of_sources: also those that make its sources; a model takes along none of them.
    """
    named = [*names(request.pipeline).values(), *searched(request.pipeline)]
    if of_sources:
        named += names_of_sources(request.pipeline).values()
    if not named:
        return {}
    folder = request.code_folder
    tops = {name.partition(":")[0].partition(".")[0] for name in named}
    found = sorted(with_imported(folder, tops))
    return {str(path.relative_to(folder)): path for path in found}


def with_imported(folder: Path, tops: set[str]) -> set[Path]:
    """The files of top-level modules beside a pipeline, and of those that they import."""
    found: set[Path] = set()
    seen, waiting = set(tops), list(tops)
    while waiting:
        mine = _beside(folder, waiting.pop())
        found.update(mine)
        imported = {top for path in mine for top in _imports(path)} - seen
        seen |= imported
        waiting += sorted(imported)
    return found


def _beside(folder: Path, top: str) -> list[Path]:
    """The files of one top-level module or package in ``folder``; none if it is elsewhere."""
    package = _python_files(folder / top, folder)
    return package or [path for path in [folder / f"{top}.py"] if path.is_file()]


def _python_files(inside: Path, folder: Path) -> list[Path]:
    """Those of a folder, less hidden ones, virtual environments and what Python writes."""
    environments = [path.parent for path in inside.glob("*/pyvenv.cfg")]
    return [
        path
        for path in sorted(inside.rglob("*.py"))
        if not any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)
        and not any(path.is_relative_to(environment) for environment in environments)
    ]


def _imports(path: Path) -> Iterator[str]:
    """The top-level modules that a file imports anywhere; a file that is no Python has none."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # `resolve` says so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def fingerprint(request: Request, *, of_sources: bool = True) -> str:
    """The SHA-256 of all code that travels with the pipeline; empty where there is none."""
    return hashed_files(files(request, of_sources=of_sources))


def digest_of(folder: Path) -> str:
    """The same of code that travelled: of the files that `gather` wrote into a folder."""
    return hashed_files({name: folder / name for name in names_in(folder)})


def names_in(folder: Path) -> list[str]:
    """The Python files in a folder that `gather` wrote, by their names, in order."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py"))


def hashed_files(found: dict[str, Path]) -> str:
    """The SHA-256 of files and their names; empty where there is none."""
    if not found:
        return ""
    total = hashlib.sha256()
    for name, path in sorted(found.items()):
        total.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return total.hexdigest()


def check_trusted(folder: Path, recorded: str, *, of: str, trusted: bool) -> None:
    """Code that somebody's record brings is run only if it is the recorded one, and trusted.

    Args:
        folder: of the code.
        recorded: its digest, as the record has it.
        of: whose it is, for messages: ``model runs:/ID/model``.
        trusted: whether the user said so.

    Raises:
        SpecError: it is other code, or not trusted.
    """
    names = names_in(folder)
    if digest_of(folder) != recorded:
        raise SpecError(
            f"The code of {of} ({', '.join(names) or 'none'}) is not the code that was recorded "
            f"with it (SHA-256 {recorded[:12] or 'none'}...): it was changed or is incomplete. Get "
            "it anew from where it was trained."
        )
    if not trusted:
        raise SpecError(
            f"{of} brings code of its own, which would run here: {', '.join(names)} (SHA-256 "
            f"{recorded[:12]}...). If you trust it, add --trust-code (in Python: trust_code=True), "
            "or set trust_code: true in the site file."
        )


def gather(request: Request, to: Path) -> Path | None:
    """Copies the code that travels to ``to``; None where there is none."""
    found = files(request)
    for name, path in found.items():
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return to if found else None
