import cbrrr
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill_dagster.records.cid_texts import cid_texts
from backfill_dagster.repos.cid import CID_BYTES, DAG_CBOR_PREFIX, RAW_PREFIX


@given(
    st.lists(st.binary(min_size=32, max_size=32), max_size=20), st.sampled_from([DAG_CBOR_PREFIX, RAW_PREFIX])
)
def test_a_column_is_written_as_each_of_its_values_is(digests: list[bytes], prefix: bytes) -> None:
    cids = [prefix + digest for digest in digests]
    expected = [cbrrr.CID(cid).encode() for cid in cids]
    assert cid_texts(pl.Series(cids, dtype=pl.Binary)).to_list() == expected


def test_every_digit_stands_in_every_place() -> None:
    cids = [bytes([byte]) * CID_BYTES for byte in range(256)] * 10
    texts = cid_texts(pl.Series(cids)).to_list()
    assert texts == [cbrrr.CID(cid).encode() for cid in cids]
    assert len(texts) > 2000


def test_part_of_a_column() -> None:
    cids = pl.Series([bytes([byte]) * CID_BYTES for byte in range(9)])
    assert cid_texts(cids.slice(3, 2)).to_list() == cid_texts(cids).to_list()[3:5]
    assert cid_texts(cids.gather([0])).to_list() == ["b" + "a" * 58]


def test_others_are_refused() -> None:
    with pytest.raises((ValueError, TypeError)):
        cid_texts(pl.Series([bytes(34)]))
