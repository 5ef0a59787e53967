"""What flows/pipeline.py stands on: its names are pinned, and an older copy gets one line."""

import ast
from pathlib import Path

import pytest

from ddlflow import flow_api
from ddlflow.errors import SpecError
from ddlflow.flow import load

ROOT = Path(__file__).resolve().parents[1]
FLOW = ROOT / "flows/pipeline.py"


def test_the_names_are_these() -> None:
    """Flows of users import them: raise ``FLOW_API`` when one goes or means another thing."""
    assert flow_api.FLOW_API == 2
    assert flow_api.__all__ == [
        *("FLOW_API", "RunRecord", "RunSummary", "Session", "Stage", "SweepSummary"),
        *("check_prepared", "cross_validate"),
        *("evaluate", "flow_run_name", "infer", "log_best", "log_folds", "log_search"),
        *("open_session", "prepare", "publish", "recorded", "run_stage", "search"),
        *("search_progress", "summary", "sweep_summary", "train", "trials", "use_best"),
    ]
    assert all(hasattr(flow_api, name) for name in flow_api.__all__)


def test_the_flow_imports_nothing_else_of_ddlflow() -> None:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(FLOW.read_text())):
        if isinstance(node, ast.ImportFrom):
            prefix = f"{node.module}."
            is_ours = prefix.startswith("ddlflow")
            modules |= {prefix + a.name for a in node.names} if is_ours else {str(node.module)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    of_flow_api = {m for m in modules if m.startswith("ddlflow.flow_api")}
    assert modules - of_flow_api == {"prefect", "typing"}


def test_the_flow_uses_pinned_names_alone() -> None:
    tree = ast.parse(FLOW.read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "flow_api"
    }
    used |= {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "ddlflow.flow_api"
        for alias in node.names
    }
    assert used <= set(flow_api.__all__)
    assert {"prepare", "cross_validate", "search", "train", "evaluate", "infer"} <= used


# As the release before had it: it imports what has moved.
OLD = """
from prefect import flow

from ddlflow.session import Session

def run(command, **parameters): ...
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OLD, "flows/pipeline.py was written for an earlier ddlflow: it says no FLOW_API (this"),
        ("FLOW_API = 1\nimport nothing.such", "an earlier ddlflow: its FLOW_API is 1, and this"),
        ("FLOW_API = 3\nimport nothing.such", "a later ddlflow: its FLOW_API is 3, and this"),
        ("FLOW_API = 2\nflow = None", "flows/pipeline.py holds no flow `pipeline`."),
        ("FLOW_API = 2\ndef f(:", "flows/pipeline.py:2: this is no Python (invalid syntax)."),
    ],
)
def test_a_flow_of_another_ddlflow_gets_one_line(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/pipeline.py").write_text(text)
    with pytest.raises(SpecError) as raised:
        load.load_flow()
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    if "no Python" not in said:
        assert "copy NEW/flows/pipeline.py to flows/pipeline.py" in str(raised.value)


def test_the_shipped_flow_says_for_which_names_it_was_written() -> None:
    assert load._version_of(FLOW) == flow_api.FLOW_API
