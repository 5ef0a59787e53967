"""pydantic's errors -> sentences: what was given, what is allowed, what to do next."""

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from ddlflow.spec.pipeline import NAME, REGISTERED, USER_CODE

Path_ = tuple[str | int, ...]

_SECTION = "keys and values"
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
    "dict_type": _SECTION,
    "model_type": _SECTION,
    "model_attributes_type": _SECTION,
    "finite_number": "a finite number",
}
_PATTERNS = {
    NAME: "a name of letters, digits, '_', '.' and '-' that begins with a letter or digit",
    USER_CODE: "module:name",
    REGISTERED: "a name without '/' and ':'",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'epochs'?`` with a leading space, or nothing where no name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def explain(
    model: type[BaseModel],
    error: ValidationError,
    values: dict[str, Any],
    elsewhere: Mapping[str, str],
) -> Iterator[tuple[Path_, str]]:
    """Yields (path of the value, sentence) for each wrong value; a union's errors become one.

    Args:
        model: that the values are of.
        error: that reading them raised.
        values: as the file has them.
        elsewhere: keys of the other file, and what that file is called.
    """
    grouped: dict[Path_, list[ErrorDetails]] = {}
    for detail in error.errors():
        grouped.setdefault(_path(detail, values), []).append(detail)
    for path, details in grouped.items():
        is_choice = all(d["type"] in {"literal_error", "string_type"} for d in details)
        if is_choice and any(len(inner) > len(path) == _shared(inner, path) for inner in grouped):
            continue  # a union's other members; the section among them says what is wrong in it
        owner = elsewhere.get(str(path[0])) if path else None
        if details[0]["type"] == "extra_forbidden" and owner:
            yield path, f"{path[0]} is no key of this file; it belongs in {owner}."
            continue
        in_use = details[0]["type"].startswith("union_tag") and isinstance(
            details[0]["input"], dict
        )
        yield (*path, "use") if in_use else path, _sentence(model, path, details, values)


def _shared(one: Path_, other: Path_) -> int:
    """How many parts two paths begin with alike."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in alike)


def dotted(path: Path_) -> str:
    """``("model", "hidden", 0)`` -> ``model.hidden[0]``."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")


def _path(detail: ErrorDetails, values: Any) -> Path_:
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
    model: type[BaseModel], path: Path_, details: list[ErrorDetails], values: dict[str, Any]
) -> str:
    name, first = dotted(path), details[0]
    kind, given = first["type"], first["input"]
    section = _section(model, path[:-1], values)
    field = _field(section, path)
    uses = _uses(field.annotation) if field else []
    if kind == "extra_forbidden":
        known = _keys(section)
        listed = f" Known here: {', '.join(sorted(known))}." if known else ""
        return f"{name} is no known key.{nearest(str(path[-1]), known)}{listed}"
    if kind in {"value_error", "assertion_error"}:
        text = first["msg"].removeprefix("Value error, ")
        return f"{name}: {text}." if name else f"{text}."
    if kind == "missing":
        such = f", such as {{use: {uses[0]}}}" if uses else ""
        return f"{name} is missing. Set it{such}."
    if kind in {"union_tag_invalid", "union_tag_not_found"} or (_is_section(details) and uses):
        return _use_sentence(name, given, uses, details)
    expected = _or([_expected(detail) for detail in details])
    if _is_section(details) and field is not None:
        expected += f": {', '.join(_keys(_chosen(field.annotation, given)))}"
    words = "is empty" if given is None else f"is {given!r:.80}"
    hint = nearest(given, _choices(details)) if isinstance(given, str) else ""
    if kind == "string_type" and given is not None and not isinstance(given, dict | list):
        hint = " Put it in quotes if it is a name."
    advice = "" if isinstance(path[-1], int) else _advice(field, name)
    return f"{name} {words}; expected {expected}.{hint}{advice}"


def _use_sentence(name: str, given: Any, uses: list[str], details: list[ErrorDetails]) -> str:
    """For sections whose ``use`` says which they are."""
    if not isinstance(given, dict):
        choices = [choice for choice in _choices(details) if choice]
        shown = given if given in uses else uses[0]
        expected = _or([*choices, f"{{use: {shown}}} and its keys"])
        words = "is empty" if given is None else f"is {given!r:.80}"
        hint = nearest(given, choices or uses) if isinstance(given, str) and given != shown else ""
        return f"{name} {words}; expected {expected}.{hint}"
    use = given.get("use")
    words = "is missing" if use is None else f"is {use!r:.80}"
    return f"{name}.use {words}; expected {_or(uses)}.{nearest(str(use), uses)}"


def _is_section(details: list[ErrorDetails]) -> bool:
    return any(_EXPECTED.get(detail["type"]) == _SECTION for detail in details)


