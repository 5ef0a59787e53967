"""What the code imports is what pyproject.toml asks for, and constraints.txt pins all of it."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Imported module -> the dependency that brings it and is released together with it.
BROUGHT_BY = {
    "distributed": "dask",  # as dask[distributed]
    "pydantic_core": "pydantic",
    "sqlalchemy": "mlflow",  # the errors that MLflow's own store raises
}
PEERS = ROOT / "benchmarks" / "peers"  # in an environment of their own, by their requirements.txt
# Folder -> extras that whoever runs it has installed.
FOLDERS = {
    "ddlflow": {"gpu", "spark", "s3"},  # each imported in its own engine's file alone
    "flows": set[str](),
    "tests": {"dev"},
    "benchmarks": {"dev"},
}


def asked_for(extras: set[str]) -> dict[str, Requirement]:
    """The requirements of pyproject.toml by canonical name."""
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def third_party(folder: Path) -> Iterator[tuple[str, Path]]:
    """Top-level modules that a folder imports from elsewhere, with the file."""
    own = {"ddlflow", "flows", "tests", "benchmarks"}
    files = [file for file in sorted(folder.rglob("*.py")) if file.parent != PEERS]
    own |= {file.stem for file in files} | {file.parent.name for file in files}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                if top not in own and top not in sys.stdlib_module_names:
                    yield top, file


# An import whose distribution is not installed here (a GPU package) is known by its name alone.
DISTRIBUTIONS = metadata.packages_distributions()


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_import_is_asked_for(folder: str) -> None:
    known = asked_for(FOLDERS[folder])
    missing = set()
    for top, file in third_party(ROOT / folder):
        module = BROUGHT_BY.get(top, top)
        brought = {canonicalize_name(name) for name in DISTRIBUTIONS.get(module, [module])}
        if not brought & set(known):
            missing.add(f"{file.relative_to(ROOT)} imports {top}: add it to pyproject.toml")
    assert missing == set()


@pytest.mark.parametrize(("module", "by"), BROUGHT_BY.items())
def test_what_is_brought_by_another_is_its_requirement(module: str, by: str) -> None:
    brought = {canonicalize_name(name) for name in DISTRIBUTIONS[module]}
    needs = {canonicalize_name(Requirement(line).name) for line in metadata.requires(by) or ()}
    assert brought <= needs


def constraints() -> dict[str, Requirement]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text:
            requirement = Requirement(text)
            assert canonicalize_name(requirement.name) not in found, f"{text} is there twice"
            found[canonicalize_name(requirement.name)] = requirement
    return found


def closure() -> dict[str, set[str]]:
    """Every distribution that ``pip install ddlflow[dev]`` brings here: name -> its extras.

    From pyproject.toml on, through what each installed distribution says that it requires.
    """
    found: dict[str, set[str]] = {}
    waiting = [*asked_for({"dev"}).values()]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = set(requirement.extras) | {""}
        new = extras - found.get(name, set())
        if not new:
            continue
        found[name] = found.get(name, set()) | extras
        for line in metadata.requires(name) or ():
            inner = Requirement(line)
            environments = [{**default_environment(), "extra": extra} for extra in new]
            if inner.marker is None or any(map(inner.marker.evaluate, environments)):
                waiting.append(inner)
    return found


def test_all_that_is_installed_for_us_is_pinned_to_this_version() -> None:
    pins = constraints()
    wrong = set()
    for name in closure():
        here = Version(metadata.version(name)).public
        pin = pins.get(name)
        if pin is None:
            wrong.add(f"{name}=={here} is missing in constraints.txt")
        elif not pin.specifier.contains(here, prereleases=True):
            wrong.add(f"{name} is {here} here, but constraints.txt says {pin}")
    assert wrong == set()


def test_every_constraint_is_an_exact_version() -> None:
    for requirement in constraints().values():
        assert [spec.operator for spec in requirement.specifier] == ["=="], requirement


def test_the_pins_are_within_the_ranges_of_pyproject() -> None:
    pins = constraints()
    for name, requirement in asked_for(set(PROJECT["optional-dependencies"])).items():
        if name in pins:
            (pin,) = pins[name].specifier
            assert requirement.specifier.contains(pin.version, prereleases=True), requirement


def test_the_version_is_said_once() -> None:
    import ddlflow

    assert PROJECT["version"] == ddlflow.__version__
