"""The public face: three functions, documented, and an import that costs next to nothing."""

import inspect
import subprocess
import sys

import pytest

import ddlflow


def test_the_public_names_are_these() -> None:
    assert ddlflow.__all__ == ["load_model", "predict", "run"]
    assert set(ddlflow.__all__) <= set(dir(ddlflow))


@pytest.mark.parametrize("name", ["load_model", "predict", "run"])
def test_a_public_name_is_documented(name: str) -> None:
    function = getattr(ddlflow, name)
    assert inspect.isfunction(function)
    text = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters:
        assert parameter in text, f"{name} does not say what {parameter} is"
    assert "Raises:" in text
    assert all(p.annotation is not p.empty for p in inspect.signature(function).parameters.values())


# What scripts of the first release call from ddlflow.api; none of it goes.
FIRST_RELEASE = {"as_changes", "fetch_higgs", "load_model", "make", "predict", "run", "site"}


def test_the_names_of_the_api_are_these() -> None:
    from ddlflow import api

    assert api.__all__ == [
        *("MadeName", "as_changes", "audit", "check", "compare", "doctor", "fetch_higgs", "init"),
        *("load_model", "make", "predict", "reproduce", "run", "run_pipeline", "run_sweep", "site"),
        *("summary_json", "ui"),
    ]
    assert set(api.__all__) >= FIRST_RELEASE
    assert all(hasattr(api, name) for name in api.__all__)


def test_signatures() -> None:
    """Scripts of users stand on these."""
    parameters = {
        name: list(inspect.signature(getattr(ddlflow, name)).parameters) for name in ddlflow.__all__
    }
    assert parameters["run"] == ["pipeline", "on", "set", "source", "spark", "fresh", "only"]
    assert parameters["predict"] == [
        *("model", "source", "out", "on", "keys", "set", "fresh", "trust_code")
    ]
    assert parameters["load_model"] == ["model", "on", "set", "trust_code"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        _ = ddlflow.fit  # type: ignore[attr-defined]


def test_the_names_stay_functions_when_their_rooms_are_imported() -> None:
    """Importing a subpackage binds its name in the package, over a function of that name."""
    code = (
        "import ddlflow; ddlflow.load_model; import ddlflow.api, ddlflow.runs.check\n"
        "print(*[name for name in ddlflow.__all__ if not callable(getattr(ddlflow, name))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_import_is_light() -> None:
    """In a process of its own, where nothing else has imported anything."""
    code = (
        "import sys; before = set(sys.modules); import ddlflow; "
        "print(*sorted({m for m in set(sys.modules) - before if not m.startswith('ddlflow')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    outside = [m for m in done.stdout.split() if m.split(".")[0] not in sys.stdlib_module_names]
    assert outside == []
