"""What the accounts of peculiar roles write besides: records that clients wrote and readers stumble over."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from backfill_dagster.sandbox.dag_cbor import Raw, blob_cid, cid_of, cid_text
from backfill_dagster.sandbox.population import Account, Role
from backfill_dagster.sandbox.tid import tid
from backfill_dagster.sandbox.written import (
    FOLLOW,
    LIKE,
    POST,
    PROFILE,
    Defect,
    Written,
    iso_milliseconds,
    microseconds,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_CLOCK = 33
_NOON = microseconds(datetime(2024, 10, 5, 12, tzinfo=UTC))
_MINUTE = 60_000_000

_SUBJECT = {
    "uri": "at://did:plc:z72i7hdynmk6r22z27h6tvur/app.bsky.feed.post/3l5uvwqz2fk2k",
    "cid": cid_text(cid_of(b"\xa0")),
}


def odd_records(account: Account) -> list[Written]:
    """Return the records that an account's role adds; none for most roles."""
    write = _WRITERS.get(account.role)
    return [] if write is None else write()


class _Notebook:
    """Gives each record that is written into it a key and, unless it brings its own, a date."""

    def __init__(self) -> None:
        self.records: list[Written] = []

    def add(self, collection: str, rkey: str | None = None, /, **fields: Any) -> None:
        self.add_value(collection, {"$type": collection, **fields}, rkey)

    def add_value(self, collection: str, value: dict[str, Any], rkey: str | None = None) -> None:
        created = self._now()
        value = {**value, "createdAt": iso_milliseconds(created)}
        self.records.append(Written(collection, rkey or tid(created, _CLOCK), value, created))

    def add_dated(self, value: dict[str, Any], created: int | None) -> None:
        self.records.append(Written(POST, tid(self._now(), _CLOCK), {"$type": POST, **value}, created))

    def add_defect(self, collection: str, rkey: str | None, value: Any, defect: Defect) -> None:
        key = rkey or tid(self._now(), _CLOCK)
        self.records.append(Written(collection, key, value, None, defect))

    def _now(self) -> int:
        return _NOON + len(self.records) * _MINUTE


def _at(*fields: int) -> int:
    year, month, day, hour, minute, second, microsecond = (*fields, 0, 0, 0, 0)[:7]
    return microseconds(datetime(year, month, day, hour, minute, second, microsecond, tzinfo=UTC))


# What a client wrote, and the instant it means, if it means one. Where ISO 8601 leaves that open, it is what
# the official software makes of it: ECMAScript's `Date` on a host whose clock runs in UTC.
DATES: tuple[tuple[Any, int | None], ...] = (
    ("0001-01-01T00:00:00.000Z", _at(1, 1, 1)),
    ("1970-01-01T00:00:00.000Z", 0),
    ("2099-06-01T12:00:00.000Z", _at(2099, 6, 1, 12)),
    ("9999-12-31T23:59:59.999Z", _at(9999, 12, 31, 23, 59, 59, 999_000)),
    ("2024-10-05T12:00:00.000", _at(2024, 10, 5, 12)),
    ("2024-10-05T12:00:00.000-00:00", _at(2024, 10, 5, 12)),
    ("2024-10-05T24:00:00.000Z", _at(2024, 10, 6)),
    ("2024-10-05T12:00:00.123456789Z", _at(2024, 10, 5, 12, 0, 0, 123_456)),
    ("2024-10-05T12:00:00Z", _at(2024, 10, 5, 12)),
    ("2024-10-05T12:00:00.5+05:30", _at(2024, 10, 5, 6, 30, 0, 500_000)),
    # Offsets that carry a record over an end of the study window, each way.
    ("2024-09-27T03:00:00.000+09:00", _at(2024, 9, 26, 18)),
    ("2024-09-26T22:00:00.000-07:00", _at(2024, 9, 27, 5)),
    ("2024-12-02T08:00:00.000+09:00", _at(2024, 12, 1, 23)),
    # The window's ends, which belong to it, and their neighbours.
    ("2024-09-26T23:59:59.999Z", _at(2024, 9, 26, 23, 59, 59, 999_000)),
    ("2024-09-27T00:00:00.000Z", _at(2024, 9, 27)),
    ("2024-12-02T00:00:00.000Z", _at(2024, 12, 2)),
    ("2024-12-02T00:00:00.001Z", _at(2024, 12, 2, 0, 0, 0, 1000)),
    # The rule of halves: the 15th, the 16th, and a December that ends in another year.
    ("2024-08-15T23:59:59.999Z", _at(2024, 8, 15, 23, 59, 59, 999_000)),
    ("2024-08-16T00:00:00.000Z", _at(2024, 8, 16)),
    ("2024-12-20T00:00:00.000Z", _at(2024, 12, 20)),
    ("2024-02-30T00:00:00.000Z", None),
    ("2024-10-05T12:61:00.000Z", None),
    ("yesterday", None),
    ("", None),
    (1_728_129_600_000, None),
    (None, None),
    ({"$type": "date"}, None),
    ([], None),
)


