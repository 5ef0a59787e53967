"""YAML files and ``--set`` values -> a checked pipeline and site, every error at once.

Each error names the file and line (or the ``--set``), what was given, what is allowed and, for a
name, the nearest known one. Nothing is imported and nothing written here.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ddlflow.errors import SpecError
from ddlflow.redact import redacted_change, revealed, revealed_values
from ddlflow.spec.explain import Path_, dotted, explain, nearest
from ddlflow.spec.given import Given, plain
from ddlflow.spec.pipeline import Pipeline
from ddlflow.spec.site import Site

Places = Mapping[Path_, str]  # path of a value -> "file:line" or "--set key=value"
CALLED: dict[type[BaseModel], str] = {Pipeline: "the pipeline file", Site: "the site file"}


@dataclass(frozen=True)
class Request:
    """What is asked of a command: both specs, and where the pipeline's own modules lie."""

    pipeline: Pipeline
    site: Site
    pipeline_path: Path
    site_path: Path
    code_folder: Path  # modules that the pipeline names are looked up here first
    places: Places = field(default_factory=dict)

    def place(self, key: str) -> str:
        """Where a dotted key, or the nearest around it, is set: ``pipelines/higgs.yaml:14``."""
        return _place(self.places, tuple(parts_of(key)))


@dataclass
class _Document:
    """A parsed file: its values, and the place of each for messages."""

    values: dict[str, Any]
    places: dict[Path_, str]


class _Yaml(yaml.SafeLoader):
    """YAML 1.1 without its trap for numbers: 1e-3 is one here too, not only 1.0e-3."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _place(places: Places, path: Path_) -> str:
    """The place of the value at ``path``: of a ``--set`` inside it, or of what is around it."""
    for end in range(len(path), -1, -1):
        part = path[:end]
        if end < len(path) and part in places:
            return places[part]
        inside = [p for p, place in places.items() if p[:end] == part and place.startswith("--set")]
        if end > 1 and inside:
            return places[inside[0]]
        if part in places:
            return places[part]
    return dotted(path)


def shown(path: Path) -> str:
    """A path as a user would type it: relative where it lies under the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def project_folder(room: str) -> Path:
    """Where ``room`` (flows, pipelines, conf) is: the current folder, or the package's template."""
    here = Path.cwd()
    return here if (here / room).is_dir() else template_folder()


