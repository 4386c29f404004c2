from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.dids.syntax import DidRejection, check_did, rejection_of, stripped

PLC = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


def check_column(entries: list[str | None]) -> list[str | None]:
    frame = pl.DataFrame({"entry": pl.Series(entries, dtype=pl.String)})
    return frame.select(rejection_of(pl.col("entry"))).to_series().to_list()


CASES: list[tuple[str, DidRejection | None]] = [
    (PLC, None),
    (f"  {PLC}\t\r\n", None),
    (f"\ufeff{PLC}\u00a0", None),
    ("did:web:example.com", None),
    ("did:web:Example.COM", None),
    ("did:web:a-b.xn--p1ai", None),
    ("did:web:1.2.3.example", None),
    ("did:web:" + "a" * 63 + ".example", None),
    ("did:web:" + ".".join(["a" * 62] * 3 + ["b" * 61, "cd"]), None),
    ("", DidRejection.EMPTY),
    (" \t\u200b", DidRejection.EMPTY),
    (f"at://{PLC}", DidRejection.NOT_A_DID),
    (f"at://{PLC}/app.bsky.feed.post/3k", DidRejection.NOT_A_DID),
    (f"https://bsky.app/profile/{PLC}", DidRejection.NOT_A_DID),
    (f"@{PLC}", DidRejection.NOT_A_DID),
    (f'"{PLC}"', DidRejection.NOT_A_DID),
    (f"{PLC} {PLC}", DidRejection.NOT_A_DID),
    (f"{PLC}\n{PLC}", DidRejection.NOT_A_DID),
    (f"{PLC},", DidRejection.NOT_A_DID),
    (f"{PLC}:", DidRejection.NOT_A_DID),
    (f"{PLC}#atproto", DidRejection.NOT_A_DID),
    ("alice.bsky.social", DidRejection.NOT_A_DID),
    ("did", DidRejection.NOT_A_DID),
    ("DID:PLC:EWVI7NXZYOUN6ZHXRHS64OIZ", DidRejection.NOT_A_DID),
    ("did:plc", DidRejection.NOT_A_DID),
    ("did:plc:", DidRejection.NOT_A_DID),
    ("did:plc:ewvi7nxzyoun6zhxrhs64oi\u0131", DidRejection.NOT_A_DID),
    ("did:plc:ewvi7nxzyoun6zhxrhs64oi", DidRejection.BAD_PLC),
    ("did:plc:ewvi7nxzyoun6zhxrhs64oizz", DidRejection.BAD_PLC),
    ("did:plc:EWVI7NXZYOUN6ZHXRHS64OIZ", DidRejection.BAD_PLC),
    ("did:plc:ewvi7nxzyoun6zhxrhs64oi1", DidRejection.BAD_PLC),
    ("did:plc:a", DidRejection.BAD_PLC),
    ("did:web:localhost%3A1234", DidRejection.BAD_WEB),
    ("did:web:example.com%3A8080", DidRejection.BAD_WEB),
    ("did:web:example.com:user:alice", DidRejection.BAD_WEB),
    ("did:web:localhost", DidRejection.BAD_WEB),
    ("did:web:127.0.0.1", DidRejection.BAD_WEB),
    ("did:web:example..com", DidRejection.BAD_WEB),
    ("did:web:-a.example", DidRejection.BAD_WEB),
    ("did:web:a-.example", DidRejection.BAD_WEB),
    ("did:web:a_b.example", DidRejection.BAD_WEB),
    ("did:web:example.com.", DidRejection.BAD_WEB),
    ("did:web:" + "a" * 64 + ".example", DidRejection.BAD_WEB),
    ("did:web:" + ".".join(["a" * 62] * 4 + ["bc"]), DidRejection.BAD_WEB),
    ("did:key:zQ3shZc2QzApp2oymGvQbzP8eKheVshBHbU4ZYjeXqwSKEn6N", DidRejection.UNSUPPORTED_METHOD),
    ("did:plcx:ewvi7nxzyoun6zhxrhs64oiz", DidRejection.UNSUPPORTED_METHOD),
    ("did:example:" + "a" * 2036, DidRejection.UNSUPPORTED_METHOD),
    ("did:example:" + "a" * 2037, DidRejection.TOO_LONG),
    ("é" * 2049, DidRejection.TOO_LONG),
    ("é" * 2048, DidRejection.NOT_A_DID),
]


@pytest.mark.parametrize(("text", "rejection"), CASES)
def test_each_text_is_a_did_or_has_its_reason(text: str, rejection: DidRejection | None) -> None:
    assert check_did(text) == rejection


def test_a_column_gets_the_same_reasons() -> None:
    assert check_column([text for text, _ in CASES]) == [rejection for _, rejection in CASES]
    assert check_column([None]) == [DidRejection.EMPTY]
    assert check_column([]) == []


did_like = st.one_of(
    st.text(max_size=60),
    st.from_regex(r"\A\s?did:(plc|web|[a-z]{0,4}):[a-zA-Z0-9._:%\-]{0,40}\s?\Z"),
    st.from_regex(r"\Adid:plc:[a-z2-7]{23,25}\Z"),
    st.from_regex(r"\Adid:web:([a-z0-9\-]{0,5}\.){0,4}[a-z0-9]{0,4}\Z"),
)


@settings(deadline=None)
@given(st.lists(did_like, max_size=20))
def test_both_forms_of_the_rule_agree(entries: list[str]) -> None:
    assert check_column(list(entries)) == [check_did(entry) for entry in entries]


@settings(deadline=None)
@given(st.text(alphabet=" \t\n\u00a0\u200b\ufeff\u2003\x1c\x85dié:", max_size=20))
def test_both_forms_strip_the_same(text: str) -> None:
    frame = pl.DataFrame({"entry": [text]}).select(stripped(pl.col("entry")))

    assert frame.item() == text.strip(" \t\n\r\f\v\u00a0\u200b\ufeff")


def _vectors(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line and not line.startswith("#")]


def test_the_protocols_invalid_dids_are_refused(shared_dir: Path) -> None:
    invalid = _vectors(shared_dir / "vectors/interop/syntax/did_syntax_invalid.txt")

    assert len(invalid) > 10
    for text in invalid:
        # One of them is a line of more than 2,048 characters, which has a reason of its own.
        expected = DidRejection.TOO_LONG if len(text) > 2048 else DidRejection.NOT_A_DID
        assert check_did(text) is expected, text[:80]


def test_the_protocols_valid_dids_are_dids_but_few_are_accounts(shared_dir: Path) -> None:
    valid = _vectors(shared_dir / "vectors/interop/syntax/did_syntax_valid.txt")

    accepted = [text for text in valid if check_did(text) is None]
    assert accepted == ["did:plc:7iza6de2dwap2sbkpav7c6c6", "did:web:example.com"]
    # A host with a port is allowed by the syntax, and by the AT Protocol for development alone.
    assert {check_did(text) for text in valid} == {
        None,
        DidRejection.UNSUPPORTED_METHOD,
        DidRejection.BAD_WEB,
    }