def _odd_dates() -> list[Written]:
    book = _Notebook()
    book.add_dated({"text": "no date at all"}, None)
    for written, created in DATES:
        book.add_dated({"text": f"dated {written!r}", "createdAt": written}, created)
    for collection, fields in ((LIKE, {"subject": _SUBJECT}), (FOLLOW, {"subject": "did:web:example.com"})):
        value = {"$type": collection, **fields, "createdAt": "0001-01-01T00:00:00Z"}
        book.records.append(Written(collection, tid(_NOON - 1, _CLOCK), value, _at(1, 1, 1)))
    return book.records


def _unknown_lexicons() -> list[Written]:
    book = _Notebook()
    link = cid_of(b"\xa0")
    recipe = "com.example.recipe.entry"
    nested: dict[str, Any] = {"a": [1, -1, None, True, {"b": {}}], "": "empty key", "ключ": [[[]]]}
    book.add(recipe, title="soup", nested=nested)
    book.add(recipe, "with:colon_and~tilde.dot-dash", small=-(2**53), large=2**63 - 1)
    # 36 bytes that look like a CID but are not a link; and both side by side.
    book.add(recipe, picture=bytes(link), ref=link, short=b"\x00\xff", nothing=b"")
    book.add("fyi.unravel.frontpage.post", title="a link", url="https://example.com/")
    book.add("app.bsky.feed.generator", "my-feed", did="did:web:feeds.example.com", displayName="Feed")
    book.add("chat.bsky.actor.declaration", "self", allowIncoming="none")
    book.add(POST, text="fields of another app", bytesLikeALink=bytes(link), **{"com.example.ref": link})
    return book.records


def _unicode() -> list[Written]:
    book = _Notebook()
    texts = (
        "four bytes: 🦋 𐐷𐌰 👩‍👩‍👧‍👦 𐍈",
        "zero \u0000 inside",
        "right to left: مرحبا بالعالم \u202eabc\u202c שלום",
        r"an escaped surrogate: \ud83d\ude00 and alone \ud800",
        "combining: e\u0301 versus \u00e9; Å versus \u212b",
        "controls: \t\r\n\u0007\u007f\u0085\u2028\u2029 \ufeff \ufffd \uffff",
        "quotes \" ' ` \\ / <b>&amp;</b> ${x} {{y}} %s \x1b[31m",
        "",
        "x" * 3000,
        "界" * 1000,
    )
    for text in texts:
        book.add(POST, text=text, langs=["en"])
    spoken = "🦋 see "
    shown = "example.com/日本"
    index = {"byteStart": len(spoken.encode()), "byteEnd": len((spoken + shown).encode())}
    feature = {"$type": "app.bsky.richtext.facet#link", "uri": "https://example.com/%E6%97%A5%E6%9C%AC"}
    book.add(POST, text=spoken + shown, facets=[{"index": index, "features": [feature]}])
    # Indexes that lie outside of the text, and inside one character.
    index = {"byteStart": 1, "byteEnd": 9999}
    book.add(POST, text="🦋", facets=[{"index": index, "features": [feature]}], langs=["und", "zh-Hant-TW"])
    return book.records


