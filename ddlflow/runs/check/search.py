"""What a search would try, held against what a training accepts."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

from ddlflow.errors import DdlflowError, SpecError
from ddlflow.runs.check import inputs
from ddlflow.runs.check.finding import Finding, counted
from ddlflow.runs.check.models import Shape, model
from ddlflow.spec.explain import nearest
from ddlflow.spec.load import Request, shown
from ddlflow.spec.pipeline import Pipeline, Search, UserCode

MOST_LOOKED_AT = 200  # points: each user model among them is built and tried


def settings(request: Request) -> Iterator[Finding]:
    """What would stop the search: every point of a grid, and the ends of other ranges, are tried.

    Yields errors, or one line about what will be tried.
    """
    if request.pipeline.search is None:
        return
    from ddlflow.sweep.choose.space import wrong_names, wrong_points

    names = [f"search.space.{name}: {text}" for name, text in wrong_names(request.pipeline.search)]
    wrong = [*_of_section(request.pipeline, request.pipeline.search), *names]
    if not names:  # no point can be set with a wrong name
        wrong += [f"search.space.{name}: {text}" for name, text in wrong_points(request.pipeline)]
    if wrong:
        yield from (Finding("search", "error", text) for text in wrong)
        return
    yield Finding("search", "ok", _summary(request.pipeline, request.pipeline.search))
    if request.pipeline.search.pruning and request.pipeline.search.pruning.use == "async_halving":
        text = (
            "async_halving ends trials in the order in which they arrive: two searches may differ. "
            "search.pruning.use: halving decides on whole rungs and is repeatable."
        )
        yield Finding("search", "note", text)


def _of_section(pipeline: Pipeline, search: Search) -> Iterator[str]:
    """Errors of the section together with the rest of the pipeline."""
    from ddlflow.sweep.choose.sampler import NO_CMAES
    from ddlflow.train.tasks.measures import measures_of

    kind = pipeline.labels
    names = measures_of(kind).names
    if search.metric is not None and search.metric not in names:
        yield (
            f"search.metric is {search.metric!r}, which objective {kind} does not have."
            f"{nearest(search.metric, names)} It has: {', '.join(names)}."
        )
    split = pipeline.data.split
    if search.cv and pipeline.cv is None:
        yield (
            "search.cv is true, and the pipeline has no folds. Add a section such as "
            "cv: {folds: 5}, or leave search.cv out."
        )
    elif not search.cv and split.column is None and split.validation == 0:
        yield (
            "search scores its trials by validation rows, and there are none. Set "
            "data.split.validation above 0, or search.cv: true with a cv section."
        )
    if search.cv and search.pruning and search.pruning.use == "async_halving":
        yield (
            "search.pruning.use is async_halving, which decides about trainings as they arrive and "
            "cannot wait for the folds of a trial. Set use: halving, or search.cv: false."
        )
    if pipeline.train.epochs != "auto":
        yield from too_late(search, pipeline.train.epochs)
    if search.method == "cma_es" and find_spec("cmaes") is None:
        yield NO_CMAES


def too_late(search: Search, epochs: int) -> Iterator[str]:
    """That pruning would end no trial of so many epochs, if that is so."""
    if search.pruning and search.pruning.min_epochs >= epochs:
        yield (
            f"search.pruning.min_epochs is {search.pruning.min_epochs}, and a training has "
            f"{counted(epochs, 'epoch')} (train.epochs), so no trial would end early. Set fewer, "
            "or remove search.pruning."
        )


def _summary(pipeline: Pipeline, search: Search) -> str:
    from ddlflow.sweep.choose.sampler import total_trials
    from ddlflow.sweep.choose.space import metric_of

    metric, better = metric_of(pipeline)
    number = total_trials(search)
    many = counted(len(search.space), "setting")
    folds = ", each over the folds" if search.cv else ""
    ended = f", ended early by {search.pruning.use}" if search.pruning else ""
    tried = f"{counted(number, 'trial')} ({search.method}) of {many}{folds}{ended}"
    return f"{tried}; the {'highest' if better == 'higher' else 'lowest'} {metric} wins."


def models(request: Request, shape: Shape) -> Iterator[Finding]:
    """What settings mean beyond their section: user models are tried, slices fit into a batch."""
    from itertools import islice

    from ddlflow.sweep.choose.space import edges, settings

    search = request.pipeline.search
    if search is None:
        return
    seen = {finding.text for finding in inputs.train(request)}  # said already
    for point in islice(edges(search.space), MOST_LOOKED_AT):
        try:
            trial = replace(request, pipeline=settings(request.pipeline, point))
        except SpecError:
            continue  # `settings` above has said so
        found = list(inputs.train(trial))
        section = trial.pipeline.model
        key = section.model_dump_json()
        is_new = section != request.pipeline.model and key not in seen
        if isinstance(section, UserCode) and is_new:
            seen.add(key)
            found += _tried(trial, shape)
        about = ", ".join(f"{name} {value!r:.40}" for name, value in point.items())
        for finding in found:
            if finding.level == "error" and finding.text not in seen:
                text = f"search.space: with {about}: {finding.text}"
                yield replace(finding, what="search", text=text)
            seen.add(finding.text)


def _tried(trial: Request, shape: Shape) -> list[Finding]:
    """What trying a trial's user model finds, or raises."""
    try:
        return list(model(trial, shape))
    except DdlflowError as error:
        return [Finding("search", "error", str(error))]


def check_section(request: Request, only: str | None) -> None:
    """Raises where the section that a command is for is not there.

    Raises:
        SpecError: with an example of one.
    """
    examples = {
        "search": ("search", "search: {method: grid, space: {train.optimizer.lr: [0.001, 0.01]}}"),
        "cross_validate": ("cv", "cv: {folds: 5}"),
    }
    if only is None:
        return
    section, example = examples[only]
    if getattr(request.pipeline, section) is None:
        raise SpecError(
            f"{shown(request.pipeline_path)} has no section {section}. Add one (such as {example})."
        )
