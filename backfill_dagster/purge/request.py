"""What is to be purged, as a person gives it: DIDs and URIs of records, in a list or in a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from backfill_dagster.dids.syntax import WHITESPACE, check_did
from backfill_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

_SCHEME = "at://"


class RecordKey(NamedTuple):
    """A record by the three parts of its AT-URI."""

    did: str
    collection: str
    rkey: str


@dataclass(frozen=True, slots=True)
class PurgeRequest:
    """Accounts and single records to purge, each once; false if it names nothing."""

    dids: tuple[str, ...] = ()
    records: tuple[RecordKey, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.dids or self.records)


def read_request(
    dids: Sequence[str] = (), uris: Sequence[str] = (), file: Path | None = None
) -> PurgeRequest:
    """Check what is to be purged; the file has one DID or URI a line, and lines that begin with `#`.

    Raises ConfigError that says where the first fault is. It does not repeat what stands there: the name of
    somebody who asks not to be named would be in the log of the run.
    """
    faults: list[str] = []
    found_dids: list[str] = []
    found_records: list[RecordKey] = []
    for place, text, kind in _entries(dids, uris, file):
        fault = _fault_of_did(text) if kind == "did" else _fault_of_uri(text)
        if fault is not None:
            faults.append(f"{place} {fault}")
        elif kind == "did":
            found_dids.append(text)
        else:
            found_records.append(_record_key(text))
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ConfigError(f"nothing is purged: {faults[0]}{more}")
    return PurgeRequest(tuple(dict.fromkeys(found_dids)), tuple(dict.fromkeys(found_records)))


def _entries(dids: Sequence[str], uris: Sequence[str], file: Path | None) -> Iterator[tuple[str, str, str]]:
    """Yield (where it stands, text, `did` or `uri`)."""
    for number, text in enumerate(dids):
        yield f"dids[{number}]", text.strip(WHITESPACE), "did"
    for number, text in enumerate(uris):
        yield f"uris[{number}]", text.strip(WHITESPACE), "uri"
    for number, line in enumerate(_lines(file) if file else (), start=1):
        text = line.strip(WHITESPACE)
        if text and not text.startswith("#"):
            yield f"line {number} of {file}", text, "uri" if text.startswith(_SCHEME) else "did"


def _lines(file: Path) -> Iterable[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"nothing is purged: {file}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"nothing is purged: {file}: cannot be read: {error}") from None


def _fault_of_did(text: str) -> str | None:
    rejection = check_did(text)
    return None if rejection is None else f"is not the DID of an account ({rejection})"


def _fault_of_uri(text: str) -> str | None:
    if not text.startswith(_SCHEME):
        return "is not an AT-URI: it must begin with at://"
    did, _, path = text.removeprefix(_SCHEME).partition("/")
    if (rejection := check_did(did)) is not None:
        return f"must name its account by a DID, as in the tables' column `uri` ({rejection})"
    collection, _, rkey = path.partition("/")
    if not collection or not rkey:
        return "must name a record, at://<did>/<collection>/<rkey>; to purge an account, give its DID"
    return None


def _record_key(uri: str) -> RecordKey:
    did, collection, rkey = uri.removeprefix(_SCHEME).split("/", 2)
    return RecordKey(did, collection, rkey)
