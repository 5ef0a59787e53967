"""Many items go to an engine as few tasks, and nothing else changes."""

from collections.abc import Iterator

import pytest

from ddlflow.engines.batched import TASKS_PER_SLOT, BatchDone, map_batched
from ddlflow.engines.local import LocalEngine


def square(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is below 0")
    return number * number


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(slots=2, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("num_items", [0, 1, 5, 127, 128, 129, 1001])
def test_results_in_order_and_every_item_told(engine: LocalEngine, num_items: int) -> None:
    told: list[BatchDone] = []
    found = list(map_batched(engine, square, range(num_items), on_event=told.append))
    assert found == [number**2 for number in range(num_items)]
    assert sum(event.items for event in told) == num_items
    assert len(told) <= max(num_items, 1) if num_items < 256 else len(told) <= 3 * TASKS_PER_SLOT


def test_the_first_error_in_order_is_raised_after_the_results_of_earlier_tasks(
    engine: LocalEngine,
) -> None:
    items = [*range(700), -7, *range(100), -8]
    found: list[int] = []
    with pytest.raises(ValueError, match="-7 is below 0"):
        found.extend(map_batched(engine, square, items))
    assert found == [number**2 for number in range(len(found))]
    assert 690 < len(found) <= 700
