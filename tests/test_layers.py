"""Who may import whom (design section 3), read from the source files with ``ast``.

    redact <- errors <- spec <- store <- data <- models <- train <- sweep, infer
    engines, tracking and report import errors, spec and store alone
    runs composes these; history is of recorded runs; api, flow and cli stand on top

Within runs/ and data/ there is an order as well: no file imports a later one.

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

LOW = {"errors", "redact", "machine", "rank_protocol", "spec", "store"}
NUMERICS = {"data", "models", "train", "sweep", "infer", "report"}
RUN = LOW | NUMERICS | {"engines", "tracking"}
# Room -> the rooms beside itself that it may import.
MAY_IMPORT = {
    "redact": set(),
    "errors": {"redact"},
    "machine": set(),
    "rank_protocol": set(),
    "spec": {"errors", "redact"},
    "store": {"errors", "redact", "spec"},
    "data": LOW,
    "models": LOW | {"data"},
    "train": LOW | {"data", "models"},
    "sweep": LOW | {"data", "models", "train"},
    "infer": LOW | {"data", "models", "train"},
    "report": {"errors", "data", "spec"},  # spec: the ranges of a search's space are its axes
    "engines": {"errors", "machine", "rank_protocol", "redact", "spec", "store"},
    "tracking": {"errors", "redact", "spec", "store"},
    "flow": {"errors", "redact", "runs", "spec", "store", "sweep"},  # sweep: how many trials
    # data: the manifest that is checked; spec and report: the request and the screen of a session.
    "flow_api": {"data", "flow", "report", "runs", "spec"},
    "runs": RUN,
    # data, train: manifests, ledgers and events that a run left; report: plots, the screen.
    "history": {"data", "errors", "redact", "report", "runs", "spec", "store", "tracking", "train"},
    # data: tables and samples; report, tracking: the screen, the pages of `ui`.
    "api": LOW | {"data", "flow", "history", "report", "runs", "tracking"},
    # infer, train: the model that travels, and its columns; runs: where it lies.
    "spark": {"api", "errors", "infer", "runs", "spec", "store", "train"},
    # report: the screen; errors and redact: the last line that a user sees.
    "cli": {"api", "errors", "redact", "report"},
    "__main__": {"cli"},
    "__init__": {"api"},  # its three public names, when they are first used
}
# Path prefixes under a room, the lowest first: no file imports what a later line names.
ORDER = {
    "runs": [
        ("results",),
        ("result_json", "trial_members", "interrupts", "scratch"),
        ("events", "workers", "ranks", "failures", "finished", "holds", "tables", "running"),
        ("evaluated",),
        ("installed", "given_session"),
        ("project",),
        ("check/finding",),
        ("check/",),
        ("session",),
        ("samples", "setup"),
        ("exports",),
        ("launch",),
        ("versions",),
        ("inference",),
        ("stages",),
        ("spread",),
        ("search", "folds"),
        ("sweeps",),
        ("drawn", "model_example"),
        ("record",),
        ("record_trials", "summaries"),
        ("apply", "doctor"),
    ],
    "data": [
        ("coefficient_table", "scored", "fields", "tensors", "padding"),
        ("sources/",),
        ("convert", "matrix", "numbers", "offsets", "roles"),
        ("columns",),
        ("shards/",),
        ("prepare/",),
        ("samples/",),
    ],
    "train": [
        ("tasks/",),
        ("facts",),
        ("events", "result"),
        ("job", "pulse", "seeding", "schedules", "optimizers", "auto", "components"),
        ("bad_batch", "penalty", "probe", "early_stopping", "first_net", "split_rows"),
        ("precision", "validation", "affine_backward"),
        ("saved/",),
        ("parallel/",),
        ("optimizer_step",),
        ("loop",),
        ("full_batch",),
        ("training",),
        ("preload",),
        ("rank",),
    ],
    "sweep": [
        ("choose/",),
        ("member",),
        ("member_result",),
        ("standing", "trained", "place"),
        ("fused/",),
        ("held_out", "solo"),
        ("run",),
        ("task",),
        ("cutting",),
    ],
}
# Framework -> the files that may import it, as path prefixes under ddlflow/.
ONLY_IN = {
    "dask": ("engines/dask", "engines/on_worker.py"),
    "distributed": ("engines/dask", "engines/on_worker.py"),
    "duckdb": ("data/sources/derive_sql.py",),
    "dask_cuda": ("engines/dask",),
    "mlflow": ("tracking/",),
    "prefect": ("flow/",),
    "pyspark": ("engines/spark", "spark/"),
    "torchmetrics": ("train/",),
    "matplotlib": ("report/",),
    "obstore": ("store/object",),  # where it is asked for: a folder needs none
    "optuna": ("sweep/",),
    "rich": ("report/screen.py",),
    "typer": ("cli/",),
    "torch": (
        "data/shards/batches.py",
        "models/",
        "train/",
        "sweep/",
        "infer/",
        "runs/workers.py",
    ),
}
# With these installed the numerics run: no Dask, no Prefect, no MLflow (design section 3).
ENOUGH_FOR_NUMERICS = {"torch", "torchmetrics", "numpy", "scipy", "pyarrow", "pandas", "fsspec"}
ENOUGH_FOR_NUMERICS |= {"duckdb", "pydantic", "pydantic_core", "yaml", "psutil", "optuna"}


def room(path: Path) -> str:
    """The room that a file of ddlflow/ is in: its folder, or itself."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


