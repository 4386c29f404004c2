"""Where DIDs stand in text and in blocks of DAG-CBOR, and how one is made unreadable there.

A withdrawn account is also named by others: they follow it, answer it, mention it. Their records stay, with the
DID masked: every letter and digit of its identifier becomes `x`, so that it is still a DID in form, no length
and no facet's offset changes, and all masked accounts look alike. A masked block no longer hashes to its CID,
which stays that of the record as its author signed it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    # Tells of a DID, in the form of `canonical_did`, whether it is a purged one.
    IsPurged = Callable[[str], bool]

# What a purged DID becomes, alone or as an AT-URI's authority: there is no telling one from another.
MASKED_DID = r"^(?:at://)?did:(?:plc:x{24}|web:[x.-]+)(?:/|$)"

# In the addresses of web pages the colons are often percent-encoded.
_COLON = r"(?::|%3[Aa])"
_PLC = rf"did{_COLON}plc{_COLON}[a-z2-7]{{24}}"
_WEB = rf"did{_COLON}web{_COLON}[A-Za-z0-9.-]+"
# What can be a DID that is masked, in any text; as Polars' expressions have it, too.
SPELLED_DID = f"{_PLC}|{_WEB}"
_DID = re.compile(rf"(?P<plc>{_PLC})|(?P<web>{_WEB})")
_PLC_BYTES = re.compile(_PLC.encode())
_WEB_BYTES = re.compile(_WEB.encode())
_METHOD = re.compile(rf"did{_COLON}[a-z]+{_COLON}")
# May follow a host name in prose, and ends none.
_PUNCTUATION = ".-"

# CBOR's major types: what the upper three bits of a head say (RFC 8949, section 3.1).
_BYTES, _TEXT, _ARRAY, _MAP, _TAG = 2, 3, 4, 5, 6


def canonical_did(did: str) -> str:
    """Return the one spelling by which a DID is known here: host names do not differ by case."""
    plain = re.sub("%3[Aa]", ":", did) if "%" in did else did
    return plain.lower() if plain.startswith("did:web:") else plain


def names_purged(text: str, is_purged: IsPurged) -> bool:
    """Tell whether a text names a purged DID."""
    return mask_text(text, is_purged) != text


def mask_text(text: str, is_purged: IsPurged) -> str:
    """Return the text with every purged DID masked; of the same length."""

    def masked(match: re.Match[str]) -> str:
        whole = match.group()
        did = whole if match["plc"] else whole.rstrip(_PUNCTUATION)
        return _masked(did) + whole[len(did) :] if is_purged(canonical_did(did)) else whole

    return _DID.sub(masked, text)


def may_name_purged(content: bytes, is_purged: IsPurged, web_lengths: Collection[int]) -> bool:
    """Tell whether bytes seem to name a purged DID; `web_lengths` are the lengths of the purged did:web.

    In CBOR the byte after a text can look like one more letter of it. So what only begins like a purged did:web
    seems to be it; `mask_block` looks closer.
    """
    plc = {match.group() for match in _PLC_BYTES.finditer(content)}
    if any(is_purged(canonical_did(did.decode())) for did in plc):
        return True
    return any(True for _ in _purged_beginnings(content, is_purged, web_lengths))


def mask_block(block: bytes, is_purged: IsPurged, web_lengths: Collection[int]) -> bytes:
    """Return a block with every purged DID masked; of the same length, and the same block if it names none."""
    if not may_name_purged(block, is_purged, web_lengths):
        return block
    try:
        spans = list(_string_spans(block))
    except ValueError:
        return _mask_bytes(block, is_purged, web_lengths)
    content = bytearray(block)
    for start, end in spans:
        # Bytes that are no UTF-8 come back out as they went in.
        text = block[start:end].decode("utf-8", "surrogateescape")
        content[start:end] = mask_text(text, is_purged).encode("utf-8", "surrogateescape")
    return bytes(content)


def _mask_bytes(content: bytes, is_purged: IsPurged, web_lengths: Collection[int]) -> bytes:
    """Mask whatever looks like a purged DID in bytes of no known form."""
    looks = {
        *(match.group() for match in _PLC_BYTES.finditer(content)),
        *_purged_beginnings(content, is_purged, web_lengths),
    }
    for found in looks:
        if is_purged(canonical_did(found.decode())):
            content = content.replace(found, _masked(found.decode()).encode())
    return content


def _purged_beginnings(content: bytes, is_purged: IsPurged, web_lengths: Collection[int]) -> Iterator[bytes]:
    """Yield what would be a purged did:web if it ended where its length says."""
    if not web_lengths:
        return
    for found in {match.group() for match in _WEB_BYTES.finditer(content)}:
        # A percent-encoded colon is two characters longer.
        longer = 2 * found.count(b"%")
        for length in web_lengths:
            beginning = found[: length + longer]
            if is_purged(canonical_did(beginning.decode())):
                yield beginning


def _masked(did: str) -> str:
    method = _METHOD.match(did)
    assert method is not None  # noqa: S101  the caller found it by a pattern that begins so
    return method.group() + re.sub("[A-Za-z0-9]", "x", did[method.end() :])


def _string_spans(block: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the contents of the texts and byte strings of one CBOR item stand: start and end.

    Raises ValueError if the block is not one item of definite lengths.
    """
    size = len(block)
    position = 0
    owed = 1
    while owed:
        if owed > size - position:
            raise ValueError("the item is not whole")
        head = block[position]
        position += 1
        major, argument = head >> 5, head & 0x1F
        if argument > 23:
            if argument > 27:
                raise ValueError("a length is left open")
            end = position + (1 << argument - 24)
            argument = int.from_bytes(block[position:end])
            position = end
        if major == _TAG:
            # It belongs to the item that follows.
            continue
        owed -= 1
        if major in (_ARRAY, _MAP):
            owed += argument * 2 if major == _MAP else argument
        elif major in (_BYTES, _TEXT):
            yield position, position + argument
            position += argument
    if position != size:
        raise ValueError("the block does not end with its item")
