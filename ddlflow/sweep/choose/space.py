"""The settings of a search: every point of a grid, single points of a space, what a point means.

A point is ``{dotted name: value}``. A setting whose condition does not hold is not in the point:
the pipeline's own value stands.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from ddlflow.errors import SpecError
from ddlflow.spec.explain import Path_, dotted, dotted_names, explain, nearest
from ddlflow.spec.load import put
from ddlflow.spec.pipeline import Pipeline, Search, SearchRange
from ddlflow.spec.search import allowed, same
from ddlflow.train.tasks.measures import measures_of

Point = dict[str, Any]  # open: a setting may be any of the pipeline's, with any value it takes
Space = Mapping[str, SearchRange]
MOST_POINTS = 10_000  # of a grid: each is checked before the start
# Settings of `train` that no search may vary, and why.
FIXED = {
    "train.objective": "scores of different losses cannot be compared",
    "train.checkpoint_every_s": "it never changes a score",
    "train.digest_every": "it never changes a score",
}


def metric_of(pipeline: Pipeline) -> tuple[str, Literal["higher", "lower"]]:
    """The metric that a search goes by, and which of two scores is the better one."""
    assert pipeline.search is not None
    measures = measures_of(pipeline.labels)
    name = pipeline.search.metric or measures.searched
    return name, measures.better(name)


# ---- points -----------------------------------------------------------------------------------


def holds(space: Space, name: str, point: Point) -> bool:
    """Whether a setting's conditions hold in a point that has all settings before it."""
    return all(
        parent in point
        and any(same(point[parent], one) for one in allowed(space[parent], wanted) or [])
        for parent, wanted in space[name].when.items()
    )


def drawn(space: Space, draw: Callable[[str, SearchRange], Any]) -> Point:
    """One point: ``draw`` is asked, in the order of the file, for each setting that it has."""
    point: Point = {}
    for name, one in space.items():
        if holds(space, name, point):
            point[name] = draw(name, one)
    return point


def points(space: Space) -> Iterator[Point]:
    """Every point of a grid once: the last setting of the file changes fastest.

    Without conditions this is the order of ``itertools.product``. No range may be continuous.
    """
    yield from _points(space, list(space), {})


def _points(space: Space, names: list[str], point: Point) -> Iterator[Point]:
    if not names:
        yield point
    elif not holds(space, names[0], point):
        yield from _points(space, names[1:], point)
    else:
        listed = space[names[0]].listed
        assert listed is not None, f"{names[0]} is continuous"
        for value in listed:
            yield from _points(space, names[1:], {**point, names[0]: value})


def num_points(space: Space, most: int = MOST_POINTS) -> int:
    """How many points a grid has; ``most + 1`` where they are more."""
    if all(not one.when for one in space.values()):
        number = 1
        for one in space.values():
            assert one.listed is not None, "a continuous range"
            number *= len(one.listed)
        return min(number, most + 1)
    return sum(1 for _ in itertools.islice(points(space), most + 1))


def edges(space: Space) -> Iterator[Point]:
    """Points in which each listed value, and each end of a range, is met at least once."""
    met: set[tuple[str, int]] = set()
    for name, one in space.items():
        for position, value in enumerate(one.ends):
            if (name, position) in met:
                continue
            forced = {**_needed(space, name), name: value}
            point = drawn(space, lambda n, r, f=forced: f.get(n, r.ends[0]))  # type: ignore[misc]
            met |= {
                (n, k) for n, v in point.items() for k, e in enumerate(space[n].ends) if same(v, e)
            }
            yield point


def _needed(space: Space, name: str) -> Point:
    """Values of other settings with which a setting's conditions hold, and theirs."""
    needed: Point = {}
    for parent, wanted in space[name].when.items():
        needed |= _needed(space, parent)
        needed[parent] = (allowed(space[parent], wanted) or [None])[0]
    return needed


# ---- what a point means -----------------------------------------------------------------------


def settings(pipeline: Pipeline, point: Point) -> Pipeline:
    """The pipeline with a point's values set, as ``--set`` sets them, and without its search.

    The seed of the training stays unless the point sets it: settings are compared on the same
    batches. Where a point changes a section's ``use``, values that are the old one's defaults are
    not carried over, all others are.

    Raises:
        SpecError: the values, or some of them together, are not allowed; one line.
    """
    trial, wrong = _tried(pipeline, point)
    if trial is None:
        raise SpecError(f"search.space.{wrong[0][0]}: {wrong[0][1]}")
    return trial