def level(room: str, inside: str) -> int:
    """The level in a room's ``ORDER`` that a path inside it is on: the longest name counts."""
    found = [
        (len(name), number)
        for number, names in enumerate(ORDER[room])
        for name in names
        if inside == name or (name.endswith("/") and f"{inside}/".startswith(name))
    ]
    assert found, f"{room}/{inside} has no place in ORDER"
    return max(found)[1]


def inside(path: Path) -> str:
    """``session`` of ddlflow/runs/session.py, ``check/`` of ddlflow/runs/check/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts[1:]
    return "/".join(parts).removesuffix("__init__")


def later(source: str, file: Path) -> list[str]:
    """The imports of a file that are of a later level of its own room."""
    own = room(file)
    here = inside(file)
    if own not in ORDER or not here:
        return []
    found = []
    for module, line in imported(ast.parse(source), file):
        parts = module.split(".")
        if parts[:2] != ["ddlflow", own]:
            continue
        path = PACKAGE.joinpath(*parts[1:])
        while not (path.is_dir() or path.with_suffix(".py").is_file()):
            path = path.parent  # a name in a module
        theirs = inside(path) if path != PACKAGE / own else ""
        if theirs and level(own, theirs) > level(own, here):
            found.append(f"{file.relative_to(ROOT)}:{line}: {here} imports {module}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(file: Path) -> None:
    assert crossings(file.read_text(), file) == []


@pytest.mark.parametrize(
    "name", ["errors", "spec", "store", "data", "models", "train", "sweep", "infer"]
)
def test_the_numerics_need_no_cluster_and_no_tracking(name: str) -> None:
    third_party = {
        module.split(".")[0]
        for file in FILES
        if room(file) == name
        for module, _ in imported(ast.parse(file.read_text()), file)
    } - {"ddlflow", "obstore", *sys.stdlib_module_names}
    assert third_party <= ENOUGH_FOR_NUMERICS


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_nothing_later_in_its_room(file: Path) -> None:
    assert later(file.read_text(), file) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("runs/session.py", "from ddlflow.runs import stages"),
        ("runs/launch.py", "from ddlflow.runs.stages import train"),
        ("runs/check/finding.py", "from ddlflow.runs.check import precheck"),
        ("data/sources/x.py", "def f():\n    import ddlflow.data.prepare.prepare"),
        ("data/columns.py", "from ..data.shards import batches"),
        ("train/tasks/x.py", "from ddlflow.train.loop import train"),
    ],
)
def test_the_order_finds_what_breaks_it(file: str, line: str) -> None:
    assert len(later(line, PACKAGE / file)) == 1


def modules_imported(file: Path) -> set[Path]:
    """The files of ddlflow/ that a file imports anywhere in it."""
    found = set()
    for module, _ in imported(ast.parse(file.read_text()), file):
        parts = module.split(".")
        if parts[0] != "ddlflow":
            continue
        path = ROOT.joinpath(*parts)
        while not path.with_suffix(".py").is_file() and not (path / "__init__.py").is_file():
            path = path.parent  # a name in a module
        is_module = path.with_suffix(".py").is_file()
        found.add(path.with_suffix(".py") if is_module else path / "__init__.py")
    return found - {PACKAGE / "__init__.py"}  # its names are imported when they are first used


def circles(edges: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """The sets of modules that import each other, directly or by others."""
    reached = {name: set(others) for name, others in edges.items()}
    for middle in edges:
        for name in edges:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    both = [{other for other in reached[name] if name in reached[other]} for name in edges]
    return sorted({tuple(sorted(names)) for names in both if names})


# A file that opens one of several kinds by name, in a function, and holds the contract that each
# of them imports: these edges are the choice, not a circle of thought.
OPENS = {
    "engines/__init__.py": {
        "engines/local.py",
        "engines/dask_cluster.py",
        "engines/dask_address.py",
        "engines/spark_open.py",
    },
}


def test_no_modules_import_each_other() -> None:
    edges = {
        str(file.relative_to(PACKAGE)): {
            str(other.relative_to(PACKAGE)) for other in modules_imported(file)
        }
        - OPENS.get(str(file.relative_to(PACKAGE)), set())
        for file in FILES
    }
    assert sum(map(len, edges.values())) > len(edges)
    assert circles(edges) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [("b", "c")]


def test_no_two_classes_have_one_name() -> None:
    found: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(str(file.relative_to(PACKAGE)))
    twice = {name: files for name, files in found.items() if len(files) > 1}
    assert twice == {}


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
        ("spec/x.py", "def f():\n    import ddlflow.data.sources.source"),
        ("store/x.py", "from ddlflow.data.columns import Column"),
        ("report/x.py", "from ddlflow.train.tasks import metrics"),
        ("runs/x.py", "from ddlflow.history.compare import compare"),
        ("engines/x.py", "from ddlflow import data"),
        ("tracking/x.py", "import ddlflow.infer.model as m"),
        ("models/x.py", "from ddlflow.cli.app import main"),
        ("train/x.py", "import mlflow"),
        ("runs/stages.py", "from prefect import flow"),
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
        ("import ddlflow.cli.app", (*HEAVY, "pydantic")),
        ("import ddlflow.spec.load, ddlflow.spec.code", HEAVY),
    ],
)
def test_what_a_start_does_not_import(statement: str, heavy: tuple[str, ...]) -> None:
    code = f"{statement}\nimport sys\nprint(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []
