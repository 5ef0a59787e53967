"""The language of ``data.derive`` and ``data.where``: DuckDB's SQL expressions, row by row.

DuckDB parses and evaluates. What it parsed is looked through before anything is evaluated: only
operators and the functions below may be used, whose value follows from the row's own values. So
an expression reads no file, no setting, no clock and no other row, and gives the same on any
worker. Missing values are NULL, as in SQL; NaN counts as missing; divided by zero is missing.
"""

import functools
import json
import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.errors import DataError
from ddlflow.spec.explain import nearest

if TYPE_CHECKING:
    import duckdb

_ROWS = "ddlflow_rows"  # what DuckDB calls the rows
_BEFORE = "SELECT "  # what stands before an expression where it is parsed
_CLASSES = {
    "BETWEEN",
    "CASE",
    "CAST",
    "COLUMN_REF",
    "COMPARISON",
    "CONJUNCTION",
    "CONSTANT",
    "FUNCTION",
    "OPERATOR",
    "TYPE",
}
_NOT_ALLOWED = {
    "LAMBDA": "a lambda",
    "PARAMETER": "a parameter",
    "STAR": "*",
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "GROUPING_FUNCTION": "grouping()",
    "OPERATOR_UNPACK": "unpack",
}
# Of DuckDB's functions those that are scalar and give the same for the same arguments always.
FUNCTIONS = frozenset(
    " ".join(
        (
            "+ - * / // % ** ^ & | << >> ~ || @ ! ~~ !~~ ~~* !~~* ~~~ ^@ <=>",
            "abs acos acosh add asin asinh atan atan2 atanh cbrt ceil ceiling cos cosh cot degrees",
            "divide even exp factorial fdiv floor fmod gamma gcd greatest isfinite isinf isnan lcm",
            "least lgamma ln log log10 log2 mod multiply nextafter pi pow power radians round",
            "round_even sign signbit sin sinh sqrt subtract tan tanh trunc xor bit_count",
            "coalesce if ifnull nullif constant_or_null",
            "ascii bit_length char_length character_length chr concat concat_ws contains",
            "damerau_levenshtein editdist3 ends_with format hamming instr jaccard jaro_similarity",
            "jaro_winkler_similarity lcase left length len levenshtein like_escape ilike_escape",
            "not_like_escape not_ilike_escape lower lpad ltrim md5 mismatches nfc_normalize ord",
            "overlay position prefix printf regexp_escape regexp_extract regexp_full_match",
            "regexp_matches regexp_replace repeat replace reverse right rpad rtrim sha256 split",
            "split_part starts_with str_split string_split strip_accents strlen strpos substr",
            "substring suffix translate trim ucase unicode upper",
            "century date_add date_diff date_part date_sub date_trunc datediff datepart datesub",
            "datetrunc day dayname dayofmonth dayofweek dayofyear days_in_month decade epoch",
            "epoch_ms epoch_ns epoch_us hour isodow isoyear julian last_day make_date make_time",
            "make_timestamp make_timestamp_ms make_timestamp_ns microsecond millisecond minute",
            "month monthname nanosecond quarter second strftime strptime time_bucket timezone",
            "to_days to_hours to_microseconds to_milliseconds to_minutes to_months to_seconds",
            "to_timestamp to_weeks to_years try_strptime week weekday weekofyear year yearweek",
            "array_contains array_extract array_length array_value element_at list_contains",
            "list_element list_extract list_position list_slice list_value map_extract",
            "struct_extract struct_pack row",
        )
    ).split()
)


def names_read(sql: str, key: str) -> tuple[tuple[str, ...], ...]:
    """The columns that an expression reads, each once; of ``a.b`` both names.

    Args:
        sql: the expression.
        key: where it stands, for messages.

    Raises:
        DataError: it cannot be parsed, is not allowed, or reads no column.
    """
    try:
        return _names_read(sql)
    except DataError as error:
        raise DataError(f"{key} is {shown(sql)}: {error}") from None


def shown(sql: str) -> str:
    """An expression in a message: in one line and not too long."""
    line = " ".join(sql.split())
    return repr(line if len(line) <= 80 else f"{line[:77]}...")


@functools.lru_cache(maxsize=1024)
def _names_read(sql: str) -> tuple[tuple[str, ...], ...]:
    nodes = list(_nodes(_parsed(sql)))
    for node in nodes:
        kind = node["class"]
        if node["type"] in _NOT_ALLOWED or kind not in _CLASSES:
            what = _NOT_ALLOWED.get(node["type"]) or _NOT_ALLOWED.get(kind, kind.lower())
            raise DataError(f"{what} is not allowed. Use operators and functions of one row alone.")
        if kind == "FUNCTION":
            _check_function(node)
    found = [tuple(node["column_names"]) for node in nodes if node["class"] == "COLUMN_REF"]
    if not found:
        raise DataError("it reads no column, so it is the same in every row. Name a column.")
    return tuple(dict.fromkeys(found))