def template_folder() -> Path:
    """What ``ddlflow init`` lays out: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "template"
    return inside if inside.is_dir() else package.parent


def load(pipeline: Given, on: Given = "local", changes: Sequence[str] = ()) -> Request:
    """Reads a pipeline and a site by name or path or as values, with ``KEY=VALUE`` changes on top.

    Raises:
        SpecError: naming every error of both files, a line each.
    """
    pipeline_path, pipeline_document = _given(pipeline, "pipelines", "pipeline")
    site_path, site_document = _given(on, "conf", "site")
    documents: dict[type[BaseModel], _Document] = {
        Pipeline: pipeline_document,
        Site: site_document,
    }
    specs = _checked(documents, changes)
    places = {path: place for d in documents.values() for path, place in d.places.items() if path}
    return Request(
        pipeline=specs[Pipeline],
        site=specs[Site],
        pipeline_path=pipeline_path,
        site_path=site_path,
        code_folder=pipeline_path.parent,
        places=places | {(): shown(pipeline_path)},
    )


def load_site(on: Given = "local", changes: Sequence[str] = ()) -> Site:
    """Reads a site alone, as `load` does.

    Raises:
        SpecError: naming every error, a line each.
    """
    site: Site = _checked({Site: _given(on, "conf", "site")[1]}, changes)[Site]
    return site


def request_of_site(on: Given = "local", changes: Sequence[str] = ()) -> Request:
    """A request without a pipeline, for commands that only need a site."""
    site, path = load_site(on, changes), Path.cwd() / "no pipeline"
    return Request(None, site, path, path, path.parent)  # type: ignore[arg-type] # no stage reads it


def _given(given: Given, folder: str, what: str) -> tuple[Path, _Document]:
    """The path and the content of a file; of values, a path in the current folder that names them.

    Code that values name is looked up from that path: in the current folder.
    """
    if not isinstance(given, Mapping):
        path = find(os.fspath(given), folder, what)
        return path, _read(path)
    name = f"the {what} given"
    return Path.cwd() / name, _Document(plain(revealed_values(given)), {(): name})


def _checked(
    documents: dict[type[BaseModel], _Document], changes: Sequence[str]
) -> dict[type[BaseModel], Any]:
    errors = list(_apply(changes, documents))
    specs: dict[type[BaseModel], Any] = {}
    for model, document in documents.items():
        others = {key: CALLED[m] for m in CALLED if m is not model for key in keys(m)}
        try:
            specs[model] = model.model_validate(document.values)
        except ValidationError as error:
            errors += [
                f"{_place(document.places, path)}: {text}"
                for path, text in explain(model, error, document.values, others)
            ]
    if errors:
        raise SpecError("\n".join(errors))
    return specs


def find(name: str, folder: str, what: str) -> Path:
    """The file of a pipeline or site given by name (looked up in ``folder``) or path."""
    inner = f"{what}.yaml"
    given = Path(name).expanduser()
    if given.suffix in {".yaml", ".yml"} or given.is_absolute() or os.sep in name.rstrip(os.sep):
        candidates = [given, given / inner]
    else:
        root = project_folder(folder) / folder
        candidates = [root / f"{name}.yaml", root / name / inner, given / inner]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = names(folder, what)
    other = " Name yours by --on (in Python: on=)." if what == "site" and not known else ""
    raise SpecError(
        f"There is no {what} {name!r}: {shown(candidates[0])} does not exist."
        f"{nearest(name, known)} Known here: {', '.join(known) or 'none'}.{other}"
    )


def names(folder: str, what: str) -> list[str]:
    """The pipelines or sites that can be given by name."""
    root = project_folder(folder) / folder
    files = [path.stem for path in root.glob("*.yaml")]
    return sorted(files + [path.parent.name for path in root.glob(f"*/{what}.yaml")])


def _read(path: Path) -> _Document:
    file = shown(path)
    try:
        loader = _Yaml(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        values = loader.construct_document(node) if node is not None else None
    except OSError as error:
        raise SpecError(f"{file} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise SpecError(f"{file} is no UTF-8 text; a YAML file is expected.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise SpecError(f"{file}{line}: this is no valid YAML: {problem}.") from None
    if values is None:
        raise SpecError(f"{file} is empty; expected keys and values, such as `name: first`.")
    if not isinstance(values, dict):
        raise SpecError(f"{file}: expected keys and values (`name: ...`), found {values!r:.60}.")
    places: dict[Path_, str] = {(): file}
    errors = list(_note_places(node, (), file, places))
    if errors:
        raise SpecError("\n".join(errors))
    return _Document(values, places)


def _note_places(
    node: yaml.Node | None, path: Path_, file: str, places: dict[Path_, str]
) -> Iterator[str]:
    """Fills ``places``; yields an error for a key that is given twice (YAML keeps the last)."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            place = f"{file}:{key.start_mark.line + 1}"
            if inner in places:
                yield f"{place}: {dotted(inner)} is given twice, first at {places[inner]}."
            places[inner] = place
            yield from _note_places(value, inner, file, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[(*path, index)] = f"{file}:{value.start_mark.line + 1}"
            yield from _note_places(value, (*path, index), file, places)


def keys(model: type[BaseModel]) -> list[str]:
    """The top keys of a file."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _apply(changes: Sequence[str], documents: Mapping[type[BaseModel], _Document]) -> Iterator[str]:
    """Puts ``KEY=VALUE`` changes into the documents; yields what is wrong with them."""
    owners = {key: model for model in documents for key in keys(model)}
    for given in changes:
        key, equals, text = revealed(given).partition("=")
        change = redacted_change(given)  # as a message may show it
        parts = parts_of(key.strip())
        if not equals or not all(parts):
            yield f"--set {change}: expected KEY=VALUE, such as train.epochs=3."
            continue
        if parts[0] not in owners:
            known = ", ".join(sorted(owners))
            near = nearest(parts[0], owners) or f" Known here: {known}."
            yield f"--set {change}: there is no key {parts[0]!r}.{near}"
            continue
        try:
            value = _Yaml(text).get_single_data()
        except yaml.YAMLError:
            yield f"--set {change}: {text!r} is no valid YAML value."
            continue
        document = documents[owners[parts[0]]]
        error = put(document.values, parts, value)
        if error:
            yield f"--set {change}: {error}"
        for replaced in [path for path in document.places if path[: len(parts)] == tuple(parts)]:
            del document.places[replaced]
        document.places[tuple(parts)] = f"--set {change}"


def parts_of(key: str) -> list[str]:
    """``model.hidden`` -> model, hidden. What follows search.space is one name, dotted itself."""
    parts = key.split(".")
    if parts[:2] == ["search", "space"] and len(parts) > 2:
        return [*parts[:2], ".".join(parts[2:])]
    return parts


def put(values: dict[str, Any], parts: list[str], value: Any) -> str | None:
    """Sets ``values[parts[0]][parts[1]]... = value``; returns what stands in the way."""
    here: Any = values
    for position, part in enumerate(parts[:-1]):
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
        if not isinstance(here, dict):
            name = dotted(tuple(parts[: position + 1]))
            return f"{name} is {here!r:.60}, so it has no {parts[position + 1]}. Set {name} whole."
    here[parts[-1]] = value
    return None
