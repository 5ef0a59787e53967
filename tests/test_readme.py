"""What the README shows works as it stands there."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """The README's code block of a language that contains a text."""
    # Fences alternate: every second piece is inside one.
    pieces = re.split(r"^```", README, flags=re.MULTILINE)[1::2]
    (found,) = [
        p.removeprefix(language) for p in pieces if p.startswith(language) and containing in p
    ]
    return str(found)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a table as the README's first pipeline has it."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "pipelines").mkdir()
    site = (ROOT / "conf/local.yaml").read_text().replace("use: dask", "use: local")
    (tmp_path / "conf/local.yaml").write_text(site)
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "flight_id": np.arange(600),
            "distance": rng.normal(1_000, 300, 600),
            "carrier": rng.choice(["AA", "BB", "CC"], 600),
        }
    )
    table["arr_delay"] = table["distance"] / 10 - 85 + rng.normal(0, 20, 600)
    table.loc[::20, "arr_delay"] = np.nan
    (tmp_path / "data/flights").mkdir(parents=True)
    table.to_parquet(tmp_path / "data/flights/part.parquet")
    return tmp_path


@pytest.fixture
def check(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    command_here: Callable[..., tuple[int, str, str]],
) -> Callable[[str], str]:
    """What ``ddlflow check`` of a pipeline says, where all is well."""
    monkeypatch.chdir(project)

    def run(pipeline: str) -> str:
        status, out, err = command_here("check", pipeline)
        assert status == 0, out + err
        return out

    return run


def test_the_first_pipeline_is_right(project: Path, check: Callable[[str], str]) -> None:
    (project / "pipelines/flights.yaml").write_text(block("yaml", "name: flights"))
    said = check("flights")
    assert "All is well" in said
    assert "2 numeric and 1 categorical" in said
    assert "No features, as label late is computed from the same columns: arr_delay" in said


def test_a_model_of_ones_own_is_found_and_tried(project: Path, check: Callable[[str], str]) -> None:
    folder = project / "pipelines/wide"
    folder.mkdir()
    pipeline = block("yaml", "name: flights").replace("name: flights", "name: wide")
    pipeline = re.sub(r"model: .*", 'model: {use: "net:Wide", width: 512}', pipeline)
    pipeline = pipeline.replace("exclude: [flight_id]", "exclude: [flight_id, carrier]")
    (folder / "pipeline.yaml").write_text(pipeline)
    (folder / "net.py").write_text(block("python", "class Wide"))
    assert "net:Wide: tried" in check("wide")


def test_every_command_of_the_table_is_there(
    command_here: Callable[..., tuple[int, str, str]],
) -> None:
    _, said, _ = command_here("--help")
    commands = set(re.findall(r"^\| `ddlflow ([\w-]+)", README, re.MULTILINE))
    shown = set(re.findall(r"^  ([\w-]+) ", said.partition("Commands:")[2], re.MULTILINE))
    assert commands == shown


def test_the_annotated_tree_names_what_is_there() -> None:
    tree = block("", "WHAT to do: quickstart")
    rooms = re.findall(r"^  (\w+(?:/|\.py)) ", tree, re.MULTILINE)
    assert len(rooms) > 8
    for room in rooms:
        assert (ROOT / "ddlflow" / room).exists(), room
    named = re.findall(r"[\w-]+", tree.partition("WHAT to do: ")[2].partition("\n")[0])
    assert set(named) == {path.stem for path in (ROOT / "pipelines").glob("*.yaml")}