def _check_function(node: Mapping[str, Any]) -> None:
    name = str(node["function_name"]).lower()
    if node.get("schema") or node.get("catalog"):
        owner = node.get("schema") or node.get("catalog")
        raise DataError(f"{owner}.{name}() is not allowed. Write {name}({owner}).")
    if name not in FUNCTIONS:
        if not _asked("SELECT count(*) FROM duckdb_functions() WHERE function_name = ?", name):
            near = nearest(name, sorted(FUNCTIONS)) or " Look the function up in DuckDB's manual."
            raise DataError(f"there is no function {name}().{near}")
        raise DataError(
            f"{name}() is not allowed. Use functions of one row's values alone: no aggregates, "
            "random numbers, clocks, settings or files."
        )


def _asked(question: str, value: str) -> Any:
    """The one value that answers a question about DuckDB itself."""
    return _connection().execute(question, [value]).fetchall()[0][0]


def _parsed(sql: str) -> dict[str, Any]:
    """DuckDB's tree of the one expression that ``sql`` has to be."""
    text = f"{_BEFORE}{sql}\n"
    found: dict[str, Any] = json.loads(_asked("SELECT json_serialize_sql(?)", text))
    if found["error"]:
        at = found.get("position")
        place = f", at character {int(at) - len(_BEFORE) + 1}" if at else ""
        said = " ".join(found["error_message"].split())
        raise DataError(
            f"it is no SQL expression: {said}{place}. (A column whose name has spaces, or is a "
            "word of SQL, stands in double quotes.)"
        )
    statements = [statement["node"] for statement in found["statements"]]
    select = statements[0] if len(statements) == 1 else {}
    expressions = select.get("select_list", [])
    alone = (
        len(expressions) == 1
        and select["from_table"]["type"] == "EMPTY"
        and not expressions[0].get("alias")
        and not any(
            select.get(part)
            for part in ("modifiers", "where_clause", "group_expressions", "having", "qualify")
        )
    )
    if not alone or select.get("sample"):
        raise DataError("it has to be one SQL expression, without SELECT, FROM, WHERE or a name.")
    return dict(expressions[0])


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All expressions in a tree, the outer ones first."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def computed(sql: str, key: str, columns: Mapping[str, pa.Array]) -> pa.Array:
    """The value [n] of an expression that ``names_read`` has passed.

    Args:
        sql: the expression.
        key: where it stands, for messages.
        columns: what it reads, each [n]; n may be 0, to learn the type.

    Raises:
        DataError: types that do not fit, or a value that cannot be computed.
    """
    import duckdb

    rows = pa.table({name: without_nan(array) for name, array in columns.items()})
    connection = _connection()
    try:
        connection.register(_ROWS, rows)
        found = connection.sql(f"{_BEFORE}{sql}\n AS value FROM {_ROWS}").to_arrow_table()
    except duckdb.Error as error:
        said = str(error).strip().splitlines()[0].partition(" Error: ")
        advice = (
            "Correct it, or write try(...) for a missing value where it cannot be computed."
            if len(rows)
            else "Correct it, or cast(COLUMN as TYPE)."
        )
        raise DataError(
            f"{key} is {shown(sql)}: {(said[2] or said[0]).strip().rstrip('.')}. {advice}"
        ) from error
    finally:
        connection.unregister(_ROWS)
    value: pa.ChunkedArray = found.column(0)
    return value.chunk(0) if value.num_chunks == 1 else value.combine_chunks()


def without_nan(array: pa.Array) -> pa.Array:
    """A column for DuckDB. NaN becomes null: there it is the largest number of all."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_float16(array.type):  # DuckDB has neither this type
        array = array.cast(pa.float32())
    elif pa.types.is_decimal256(array.type):  # nor this one
        array = array.cast(pa.float64())
    if pa.types.is_floating(array.type):
        nan = pc.is_nan(array)
        if pc.any(nan).as_py():
            array = pc.if_else(nan, pa.scalar(None, array.type), array)
    return array


_held = threading.local()


def _connection() -> "duckdb.DuckDBPyConnection":
    """A DuckDB in memory, one a thread and process, that reaches nothing outside."""
    if getattr(_held, "process", None) != os.getpid():
        _held.connection, _held.process = _connect(), os.getpid()
    connection: duckdb.DuckDBPyConnection = _held.connection
    return connection


def _connect() -> "duckdb.DuckDBPyConnection":
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={
            "threads": 1,  # rows stay in order
            "enable_external_access": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
        },
    )
    connection.execute("SET TimeZone = 'UTC'")
    # A number divided by zero is missing; where that is the default, one of the two is unknown.
    for setting in ("ieee_floating_point_ops", "error_on_division_by_zero"):
        try:
            connection.execute(f"SET {setting} = false")
        except duckdb.CatalogException:
            continue
    connection.execute("SET lock_configuration = true")
    return connection