def _legacy_blobs() -> list[Written]:
    book = _Notebook()
    old = {"cid": cid_text(blob_cid(bytes(range(32)))), "mimeType": "image/jpeg"}
    new = {"$type": "blob", "ref": blob_cid(bytes(32)), "mimeType": "image/png", "size": 1234}
    images = "app.bsky.embed.images"
    book.add(POST, text="an old blob", embed={"$type": images, "images": [{"alt": "old", "image": old}]})
    pair = [{"alt": "old", "image": old}, {"alt": "", "image": new}]
    book.add(POST, text="old and new", embed={"$type": images, "images": pair})
    external = {"uri": "https://example.com/", "title": "t", "description": "d", "thumb": old}
    book.add(POST, text="an old thumb", embed={"$type": "app.bsky.embed.external", "external": external})
    return book.records


def _floats() -> list[Written]:
    book = _Notebook()
    book.add(POST, text="floats", score=0.5, zero=0.0, large=1.5e300, third=1 / 3)
    image = {
        "alt": "",
        "image": {"$type": "blob", "ref": blob_cid(bytes(32)), "mimeType": "image/png", "size": 9},
    }
    image["aspectRatio"] = {"width": 1.5, "height": 1.0}
    book.add(POST, text="a float in an embed", embed={"$type": "app.bsky.embed.images", "images": [image]})
    book.add(LIKE, subject=_SUBJECT, weight=2.0)
    # Decoders that write JSON themselves refuse a float, and others take this byte string for a link.
    book.add(POST, text="a float beside a byte string", score=0.25, digest=bytes(cid_of(b"\xa0")))
    return book.records


def _wrong_type_names() -> list[Written]:
    book = _Notebook()
    book.add_value(POST, {"$type": LIKE, "text": "says that it is a like"})
    book.add_value(POST, {"text": "does not say what it is"})
    book.add_value(LIKE, {"$type": POST, "text": "a post among the likes"})
    book.add_value(FOLLOW, {"$type": "app.bsky.graph.block", "subject": "did:web:example.com"})
    book.add_value(LIKE, {"$type": 7, "subject": _SUBJECT})
    return book.records


def _wrong_field_types() -> list[Written]:
    book = _Notebook()
    for wrong in (
        {"langs": "en"},
        {"langs": [None, 3]},
        {"langs": None},
        {"tags": [1, "a"]},
        {"tags": {"a": 1}},
    ):
        book.add(POST, text="wrong lists", **wrong)
    for text in (5, None, ["a"], b"bytes"):
        book.add(POST, text=text)
    for field in ("facets", "embed", "labels", "entities"):
        values: tuple[Any, ...] = ("text", 7, [], {}, None)
        for value in values:
            book.add(POST, text=f"wrong {field}", **{field: value})
    book.add(POST, text="reply is text", reply="at://did:web:example.com/app.bsky.feed.post/1")
    book.add(POST, text="reply without a root", reply={"parent": _SUBJECT})
    index = {"byteStart": "0", "byteEnd": None}
    book.add(POST, text="wrong facets", facets=[{"index": index, "features": "x"}, None, 3])
    for subject in (
        "at://not-a-strong-ref",
        None,
        7,
        {"uri": 7, "cid": None},
        {"uri": "nonsense", "cid": "x"},
    ):
        book.add(LIKE, subject=subject)
    book.add(LIKE)
    for wrong_subject in (7, None, {"did": "did:web:example.com"}, "not a did", _SUBJECT):
        book.add(FOLLOW, subject=wrong_subject)
    book.add(PROFILE, "second", displayName=7, description=None, labels="!no-unauthenticated", avatar="x")
    book.add(PROFILE, "third", banner={}, pinnedPost=_SUBJECT["uri"], joinedViaStarterPack={"uri": 7})
    return book.records


