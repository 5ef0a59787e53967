"""Map: results in order, lazily, a bounded number of items under way. Every engine's the same."""

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

from ddlflow.engines import Item, ItemDone, OnItem
from ddlflow.errors import EngineError

RETRIES = 3  # of one item whose worker died
ITEMS_PER_SLOT = 4  # under way or finished and not yet taken: hides the way to a worker and back


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """What became of one item: a value, or the exception that the function raised."""

    value: Any = None
    error: Exception | None = None


def call(function: Callable[[Any], Any], item: Any) -> ItemOutcome:
    """Apply ``function`` on a worker. Whatever it raises is an outcome that can travel."""
    try:
        return ItemOutcome(value=function(item))
    except Exception as error:
        return failed(error)
    except BaseException as error:
        # SystemExit or KeyboardInterrupt in data work must end neither the worker nor the driver.
        return failed(EngineError(f"The work on an item ended with {type(error).__name__}."))


def failed(error: Exception) -> ItemOutcome:
    """An outcome whose exception survives pickling and carries its remote traceback as a note."""
    text = "".join(traceback.format_exception(error))
    try:
        travels = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    except Exception:
        travels = EngineError(f"{type(error).__name__}: {error}")
    travels.add_note(f"On the worker:\n{text}")
    return ItemOutcome(error=travels)


def in_order(
    items: Iterable[Item],
    window: int,
    start: Callable[[int, Item], None],
    finish: Callable[[], tuple[int, ItemOutcome]],
    on_event: OnItem,
) -> Iterator[Any]:
    """Yield each item's value in order.

    Args:
        items: read only as fast as results are taken.
        window: at most this many items are started and not yet yielded.
        start: hands an item to the workers; does not wait.
        finish: waits for any started item and returns its index and outcome.
        on_event: told of each item that finished well.

    Raises:
        Exception: the error of the first failed item in order. Once any item failed no further
            one is started; those before it are finished, so the error does not depend on timing.
    """
    of = len(items) if isinstance(items, Sized) else None
    source = enumerate(items)
    outcomes: dict[int, ItemOutcome] = {}
    due = num_running = 0
    more = True
    while True:
        while more and num_running + len(outcomes) < window:
            entry = next(source, None)
            if entry is None:
                more = False
            else:
                start(*entry)
                num_running += 1
        if due in outcomes:
            outcome = outcomes.pop(due)
            due += 1
            if outcome.error is not None:
                raise outcome.error
            yield outcome.value
        elif num_running == 0:
            return
        else:
            index, outcome = finish()
            num_running -= 1
            outcomes[index] = outcome
            if outcome.error is None:
                on_event(ItemDone(index, of))
            else:
                more = False
