"""DIDs against the rules of their specifications, gone through letter by letter."""

from __future__ import annotations

import re
from string import ascii_letters, ascii_lowercase, digits

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.dids.syntax import WHITESPACE, DidRejection, check_did, rejection_of
from backfill_dagster.records import syntax

ALPHANUMERIC = set(ascii_letters + digits)


def is_did(text: str) -> bool:
    """Tell whether a text is a DID of any method (https://atproto.com/specs/did#at-protocol-did-identifier-syntax)."""
    parts = text.split(":", 2)
    if len(parts) < 3 or parts[0] != "did" or len(text) > 2048:
        return False
    _, method, identifier = parts
    return (
        method != ""
        and set(method) <= set(ascii_lowercase)
        and identifier != ""
        and set(identifier) <= ALPHANUMERIC | set("._:%-")
        and identifier[-1] not in ":%"
    )


def is_host(text: str) -> bool:
    labels = text.split(".")
    return (
        len(labels) > 1
        and len(text) <= 253
        and all(1 <= len(label) <= 63 and set(label) <= ALPHANUMERIC | {"-"} for label in labels)
        and not any(label.startswith("-") or label.endswith("-") for label in labels)
        and labels[-1][0] in ascii_letters
    )


def slow_rejection(text: str) -> DidRejection | None:
    while text and text[0] in WHITESPACE:
        text = text[1:]
    while text and text[-1] in WHITESPACE:
        text = text[:-1]
    if not text:
        return DidRejection.EMPTY
    if len(text) > 2048:
        return DidRejection.TOO_LONG
    if not is_did(text):
        return DidRejection.NOT_A_DID
    _, method, identifier = text.split(":", 2)
    if method == "plc":
        is_plc = len(identifier) == 24 and set(identifier) <= set(ascii_lowercase + "234567")
        return None if is_plc else DidRejection.BAD_PLC
    if method == "web":
        return None if is_host(identifier) else DidRejection.BAD_WEB
    return DidRejection.UNSUPPORTED_METHOD


base32 = st.text(alphabet=ascii_lowercase + "234567", min_size=23, max_size=25)
labels = st.from_regex(r"\A[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\Z") | st.sampled_from(
    ["a" * 63, "com", "1"]
)
hosts = st.lists(labels, min_size=2, max_size=6).map(".".join)
mostly_lawful = st.one_of(
    base32.map("did:plc:".__add__),
    hosts.map("did:web:".__add__),
    st.from_regex(r"\Adid:[a-z]{1,8}:[a-zA-Z0-9._:%-]{0,30}[a-zA-Z0-9._-]\Z"),
    st.integers(2030, 2060).map(lambda length: "did:example:" + "a" * (length - 12)),
)


LETTERS = [
    "",
    "a",
    "z",
    "2",
    "7",
    "A",
    "1",
    "8",
    ":",
    "%",
    ".",
    "-",
    "_",
    "/",
    "#",
    "?",
    "\n",
    "é",
    " ",
    "\0",
]


@st.composite
def nearly(draw: st.DrawFn) -> str:
    """Draw a DID in which one letter is another, or missing, or one too many: often the last."""
    text = draw(mostly_lawful)
    place = draw(st.integers(0, len(text)) | st.just(len(text)))
    letter = draw(st.sampled_from(LETTERS))
    return text[:place] + letter + text[place + draw(st.integers(0, 1)) :]


endings = st.sampled_from(["", "", ":", "%", ".", "a"])
around = st.sampled_from(["", "", "", " ", "\n", "\ufeff", "\u2003"])
entries = st.tuples(around, mostly_lawful | nearly() | st.text(max_size=20), endings, around).map("".join)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(entries, min_size=1, max_size=8))
def test_sources_are_sorted_by_the_rules_of_dids(texts: list[str]) -> None:
    expected = [slow_rejection(text) for text in texts]

    column = pl.DataFrame({"entry": texts}).select(rejection_of(pl.col("entry"))).to_series().to_list()

    assert [check_did(text) for text in texts] == expected
    assert column == [None if reason is None else reason.value for reason in expected]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.tuples(mostly_lawful | nearly(), endings).map("".join))
def test_the_dids_in_records_are_those_of_any_method(text: str) -> None:
    whole = re.fullmatch(syntax.DID, text) is not None and len(text) <= syntax.MAX_DID_BYTES

    assert whole == is_did(text)
