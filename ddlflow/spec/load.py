"""YAML files and ``--set`` values -> a checked pipeline and site, every error at once.

Each error names the file and line (or the ``--set``), what was given, what is allowed and, for a
name, the nearest known one. Nothing is imported here but user code that the pipeline names, and
that only when `bind` is asked for.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ddlflow.errors import SpecError
from ddlflow.spec.explain import explain, nearest
from ddlflow.spec.pipeline import Pipeline
from ddlflow.spec.site import Site

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Plan:
    """What a command works from: both specs, and where the pipeline's own modules lie."""

    pipeline: Pipeline
    site: Site
    pipeline_path: Path
    site_path: Path
    code_folder: Path  # modules that the pipeline names are looked up here first


@dataclass
class _Document:
    """A parsed file: its values, and the place of each for messages."""

    name: str
    values: dict[str, Any]
    places: dict[Path_, str]  # path of a value -> "file:line" or "--set key=value"

    def place(self, path: Path_) -> str:
        """The place of the value at ``path``, or of the nearest value around it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return self.name


def project_folder() -> Path:
    """The folder that names are looked up in: the current one, or the template of the package."""
    here = Path.cwd()
    if (here / "pipelines").is_dir() or (here / "conf").is_dir():
        return here
    return template_folder()


def template_folder() -> Path:
    """What ``ddlflow init`` lays out: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "template"
    return inside if inside.is_dir() else package.parent


def load(pipeline: str, on: str = "local", changes: Sequence[str] = ()) -> Plan:
    """Reads a pipeline and a site by name or path, with ``KEY=VALUE`` changes on top.

    Raises:
        SpecError: naming every error of both files, a line each.
    """
    pipeline_path = find(pipeline, "pipelines", "pipeline")
    site_path = find(on, "conf", "site")
    specs = _checked({Pipeline: _read(pipeline_path), Site: _read(site_path)}, changes)
    return Plan(specs[Pipeline], specs[Site], pipeline_path, site_path, pipeline_path.parent)


def load_site(on: str = "local", changes: Sequence[str] = ()) -> Site:
    """Reads a site alone, as `load` does.

    Raises:
        SpecError: naming every error, a line each.
    """
    site: Site = _checked({Site: _read(find(on, "conf", "site"))}, changes)[Site]
    return site


def _checked(
    documents: dict[type[BaseModel], _Document], changes: Sequence[str]
) -> dict[type[BaseModel], Any]:
    errors = list(_apply(changes, documents))
    specs: dict[type[BaseModel], Any] = {}
    for model, document in documents.items():
        try:
            specs[model] = model.model_validate(document.values)
        except ValidationError as error:
            errors += [
                f"{document.place(path)}: {text}"
                for path, text in explain(model, error, document.values)
            ]
    if errors:
        raise SpecError("\n".join(errors))
    return specs


def find(name: str, folder: str, what: str) -> Path:
    """The file of a pipeline or site given by name (looked up in ``folder``) or path."""
    inner = f"{what}.yaml"
    given = Path(name)
    if given.suffix in {".yaml", ".yml"} or given.is_absolute() or os.sep in name.rstrip(os.sep):
        candidates = [given, given / inner]
    else:
        root = project_folder() / folder
        candidates = [root / f"{name}.yaml", root / name / inner, given / inner]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = names(folder, what)
    raise SpecError(
        f"no {what} {name!r}: {candidates[0]} does not exist.{nearest(name, known)} "
        f"Known here: {', '.join(known) or 'none'}. `ddlflow init DIR` lays out a project."
    )


def names(folder: str, what: str) -> list[str]:
    """The pipelines or sites that can be given by name."""
    root = project_folder() / folder
    files = [path.stem for path in root.glob("*.yaml")]
    return sorted(files + [path.parent.name for path in root.glob(f"*/{what}.yaml")])


def _read(path: Path) -> _Document:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path} is no UTF-8 text; a YAML file is expected.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise SpecError(f"{path}{line}: this is no valid YAML: {problem}.") from None
    if not isinstance(values, dict):
        raise SpecError(f"{path}: expected keys and values (`name: ...`), found {values!r:.60}.")
    places: dict[Path_, str] = {(): str(path)}
    errors = list(_note_places(node, (), str(path), places))
    if errors:
        raise SpecError("\n".join(errors))
    return _Document(str(path), values, places)


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


def dotted(path: Path_) -> str:
    """``("train", "epochs")`` -> ``train.epochs``."""
    return ".".join(str(part) for part in path)


def _apply(changes: Sequence[str], documents: Mapping[type[BaseModel], _Document]) -> Iterator[str]:
    """Puts ``KEY=VALUE`` changes into the documents; yields what is wrong with them."""
    keys = {
        field.alias or name: model
        for model in documents
        for name, field in model.model_fields.items()
    }
    for change in changes:
        key, equals, text = change.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            yield f"--set {change}: expected KEY=VALUE, such as train.epochs=3."
            continue
        if parts[0] not in keys:
            yield f"--set {change}: there is no key {parts[0]!r}.{nearest(parts[0], keys)}"
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            yield f"--set {change}: {text!r} is no valid YAML value."
            continue
        document = documents[keys[parts[0]]]
        error = _put(document.values, parts, value)
        if error:
            yield f"--set {change}: {error}"
        document.places[tuple(parts)] = f"--set {change}"


def _put(values: dict[str, Any], parts: list[str], value: Any) -> str | None:
    """Sets ``values[parts[0]][parts[1]]... = value``; returns what stands in the way."""
    here: Any = values
    for position, part in enumerate(parts[:-1]):
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
        if not isinstance(here, dict):
            name = dotted(tuple(parts[: position + 1]))
            return f"{name} is {here!r}, it has no {parts[position + 1]}."
    here[parts[-1]] = value
    return None
