"""What came of a member as JSON and back."""

import json
import math

import pytest

from ddlflow.errors import DdlflowError
from ddlflow.sweep.member_result import MemberResult, from_json, known_rows, to_json, untrained

HISTORY = known_rows([{"epoch": 1, "val_auroc": math.nan}, {"epoch": 2, "val_auroc": 0.5}])
DONE = MemberResult("0/1", "done", "", HISTORY, 1, 8, 0.5, 3)


def test_results_come_back() -> None:
    made = [DONE, untrained("1", "why", "apart")]
    assert from_json(json.loads(json.dumps(to_json(made), allow_nan=False)), "end.json") == made


def test_the_epoch_that_counts() -> None:
    assert DONE.counted_row == {"epoch": 1, "val_auroc": None}
    assert untrained("1", "why").counted_row == {}


@pytest.mark.parametrize("values", [{}, {"results": 5}, {"results": [{"id": "0"}]}])
def test_a_damaged_file_is_one_line(values: object) -> None:
    with pytest.raises(DdlflowError, match=r"^a/end.json is damaged \(.*--fresh\.$"):
        from_json(values, "a/end.json")