def _expected(detail: ErrorDetails) -> str:  # noqa: PLR0911 - one line a kind of error
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    bounds = {
        "greater_than": (">", "gt"),
        "greater_than_equal": (">=", "ge"),
        "less_than": ("<", "lt"),
        "less_than_equal": ("<=", "le"),
    }
    if kind in bounds:
        sign, key = bounds[kind]
        limit = context[key]
        if isinstance(limit, int) and isinstance(detail["input"], int):
            whole = f">= {limit + 1}" if kind == "greater_than" else f"{sign} {limit}"
            return f"a whole number {whole}"
        return f"a number {sign} {limit:g}"
    if kind == "literal_error":
        return _or(_choices([detail]))
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(context["pattern"], f"text that matches {context['pattern']}")
    if kind in {"too_short", "string_too_short", "too_long", "string_too_long"}:
        bound = "at least" if "short" in kind else "at most"
        number = context["min_length" if "short" in kind else "max_length"]
        what, unit = ("text", "character") if "string" in kind else ("a list", "value")
        return f"{what} of {bound} {number} {unit}{'s' if number > 1 else ''}"
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _or(words: list[str]) -> str:
    """``a, b or c``, each once."""
    once = list(dict.fromkeys(words))
    return " or ".join([", ".join(once[:-1]), once[-1]] if len(once) > 1 else once)


def _choices(details: list[ErrorDetails]) -> list[str]:
    texts = [
        str(d.get("ctx", {}).get("expected", "")) for d in details if d["type"] == "literal_error"
    ]
    return [choice.strip(" '") for text in texts for choice in text.replace(" or ", ",").split(",")]


def _advice(field: FieldInfo | None, name: str) -> str:
    """`` Set train.epochs, or leave it out for 10.`` where a default exists."""
    if field is None or field.is_required() or field.default in (PydanticUndefined, None):
        return f" Set {name}."
    if isinstance(field.default, BaseModel) or field.default in ([], ""):
        return f" Set {name}, or leave it out."
    plain = not isinstance(field.default, str) or field.default.isidentifier()
    return f" Set {name}, or leave it out for {field.default if plain else repr(field.default)}."


def _keys(section: type[BaseModel] | None) -> list[str]:
    fields: dict[str, FieldInfo] = section.model_fields if section else {}
    return [field.alias or name for name, field in fields.items()]


def _field(section: type[BaseModel] | None, path: Path_) -> FieldInfo | None:
    fields = section.model_fields if section and path else {}
    return next((f for n, f in fields.items() if str(path[-1]) == (f.alias or n)), None)


def _section(model: type[BaseModel], path: Path_, values: Any) -> type[BaseModel] | None:
    """The section class at ``path``: of several, the one that ``use`` names; None if none is."""
    here: type[BaseModel] | None = model
    for position, part in enumerate(path):
        values = values.get(part) if isinstance(values, dict) else None
        field = _field(here, path[: position + 1])
        here = _chosen(field.annotation, values) if field else None
    return here


def _chosen(annotation: Any, value: Any) -> type[BaseModel] | None:
    """The one section class inside an annotation that the value can be of."""
    found = _members(annotation)
    if len(found) > 1 and isinstance(value, dict):
        use = value.get("use")
        found = [member for member in found if use in _names_of(member)] or [
            member for member in found if isinstance(use, str) and ":" in use and _is_user(member)
        ]
        if use is None:  # {spark: ...} is told by its first key
            found = [m for m in _members(annotation) if next(iter(m.model_fields)) in value]
    return found[0] if len(found) == 1 else None


def _members(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Literal:
        return []
    return [member for inner in get_args(annotation) for member in _members(inner)]


def _uses(annotation: Any) -> list[str]:
    """What ``use`` may be in a section of this annotation; empty where there is no choice."""
    named = [member for member in _members(annotation) if _is_user(member) or _names_of(member)]
    return [use for member in named for use in _names_of(member) or ["module:name"]]


def _names_of(member: type[BaseModel]) -> list[str]:
    """The names that ``use`` has to be one of; none where it has a default (engine, schedule)."""
    field = member.model_fields.get("use")
    if field is None or not field.is_required() or get_origin(field.annotation) is not Literal:
        return []
    return [str(name) for name in get_args(field.annotation)]


def _is_user(member: type[BaseModel]) -> bool:
    return member.model_config.get("extra") == "allow"


def dotted_names(model: type[BaseModel]) -> list[str]:
    """Every name that can be set in a file, those of all choices of a section included."""
    found: dict[str, None] = {}
    for name, field in model.model_fields.items():
        key = field.alias or name
        found[key] = None
        for member in _members(field.annotation):
            found |= dict.fromkeys(f"{key}.{inner}" for inner in dotted_names(member))
    return list(found)