def _tried(pipeline: Pipeline, point: Point) -> tuple[Pipeline | None, list[tuple[str, str]]]:
    """The trial's pipeline, or (setting in question, what is wrong) for each error."""
    document = pipeline.model_dump(mode="json", by_alias=True, exclude={"search"})
    wrong: list[tuple[str, str]] = []
    for name in sorted(point, key=lambda name: not name.endswith(".use")):  # sections first
        parts = name.split(".")
        if parts[-1] == "use":
            _change_use(pipeline, document, parts[:-1], point[name])
        error = put(document, parts, point[name])
        if error:
            wrong.append((name, error))
    if not wrong:
        try:
            return Pipeline.model_validate(document), []
        except ValidationError as error:
            found = explain(Pipeline, error, document, {})
            wrong = [_blamed(point, path, text) for path, text in found]
    return None, wrong


def _change_use(pipeline: Pipeline, document: Any, section: list[str], use: Any) -> None:
    """Leaves of a section what is not the default, where a point makes it another one."""
    old: Any = pipeline
    for part in section:
        old = getattr(old, part, None)
    if isinstance(old, BaseModel) and getattr(old, "use", None) != use:
        put(document, section, old.model_dump(mode="json", by_alias=True, exclude_defaults=True))


def _blamed(point: Point, path: Path_, text: str) -> tuple[str, str]:
    """The setting of a point that an error is about, and the error in words for a search."""
    place = dotted(path)
    text = text.partition(f" Set {place}")[0]  # in the file it is the space that has to change
    about = [n for n in point if f"{place}.".startswith((f"{n}.", f"{n}["))]
    if about:
        return about[0], text
    inside = [name for name in point if name.startswith(f"{place}.")] or list(point)
    uses = [name for name in point if name == f"{dotted(path[:-1])}.use"]
    if "is no known key" in text and uses:
        advice = f"Move {place} into space, with when: {{{uses[0]}: ...}}."
        return uses[0], f"with {uses[0]} {point[uses[0]]}, {text.split(' Known here')[0]} {advice}"
    together = ", ".join(f"{name} {point[name]!r:.40}" for name in inside)
    return inside[0], f"with {together}: {text.removeprefix(f'{place}: ')}"


def wrong_names(search: Search) -> Iterator[tuple[str, str]]:
    """(setting, what is wrong) for each name that a search may not vary."""
    for name in search.space:
        reason = FIXED.get(name) or FIXED.get(".".join(name.split(".")[:2]))
        if reason:
            yield name, f"a search may not vary {name}: {reason}. Remove it."
        elif name != "model" and not name.startswith(("model.", "train.")):
            near = nearest(name, _settable()) or nearest_end(name)
            yield name, f"a search varies model.* and train.*, and {name} is neither.{near}"
        elif name == "train.epochs" and search.pruning:
            text = "pruning compares trials of equal length. Remove train.epochs, or pruning."
            yield name, text


def nearest_end(name: str) -> str:
    """`` Did you mean 'train.optimizer.lr'?`` for ``lr``."""
    ends = [known for known in _settable() if known.endswith(f".{name}")]
    return f" Did you mean {ends[0]!r}?" if ends else ""


def _settable() -> list[str]:
    names = dotted_names(Pipeline)
    return [n for n in names if n.startswith(("model.", "train.")) and n not in FIXED]


def wrong_points(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """(setting, what is wrong) for each error among the points that are looked at, each once.

    Of a grid these are all; else those with an end of a range or a listed value.
    """
    search = pipeline.search
    assert search is not None
    number = num_points(search.space) if search.method == "grid" else 0
    if number > MOST_POINTS:
        name = max(search.space, key=lambda name: len(search.space[name].listed or []))
        yield name, f"the grid has more than {MOST_POINTS:,} points. Use method: random and trials."
        return
    seen: set[tuple[str, str]] = set()
    for point in points(search.space) if search.method == "grid" else edges(search.space):
        for name, text in _tried(pipeline, point)[1]:
            said = (name, text.split(". ")[0])  # what follows may list another section's keys
            if said not in seen:
                seen.add(said)
                yield name, text
