"""What docs/architecture.md and the README's tree say of the folders is so."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ddlflow"
PAGE = (ROOT / "docs/architecture.md").read_text()
README = (ROOT / "README.md").read_text()


def tree() -> str:
    """The README's annotated tree."""
    (found,) = re.findall(r"^## Where is what\n\n```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return str(found)


def folders_of(parent: Path) -> set[str]:
    """The folders that hold Python files; what is left of a removed one is no folder."""
    return {
        path.name
        for path in parent.iterdir()
        if path.is_dir() and not path.name.startswith((".", "_")) and any(path.rglob("*.py"))
    }


def test_the_readmes_tree_has_every_room_and_no_other() -> None:
    shown = set(re.findall(r"^  ([a-z_]+)/ ", tree(), re.MULTILINE))
    assert shown == folders_of(PACKAGE) - {"template"}


def test_what_the_readmes_tree_names_is_there() -> None:
    room = ROOT
    named = 0
    for line in tree().splitlines():
        indent = len(line) - len(line.lstrip())
        names, _, _ = line.strip().partition("  ")
        first = names.split(",")[0].split()[0]
        parent = ROOT if indent == 0 else PACKAGE if indent == 2 else room
        for name in re.findall(r"[a-z_]+(?:\.py|/)", names):
            assert (parent / name).exists(), f"{parent / name} is not there"
            named += 1
        if indent == 2:
            room = PACKAGE / first.rstrip("/")
    assert named > 20


def test_the_files_that_the_page_names_are_there() -> None:
    names = set(re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", PAGE))
    assert len(names) > 30
    missing = [n for n in names if not (PACKAGE / n).is_file() and not (ROOT / n).is_file()]
    assert missing == []


def test_the_page_is_one_page_with_one_picture() -> None:
    assert re.findall(r"!\[[^]]*\]\(([^)]*)\)", PAGE) == ["architecture.png"]
    assert (ROOT / "docs/architecture.png").stat().st_size > 50_000
    assert len(PAGE.split()) < 900


def test_the_picture_has_the_rooms() -> None:
    drawn = (ROOT / "docs/draw_architecture.py").read_text()
    for name in folders_of(PACKAGE) - {"template"}:
        assert f'"{name}/"' in drawn, f"{name}/ is not in the picture"
    for name in re.findall(r"([a-z_]+/[a-z_/]+\.py)", drawn.split("BATCH = [")[1].split("]\n")[0]):
        assert (PACKAGE / name).is_file(), name


@pytest.mark.parametrize("room", sorted(folders_of(PACKAGE) - {"template"}))
def test_a_room_says_what_is_in_it(room: str) -> None:
    """A reader of a folder meets its purpose first."""
    if room in {"cli", "train"}:  # imported at every start, and where ranks start: kept empty
        return
    text = (PACKAGE / room / "__init__.py").read_text()
    assert text.startswith('"""'), f"ddlflow/{room}/__init__.py has no docstring"
