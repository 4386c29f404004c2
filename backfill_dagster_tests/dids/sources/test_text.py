from pathlib import Path

from backfill_dagster.config.sources import TextSource
from backfill_dagster_tests.dids.sources.reading import DIDS, entries


def test_empty_lines_and_comments_of_a_text_file_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "dids.txt"
    path.write_bytes(f"\ufeff# our panel\r\n\r\n  {DIDS[0]}  \r\n\t# {DIDS[1]}\n\n{DIDS[2]}".encode())

    assert entries(TextSource(type="text", path=path)) == [DIDS[0], DIDS[2]]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "dids.txt"
    path.write_bytes(b"x" * 3_000_000 + b"\n" + DIDS[0].encode() + b"\n" + b"y" * 20_000)

    long, did, last = entries(TextSource(type="text", path=path))
    assert did == DIDS[0]
    assert long is not None
    assert last is not None
    assert len(long) == len(last) == 16_384
