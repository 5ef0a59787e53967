"""What a look at one thing says, and where in the files an error was made."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import Source
from ddlflow.data.sources.trained_types import Types
from ddlflow.errors import DataError, DdlflowError
from ddlflow.redact import redacted_text
from ddlflow.spec.load import Request
from ddlflow.spec.pipeline import Data

Level = Literal["ok", "note", "error"]
_KEY = re.compile(
    r"(?:data|cv|model|train|report|infer|search|sweep|engine|tracking)\.[a-z_.]*[a-z_]"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: the subject: source, label, storage, ...
        level: ok, note (the run works; read it) or error (it would not).
        text: a sentence: what was found and, unless all is well, what to do; without secrets.
    """

    what: str
    level: Level
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", redacted_text(self.text))


def placed(
    request: Request, what: str, key: str, look: Callable[[], Iterator[Finding]]
) -> list[Finding]:
    """The findings of one look, and as one what it raises; an error gets its file and line.

    Args:
        request: knows the lines.
        what: is looked at.
        key: what it is about in the files, unless its text begins with another.
        look: yields the findings.
    """
    found: list[Finding] = []
    try:
        found.extend(look())
    except DdlflowError as error:
        found.append(Finding(what, "error", str(error)))

    def with_place(finding: Finding) -> Finding:
        named = _KEY.match(finding.text)
        place = request.place(named[0] if named else key)
        if finding.level != "error" or place == key or place in finding.text:
            return finding
        return replace(finding, text=f"{place}: {finding.text}")

    return [with_place(finding) for finding in found]


def _data_root(request: Request) -> Path:
    return Path(request.site.data_root).expanduser().absolute()


def open_named(
    request: Request, location: str, key: str, spec: Data | None = None, known: Types | None = None
) -> Source:
    """A source that a key names, read by a data section; its errors speak of that key."""
    try:
        return open_source(location, spec or request.pipeline.data, _data_root(request), known)
    except DataError as error:
        raise DataError(str(error).replace("data.source", key)) from error


def counted(number: int, noun: str) -> str:
    """``1 file``, ``2,000 files``, ``3 classes``."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"
