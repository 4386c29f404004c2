from pathlib import Path

import pytest

from backfill_dagster.errors import ConfigError
from backfill_dagster.purge.request import PurgeRequest, RecordKey, read_request

PLC = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
URI = f"at://{PLC}/app.bsky.feed.post/3l5uvwqz2fk2k"
RECORD = RecordKey(PLC, "app.bsky.feed.post", "3l5uvwqz2fk2k")


def test_lists_and_file_come_together_each_entry_once(tmp_path: Path) -> None:
    file = tmp_path / "withdrawn.txt"
    file.write_text(f"# asked by mail\n{PLC}\n\n  {URI} \ndid:web:ann.example.co\n")
    assert read_request([f" {PLC}"], [URI], file) == PurgeRequest((PLC, "did:web:ann.example.co"), (RECORD,))


def test_a_record_key_may_hold_what_a_path_may_hold() -> None:
    [record] = read_request(uris=[f"at://{PLC}/not an nsid/a/b"]).records
    assert record == RecordKey(PLC, "not an nsid", "a/b")


def test_nothing_is_false() -> None:
    assert not read_request()
    assert read_request([PLC])


@pytest.mark.parametrize(
    ("dids", "uris", "place"),
    [
        ([PLC, PLC[:-1]], [], "dids[1]"),
        ([URI], [], "dids[0]"),
        (["ann.example.co"], [], "dids[0]"),
        ([""], [], "dids[0]"),
        ([], [PLC], "uris[0]"),
        ([], [f"at://{PLC}"], "uris[0]"),
        ([], [f"at://{PLC}/app.bsky.feed.post"], "uris[0]"),
        ([], ["at://ann.example.co/app.bsky.feed.post/3l5uvwqz2fk2k"], "uris[0]"),
        ([], [URI, URI.replace("did:plc:", "did:plc:x")], "uris[1]"),
    ],
)
def test_the_message_says_where_the_fault_is_and_not_who(
    dids: list[str], uris: list[str], place: str
) -> None:
    with pytest.raises(ConfigError) as told:
        read_request(dids, uris)
    assert place in str(told.value)
    assert PLC[8:20] not in str(told.value)
    assert "ann" not in str(told.value)


def test_faults_of_a_file_are_told_by_line_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "withdrawn.txt"
    file.write_text(f"{PLC}\nnobody\n{PLC} {PLC}\n")
    with pytest.raises(ConfigError, match=r"line 2 of .*withdrawn.txt .*\(and 1 more\)"):
        read_request(file=file)


@pytest.mark.parametrize("name", ["nowhere.txt", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="nothing is purged"):
        read_request(file=tmp_path / name)
