"""Expressions of one row: what DuckDB's language gives here, and what of it is refused."""

import threading
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from ddlflow.data.sources.derive_sql import FUNCTIONS, computed, names_read
from ddlflow.errors import DataError

NAN = float("nan")
COLUMNS = {
    "a": pa.array([0.0, 1.0, -2.0, NAN, None]),
    "i": pa.array([7, -7, 0, None, 2**53 + 1], pa.int64()),
    "t": pa.array(["late", "", None, "Ünïcode", "x"]),
    "d": pa.array([0, 86_399, 10**9, None, -1], pa.timestamp("s")),
    "half": pa.array(np.array([1, 2, 3, NAN, 5], np.float16)),
    "kind": pa.array(["p", "q", None, "p", "q"]).dictionary_encode(),
    "wide": pa.array([Decimal("1.5"), None, Decimal(-2), None, Decimal(0)], pa.decimal256(50, 2)),
    "big": pa.array([0, 1, 2, 3, 2**64 - 1], pa.uint64()),
}


def value(sql: str, *names: str) -> list[object]:
    return list(computed(sql, "data.derive.x", {n: COLUMNS[n] for n in names}).to_pylist())


@pytest.mark.parametrize(
    ("sql", "names", "wanted"),
    [
        # NaN is missing, not the largest of all numbers, and so is what is divided by zero.
        ("a > -1", "a", [True, True, False, None, None]),
        ("a is null", "a", [False, False, False, True, True]),
        ("a / a > 0", "a", [None, True, True, None, None]),
        ("1 / i", "i", [1 / 7, -1 / 7, None, None, 1 / 2**53]),
        ("i // i + i % i", "i", [1, 1, None, None, 1]),
        ("half > 1.5", "half", [False, True, True, None, True]),
        ("wide > 1", "wide", [True, None, False, None, False]),
        ("i", "i", [7, -7, 0, None, 2**53 + 1]),
        ("big", "big", [0, 1, 2, 3, 2**64 - 1]),
        ("try(ln(a))", "a", [None, 0.0, None, None, None]),
        ("coalesce(t, '?') || '!'", "t", ["late!", "!", "?!", "Ünïcode!", "x!"]),
        ("kind = 'p'", "kind", [True, False, None, True, False]),
        ("length(t) in (1, 4)", "t", [True, False, None, False, True]),
        ("case when a > 0 then 'yes' else 'no' end", "a", ["no", "yes", "no", "no", "no"]),
        ("hour(d)", "d", [0, 23, 1, None, 23]),
        ("i -- a comment", "i", [7, -7, 0, None, 2**53 + 1]),
    ],
)
def test_values(sql: str, names: str, wanted: list[object]) -> None:
    assert names_read(sql, "k") == ((names,),)
    assert value(sql, names) == wanted


def test_local_hours_are_asked_for_and_the_clock_of_the_machine_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time = pa.array([1_357_034_400], pa.timestamp("s", "Europe/Berlin"))  # 2013-01-01 10:00 UTC
    local = "hour(d at time zone 'America/New_York')"
    assert computed("hour(d)", "k", {"d": time}).to_pylist() == [10]
    assert computed(local, "k", {"d": time}).to_pylist() == [5]


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("a >", r"it is no SQL expression: syntax error"),
        ("", r"it is no SQL expression"),
        ("a > 'x", r"it is no SQL expression"),
        ("a, b", r"has to be one SQL expression"),
        ("a; b", r"it is no SQL expression|has to be one"),
        ("a as b", r"has to be one SQL expression"),
        ("distinct a", r"has to be one SQL expression"),
        ("a from t", r"has to be one SQL expression, without SELECT, FROM"),
        ("a where b", r"has to be one SQL expression"),
        ("a order by b", r"has to be one SQL expression"),
        ("a limit 1", r"has to be one SQL expression"),
        ("a union select 1", r"has to be one SQL expression"),
        ("(select a)", r"a subquery is not allowed"),
        ("a in (select 1)", r"a subquery is not allowed"),
        ("sum(a)", r"sum\(\) is not allowed"),
        ("count(*)", r"is not allowed"),
        ("row_number() over ()", r"a window function is not allowed"),
        ("sum(a) over ()", r"is not allowed"),
        ("random() + a", r"random\(\) is not allowed"),
        ("a > now()", r"now\(\) is not allowed"),
        ("age(a)", r"age\(\) is not allowed"),
        ("hash(a)", r"hash\(\) is not allowed"),
        ("nextval(a)", r"nextval\(\) is not allowed"),
        ("current_setting(a)", r"current_setting\(\) is not allowed"),
        ("read_text(a)", r"read_text\(\) is not allowed"),
        ("a.abs()", r"a\.abs\(\) is not allowed. Write abs\(a\)"),
        ("*", r"\* is not allowed"),
        ("$1", r"a parameter is not allowed"),
        ("list_filter(a, lambda x: x)", r"is not allowed"),
        ("unnest(a)", r"unnest\(\) is not allowed"),
        ("houer(a)", r"there is no function houer\(\)\. Did you mean 'hour'\?"),
        ("1 = 1", r"it reads no column"),
    ],
)
def test_refused_with_the_expression_in_one_line(sql: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        names_read(sql, "data.derive.late")
    assert str(error.value).startswith("data.derive.late is ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sql", "names", "words"),
    [
        ("year(t)", "t", r"No function matches.*year\(VARCHAR\)"),
        ("t > 15", "t", r"VARCHAR|convert"),
        ("ln(a)", "a", r"logarithm of zero.*try\(\.\.\.\)"),
        ("cast(t as integer)", "t", r"late.*try\(\.\.\.\)"),
        ("i + 9223372036854775807", "i", r"Overflow.*try\(\.\.\.\)"),
    ],
)
def test_what_cannot_be_computed_is_said_in_one_line(sql: str, names: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        value(sql, names)
    assert str(error.value).startswith("data.derive.x is ")
    assert "\n" not in str(error.value)


def test_no_file_is_reached_even_by_a_function_that_were_allowed(tmp_path: object) -> None:
    from ddlflow.data.sources.derive_sql import _connection

    with pytest.raises(Exception, match="disabled by configuration"):
        _connection().execute(f"SELECT * FROM read_text('{tmp_path}/x')")
    with pytest.raises(Exception, match="locked"):
        _connection().execute("SET enable_external_access = true")


def test_every_function_that_is_allowed_is_a_scalar_and_has_no_clock() -> None:
    """Asked of DuckDB itself: none of those it knows aggregates or changes from call to call."""
    import duckdb

    rows = duckdb.sql("SELECT function_name, function_type, stability FROM duckdb_functions()")
    found = [row for row in rows.fetchall() if row[0] in FUNCTIONS]
    assert {row[1] for row in found} <= {"scalar", "macro", "table"}
    scalar = {row[0] for row in found if row[1] in ("scalar", "macro")}
    assert {row[0] for row in found} == scalar
    assert "VOLATILE" not in {row[2] for row in found}
    assert not FUNCTIONS & {"now", "today", "age", "random", "uuid", "current_date", "error"}


def test_rows_stay_in_order_whatever_their_number_and_thread() -> None:
    rows = 300_000  # more than a vector, a row group and a piece
    column = pa.array(np.random.default_rng(1).permutation(rows))
    found: list[pa.Array] = []

    def work() -> None:
        found.append(computed("x * 2", "k", {"x": column}))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for array in found:
        assert np.array_equal(array.to_numpy(), column.to_numpy() * 2)
    assert len(found) == 3
