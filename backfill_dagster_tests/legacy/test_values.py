import json
import time

import pytest

from backfill_dagster.legacy.values import read_structured


@pytest.mark.parametrize(
    "value",
    [{}, [], {"a": [1, None, True, "x“\u0000"]}, [1.5, -1], {"uri": "at://x", "cid": "y"}, "text", 5],
)
def test_json_and_repr_say_the_same(value: object) -> None:
    assert read_structured(json.dumps(value)) == value
    assert read_structured(repr(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "nan",
        "<removed>",
        "{'a': nan}",
        "{1: 2}",
        "{'a': b'x'}",
        "{'a': {1, 2}}",
        "{'a': 1j}",
        "(1, 2)",
        "__import__('os').system('true')",
        "[x for x in (1, 2)]",
        "{'a': 1e999}",
        # Half of a surrogate pair, which no UTF-8 can stand for.
        '{"a": "\\ud800"}',
        "{'a': '\\ud800'}",
        "{'\\ud800': 1}",
        "{'a': 99999999999999999999999999}",
        "{'$type': 'a', 'py_type': 'b'}",
        "[" * 61 + "]" * 61,
        "[" * 100_000,
        "{'a': " * 5000,
        "-" * 100_000 + "1",
        "not " * 50_000 + "1",
        "'a' + " * 50_000 + "'a'",
        "'" + "a" * 1_100_000 + "'",
        "1" * 10_000,
    ],
)
def test_what_is_neither_is_refused_in_no_time(text: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError):
        read_structured(text)
    assert time.process_time() - started < 5
