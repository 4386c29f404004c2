"""Syntax of the identifiers that records carry, as regular expressions for Polars.

Source: the AT Protocol's specifications of DIDs, handles, NSIDs, record keys, AT-URIs, CIDs and TIDs. The engine
of Polars knows no look-around, so that bounds of whole lengths stand apart, below.
"""

DID = r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]"
HANDLE = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)+[a-zA-Z](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
NSID = (
    r"[a-zA-Z](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+"
    r"\.[a-zA-Z][a-zA-Z0-9]{0,62}"
)
# 1 to 512 of these characters, yet neither `.` nor `..`.
RECORD_KEY = (
    r"(?:[a-zA-Z0-9_:~-][a-zA-Z0-9._:~-]{0,511}|\.[a-zA-Z0-9_:~-][a-zA-Z0-9._:~-]{0,510}"
    r"|\.\.[a-zA-Z0-9._:~-]{1,510})"
)
AT_URI = rf"at://(?:{DID}|{HANDLE})(?:/{NSID}(?:/{RECORD_KEY})?)?"
# Any multibase, as text; the Qm... of version 0 is not allowed in records.
CID = r"(?:[a-zA-PR-Z0-9+=][a-zA-Z0-9+=]|Q[a-ln-zA-Z0-9+=])[a-zA-Z0-9+=]{6,}"
TID = r"[2-7a-j][2-7a-z]{12}"

MAX_DID_BYTES = 2048
MAX_NSID_BYTES = 317
MAX_AT_URI_BYTES = 8192
MAX_CID_BYTES = 256


def whole(pattern: str) -> str:
    """Anchor a pattern at both ends of the text."""
    return rf"^(?:{pattern})$"
