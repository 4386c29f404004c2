import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill_dagster.repos.varint import read_varint
from backfill_dagster_tests.repos.forge import varint


@given(st.integers(0, 2**63 - 1), st.binary(max_size=3), st.binary(max_size=3))
def test_what_was_written_is_read_wherever_it_stands(number: int, before: bytes, after: bytes) -> None:
    written = varint(number)

    read = read_varint(before + written + after, len(before), len(before + written + after))

    assert read == (number, len(before + written))


@given(st.integers(0, 2**63 - 1), st.data())
def test_a_varint_that_is_cut_is_not_read(number: int, data: st.DataObject) -> None:
    written = varint(number)
    end = data.draw(st.integers(0, len(written) - 1))

    with pytest.raises(EOFError):
        read_varint(written, 0, end)


@pytest.mark.parametrize("written", [b"\x80\x00", b"\xff\x80\x00", b"\x81\x80\x80\x00"])
def test_a_longer_form_than_the_shortest_is_refused(written: bytes) -> None:
    with pytest.raises(ValueError, match="shortest"):
        read_varint(written, 0, len(written))


@pytest.mark.parametrize("written", [b"\xff" * 9 + b"\x01", b"\x80" * 40])
def test_more_than_nine_bytes_are_refused(written: bytes) -> None:
    with pytest.raises(ValueError, match="nine bytes"):
        read_varint(written, 0, len(written))
