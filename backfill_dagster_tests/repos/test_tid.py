from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill_dagster.repos.tid import Tid, parse_tid

ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("verdict", ["valid", "invalid"])
def test_the_protocols_own_list_is_judged_alike(shared_dir: Path, verdict: str) -> None:
    lines = (shared_dir / f"vectors/interop/syntax/tid_syntax_{verdict}.txt").read_text().splitlines()
    texts = [line for line in lines if line and not line.startswith("#")]

    assert len(texts) >= 4
    assert [text for text in texts if (parse_tid(text) is not None) != (verdict == "valid")] == []


@pytest.mark.parametrize("text", ["3jzfcijpj2z2a\n", "", "3jzfcijpj2z2\u0661", "3jzfcijpj2z\u212a2"])
def test_further_texts_are_no_tids(text: str) -> None:
    assert parse_tid(text) is None


def test_the_lowest_and_the_highest_of_53_bits() -> None:
    assert parse_tid("2222222222222") == Tid(0, 0)
    assert parse_tid("bzzzzzzzzzzzz") == Tid(2**53 - 1, 2**10 - 1)


@given(st.integers(0, 2**53 - 1), st.integers(0, 2**10 - 1))
def test_the_parts_are_read_back(microseconds: int, clock_id: int) -> None:
    number = microseconds << 10 | clock_id
    text = "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(13)))

    assert parse_tid(text) == Tid(microseconds, clock_id)
