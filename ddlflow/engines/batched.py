"""Many items as few tasks: what an engine does for a task stays small beside the task's work."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ddlflow.engines import Engine, Item, ItemDone, Result, ignore

# The last tasks leave slots idle for 1 % of the time at most. A task costs an engine some
# milliseconds (measured with Dask: 2 to 5), so 20,000 items of 3 ms take twice their time alone.
TASKS_PER_SLOT = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """Items that one task goes through in turn."""

    function: Callable[[Any], Any]
    items: Sequence[Any]


@dataclass(frozen=True, slots=True)
class BatchDone:
    """A task finished well, with so many items."""

    items: int


def map_batched(
    engine: Engine,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    on_event: Callable[[BatchDone], None] = ignore,
) -> Iterator[Result]:
    """As ``engine.map``, where there are many items with several of them in a task.

    Results, their order and the error that is raised are the same; ``on_event`` is told of tasks.
    """
    size = max(1, len(items) // (TASKS_PER_SLOT * engine.slots))
    batches = [Batch(function, items[k : k + size]) for k in range(0, len(items), size)]

    def tell(event: ItemDone) -> None:
        on_event(BatchDone(len(batches[event.item].items)))

    for results in engine.map(_apply, batches, on_event=tell):
        yield from results


def _apply(batch: Batch) -> list[Any]:
    return [batch.function(item) for item in batch.items]