def _invalid_utf8() -> list[Written]:
    book = _Notebook()
    book.add(POST, text="before the invalid one")
    # A lone surrogate, as software with UTF-16 strings writes it.
    text = Raw(b"\x65ab\xed\xa0\x80")
    value = {"$type": POST, "text": text, "createdAt": iso_milliseconds(_NOON)}
    book.add_defect(POST, None, value, Defect.UNDECODABLE)
    book.add(POST, text="after the invalid one")
    return book.records


def _not_records() -> list[Written]:
    book = _Notebook()
    book.add(POST, text="before those that are none")
    for value in (["a", "list"], "text", 7, None):
        book.add_defect(POST, None, value, Defect.NOT_A_MAP)
    book.add_defect(LIKE, None, Raw(b"\xff\xd8\xff raw bytes"), Defect.RAW_CODEC)
    return book.records


def _shared_blocks() -> list[Written]:
    book = _Notebook()
    for collection, fields in ((POST, {"text": "the same"}), (FOLLOW, {"subject": "did:web:example.com"})):
        book.add(collection, **fields)
        twin = book.records[-1]
        for later in (1, 2):
            book.records.append(twin._replace(rkey=tid(_NOON + later, _CLOCK)))
    return book.records


def _duplicate_likes() -> list[Written]:
    book = _Notebook()
    # Its key is the first of all, its date the last.
    late = {"$type": LIKE, "subject": _SUBJECT, "createdAt": iso_milliseconds(_NOON + 9 * _MINUTE)}
    book.records.append(Written(LIKE, tid(_NOON - 1, _CLOCK), late, _NOON + 9 * _MINUTE))
    undated = {"$type": LIKE, "subject": _SUBJECT, "createdAt": "1970-01-01T00:00:00.000Z"}
    book.records.append(Written(LIKE, tid(_NOON - 2, _CLOCK), undated, 0))
    for _ in range(3):
        book.add(LIKE, subject=_SUBJECT)
    for _ in range(2):
        book.add(FOLLOW, subject="did:web:example.com")
    return book.records


def _odd_keys() -> list[Written]:
    book = _Notebook()
    keys = ("my-own-key", "self", "with:colon_and~tilde.dot-dash", "_", "0", "k" * 512, "3JUI7KD54ZH2Y")
    # 13 characters of the alphabet that are no TID, for their first bit; the first instant; the far future.
    for key in (*keys, "zzzzzzzzzzzzz", "2222222222222", "jzzzzzzzzzzzz"):
        book.add(POST, key, text=f"under {key[:20]}")
    return book.records


def _bad_keys() -> list[Written]:
    book = _Notebook()
    value = {"$type": POST, "text": "unusable key", "createdAt": iso_milliseconds(_NOON)}
    for key in (".", "..", "with space", "slash/ed", "k" * 513):
        book.add_defect(POST, key, value, Defect.BAD_KEY)
    return book.records


_WRITERS: dict[Role, Callable[[], list[Written]]] = {
    Role.ODD_DATES: _odd_dates,
    Role.UNKNOWN_LEXICONS: _unknown_lexicons,
    Role.UNICODE: _unicode,
    Role.LEGACY_BLOBS: _legacy_blobs,
    Role.FLOATS: _floats,
    Role.WRONG_TYPE_NAME: _wrong_type_names,
    Role.WRONG_FIELD_TYPES: _wrong_field_types,
    Role.INVALID_UTF8: _invalid_utf8,
    Role.NOT_RECORDS: _not_records,
    Role.SHARED_BLOCK: _shared_blocks,
    Role.DUPLICATE_LIKES: _duplicate_likes,
    Role.ODD_KEYS: _odd_keys,
    Role.BAD_KEYS: _bad_keys,
}
