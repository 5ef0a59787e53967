"""pydantic's errors -> sentences: what was given, what is allowed, what to do next."""

import difflib
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

_EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_type": "text",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "finite_number": "a finite number",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'epochs'?`` with a leading space, or nothing where no name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def explain(
    model: type[BaseModel], error: ValidationError, values: dict[str, Any]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yields (path of the value, sentence) for each wrong value; a union's errors become one."""
    grouped: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for detail in error.errors():
        grouped.setdefault(_path(detail, values), []).append(detail)
    for path, details in grouped.items():
        yield path, _sentence(model, path, details)


def _path(detail: ErrorDetails, values: Any) -> tuple[str | int, ...]:
    """The error's location less the union tags that pydantic puts into it."""
    path: list[str | int] = []
    here = values
    last = len(detail["loc"]) - 1
    for position, part in enumerate(detail["loc"]):
        inside = (isinstance(here, dict) and part in here) or (
            isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)
        )
        if inside:
            here = here[part]
            path.append(part)
        elif detail["type"] == "missing" and position == last:
            path.append(part)
    return tuple(path)


def _sentence(
    model: type[BaseModel], path: tuple[str | int, ...], details: list[ErrorDetails]
) -> str:
    name = ".".join(str(part) for part in path)
    first = details[0]
    if first["type"] == "missing":
        return f"{name} is missing. Set it."
    if first["type"] == "extra_forbidden":
        section = _section(model, path[:-1])
        known = _keys(section)
        listed = f" Known here: {', '.join(sorted(known))}." if known else ""
        return f"{name} is no known key.{nearest(str(path[-1]), known)}{listed}"
    if first["type"] in {"value_error", "assertion_error"}:
        text = first["msg"].removeprefix("Value error, ")
        return f"{name}: {text}." if name else f"{text}."
    given = first["input"]
    expected = " or ".join(dict.fromkeys(_expected(detail) for detail in details))
    hint = ""
    if first["type"] == "union_tag_invalid" and isinstance(given, dict):
        name, given = f"{name}.use", given.get("use")
        hint = nearest(str(given), _tags(first))
    elif first["type"] == "union_tag_not_found":
        return f"{name} is {given!r:.80}; expected keys and values with `use: NAME` among them."
    elif isinstance(given, str):
        hint = nearest(given, _choices(details))
    return f"{name} is {given!r:.80}; expected {expected}.{hint}{_advice(model, path, name)}"


def _expected(detail: ErrorDetails) -> str:  # noqa: PLR0911 - one line a kind of error
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    bounds = {
        "greater_than": ">",
        "greater_than_equal": ">=",
        "less_than": "<",
        "less_than_equal": "<=",
    }
    if kind in bounds:
        limit = context[{">": "gt", ">=": "ge", "<": "lt", "<=": "le"}[bounds[kind]]]
        number = (
            "a whole number"
            if isinstance(limit, int) and isinstance(detail["input"], int)
            else "a number"
        )
        if number == "a whole number" and kind == "greater_than":
            return f"{number} >= {limit + 1}"
        return f"{number} {bounds[kind]} {limit}"
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    if kind == "union_tag_invalid":
        tags = [tag.replace("user", "module:Class") for tag in _tags(detail)]
        return ", ".join(tags[:-1]) + f" or {tags[-1]}" if len(tags) > 1 else tags[0]
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    if kind in {"too_short", "string_too_short"}:
        return f"at least {context['min_length']}"
    if kind in {"too_long", "string_too_long"}:
        return f"at most {context['max_length']}"
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _tags(detail: ErrorDetails) -> list[str]:
    tags = str(detail.get("ctx", {}).get("expected_tags", ""))
    return [tag.strip().strip("'") for tag in tags.split(",")]


def _choices(details: list[ErrorDetails]) -> list[str]:
    texts = [
        str(d.get("ctx", {}).get("expected", "")) for d in details if d["type"] == "literal_error"
    ]
    return [choice.strip(" '") for text in texts for choice in text.replace(" or ", ",").split(",")]


def _advice(model: type[BaseModel], path: tuple[str | int, ...], name: str) -> str:
    """`` Set train.epochs, or leave it out for 10.`` where a default exists."""
    section = _section(model, path[:-1])
    field = section.model_fields.get(str(path[-1])) if section and path else None
    if field is None or field.is_required() or field.default in (PydanticUndefined, None):
        return f" Set {name}."
    if isinstance(field.default, BaseModel):
        return f" Set {name}, or leave it out."
    return f" Set {name}, or leave it out for {field.default}."


def _keys(section: type[BaseModel] | None) -> list[str]:
    fields: dict[str, FieldInfo] = section.model_fields if section else {}
    return [field.alias or name for name, field in fields.items()]


def _section(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The section class at ``path``, or None where a union leaves it open."""
    here: type[BaseModel] | None = model
    for part in path:
        if here is None:
            return None
        field = here.model_fields.get(str(part))
        here = _only_section(field.annotation) if field else None
    return here


def _only_section(annotation: Any) -> type[BaseModel] | None:
    """The one section class inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if (
        get_origin(annotation) in {Union, UnionType, Annotated}
        and get_origin(annotation) is not Literal
    ):
        found = [s for s in map(_only_section, get_args(annotation)) if s is not None]
        return found[0] if len(found) == 1 else None
    return None
