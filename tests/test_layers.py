"""Who may import whom (design section 3), read from the source files with ``ast``.

    redact <- errors <- spec <- data <- models <- train <- sweep, infer, report
    owner <- entries <- lease: who holds what on the storage; any room that writes there may ask
    engines and tracking import errors, spec and these alone
    session, stages, record, check, commands and project compose these; cli and flows use them

Imports inside functions count as well, and those for type checking alone.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ddlflow"
FILES = sorted(PACKAGE.rglob("*.py"))

LOW = {"errors", "spec", "redact", "owner", "entries", "lease", "machine"}
NUMERICS = {"data", "models", "train", "sweep", "infer", "report"}
COMPOSED = {"session", "stages", "launch", "record", "check", "commands", "applying", "project"}
COMPOSED |= {"compare", "reproduce", "differences", "audit", "storage", "failures", "holds"}
COMPOSED |= {"tables", "finished"}
COMPOSED |= {"flow", "running", "doctor", "pieces", "searching", "sweeping", "trials", "installed"}
COMPOSED |= {"ranks", "workers"}
# Room -> the rooms beside itself that it may import.
MAY_IMPORT = {
    "redact": set(),
    "errors": {"redact"},
    "owner": set(),
    "machine": set(),
    "entries": {"owner"},
    "lease": {"errors", "owner", "entries"},
    "spec": {"errors", "redact"},
    "data": LOW,
    "models": LOW | {"data"},
    "train": LOW | {"data", "models"},
    "sweep": LOW | {"data", "models", "train"},
    "infer": LOW | {"data", "models", "train"},
    "report": LOW | {"data", "models", "train"},
    "engines": LOW,
    "tracking": LOW,
    **dict.fromkeys(COMPOSED, LOW | NUMERICS | {"engines", "tracking"} | COMPOSED),
    "cli": LOW | COMPOSED | {"output", "report", "tracking"},
    "output": {"errors", "redact", "report"},
    "__main__": {"cli"},
    # Its three public names, when they are first used.
    "__init__": {"commands", "applying"},
}
# Framework -> the files that may import it, as path prefixes under ddlflow/.
ONLY_IN = {
    "dask": ("engines/dask", "engines/on_worker.py"),
    "distributed": ("engines/dask", "engines/on_worker.py"),
    "duckdb": ("data/derive_sql.py",),
    "dask_cuda": ("engines/dask",),
    "mlflow": ("tracking/",),
    "prefect": ("no file: flows/ alone",),
    "pyspark": ("engines/spark",),
    "torchmetrics": ("train/",),
    "matplotlib": ("report/",),
    "optuna": ("sweep/",),
    "rich": ("report/screen.py",),
    "typer": ("cli", "output.py"),
    "torch": (
        "data/batches.py",
        "models/",
        "train/",
        "sweep/",
        "infer/",
        "workers.py",
    ),
}
# With these installed the numerics run: no Dask, no Prefect, no MLflow (design section 3).
ENOUGH_FOR_NUMERICS = {"torch", "torchmetrics", "numpy", "scipy", "pyarrow", "pandas", "fsspec"}
ENOUGH_FOR_NUMERICS |= {"duckdb", "pydantic", "pydantic_core", "yaml", "psutil", "optuna"}


def room(path: Path) -> str:
    """The room that a file of ddlflow/ is in: its folder, or itself."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "cli" if name.startswith("cli_") else name  # the command line in several files


def imported(tree: ast.AST, file: Path) -> Iterator[tuple[str, int]]:
    """Each imported module with its line; a relative import is made absolute."""
    package = (*file.relative_to(ROOT).parent.parts,)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def room_of(module: str) -> str | None:
    """The room of ddlflow that a dotted name is in; None for what is not ddlflow's room.

    ``ddlflow`` and names of it (``ddlflow.__version__``) are in no room.
    """
    parts = module.split(".")
    if parts[0] != "ddlflow" or len(parts) == 1:
        return None
    is_room = (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file()
    return room(PACKAGE / parts[1]) if is_room else None


def crossings(source: str, file: Path) -> list[str]:
    """What a file's imports break, a line each."""
    own = room(file)
    found = []
    for module, line in imported(ast.parse(source), file):
        place = f"{file.relative_to(ROOT)}:{line}"
        theirs = room_of(module)
        if theirs is not None and theirs != own and theirs not in MAY_IMPORT[own]:
            found.append(f"{place}: {own} imports {module}")
        allowed = ONLY_IN.get(module.split(".")[0])
        if allowed and not str(file.relative_to(PACKAGE)).startswith(allowed):
            found.append(f"{place}: only {' and '.join(allowed)} may import {module}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(file: Path) -> None:
    assert crossings(file.read_text(), file) == []


@pytest.mark.parametrize("name", ["errors", "spec", "data", "models", "train", "sweep", "infer"])
def test_the_numerics_need_no_cluster_and_no_tracking(name: str) -> None:
    third_party = {
        module.split(".")[0]
        for file in FILES
        if room(file) == name
        for module, _ in imported(ast.parse(file.read_text()), file)
    } - {"ddlflow", *sys.stdlib_module_names}
    assert third_party <= ENOUGH_FOR_NUMERICS


def test_every_room_has_its_rule() -> None:
    assert {room(file) for file in FILES} == set(MAY_IMPORT)


def test_nothing_imports_the_command_line_or_the_flows() -> None:
    for own, allowed in MAY_IMPORT.items():
        assert own == "__main__" or "cli" not in allowed
        assert "flows" not in allowed


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data/x.py", "from ddlflow.train.loop import train"),
        ("data/x.py", "from ..train import loop"),
        ("spec/x.py", "def f():\n    import ddlflow.data.source"),
        ("engines/x.py", "from ddlflow import data"),
        ("tracking/x.py", "import ddlflow.infer.model as m"),
        ("models/x.py", "from ddlflow.cli import main"),
        ("train/x.py", "import mlflow"),
        ("stages.py", "from prefect import flow"),
        ("engines/local.py", "from distributed import Client"),
    ],
)
def test_the_rule_finds_what_breaks_it(file: str, line: str) -> None:
    assert len(crossings(line, PACKAGE / file)) == 1


def test_the_named_exception_is_no_static_import() -> None:
    """tracking/served.py runs where a model is served, and reaches ddlflow.infer by its name."""
    text = (PACKAGE / "tracking/served.py").read_text()
    assert 'importlib.import_module("ddlflow.infer.model")' in text


HEAVY = (
    "torch",
    "pyarrow",
    "duckdb",
    "mlflow",
    "prefect",
    "dask",
    "distributed",
    "pandas",
    "numpy",
)


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import ddlflow", (*HEAVY, "pydantic", "yaml", "typer")),
        ("import ddlflow.cli", (*HEAVY, "pydantic")),
        ("import ddlflow.spec.load, ddlflow.spec.code", HEAVY),
    ],
)
def test_what_a_start_does_not_import(statement: str, heavy: tuple[str, ...]) -> None:
    code = f"{statement}\nimport sys\nprint(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []
