"""Pipelines and sites that a script gives: by name, by path, or as nested values of Python."""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ddlflow.errors import SpecError

Given = str | os.PathLike[str] | Mapping[str, Any]
Changes = Mapping[str, Any] | Sequence[str]


def called(given: Given) -> str:
    """What a pipeline or a site is called in a list of commands: its name, or its path."""
    return str(given.get("name", "given")) if isinstance(given, Mapping) else os.fspath(given)


def as_changes(changes: Changes) -> list[str]:
    """``{"train.epochs": 3}`` -> ``["train.epochs=3"]``."""
    if isinstance(changes, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in changes.items()]  # JSON is YAML
    return list(changes)


def as_source(source: Any) -> Any:
    """A source as a file has it: a place as text, a table of Spark's or Dask's as its keys."""
    if isinstance(source, Mapping):
        return plain(source)
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if type(source).__module__.startswith("pyspark."):
        raise SpecError(
            "source is a DataFrame of Spark. Name it (frame.createOrReplaceTempView('events')), "
            "and give source={'spark': 'events'}, best with the 'key' that tells its rows apart."
        )
    raise SpecError(
        f"source is a {type(source).__name__}. Give a file, glob, folder or URL, a pandas, Polars "
        "or Arrow table, or {'spark': ...} and {'dask': ...}."
    )


def plain(value: Any) -> Any:
    """Nested values as a YAML file has them: dicts and lists, texts and Python's own numbers."""
    if isinstance(value, Mapping):
        return {_key(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    return copy.deepcopy(value)


def _key(key: Any) -> str:
    """A key as YAML writes it: the class true of {True: 5} is no text 'True'."""
    named = plain(key)
    return str(named).lower() if isinstance(named, bool) else str(named)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings -> dotted names, as ``--set`` takes them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif value is not None:
            found[name] = value
    return found
