"""What records point at: a record by a strong reference (a map of `uri` and `cid`), an account by its DID."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from backfill_dagster.records import syntax
from backfill_dagster.records.fields import Parents, read_texts, spread, text_series
from backfill_dagster.records.issues import FieldProblem, Issues


@dataclass(frozen=True, slots=True)
class References:
    """Columns of text, one row per record: the reference, and what its URI says of its target."""

    uri: pl.Series
    cid: pl.Series
    did: pl.Series
    collection: pl.Series


@dataclass(frozen=True, slots=True)
class _Identifier:
    pattern: str
    max_bytes: int
    otherwise: FieldProblem

    def matches(self, text: pl.Expr) -> pl.Expr:
        return text.str.contains(self.pattern) & (text.str.len_bytes() <= self.max_bytes)


_AT_URI = _Identifier(syntax.whole(syntax.AT_URI), syntax.MAX_AT_URI_BYTES, FieldProblem.NOT_AN_AT_URI)
_CID = _Identifier(syntax.whole(syntax.CID), syntax.MAX_CID_BYTES, FieldProblem.NOT_A_CID)
_DID = _Identifier(syntax.whole(syntax.DID), syntax.MAX_DID_BYTES, FieldProblem.NOT_A_DID)


def _targets(uri: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Return the authority and the collection in AT-URIs; null where there is none."""
    # at: // authority / collection / rkey
    parts = uri.str.splitn("/", 5).struct
    return parts.field("field_2"), parts.field("field_3")


def read_references(parents: Parents, path: str, issues: Issues) -> References:
    """Read strong references. A URI whose authority is a handle is kept; its DID is null, and named."""
    (references,) = read_all_references([(parents, path, issues)])
    return references


def read_all_references(sources: Sequence[tuple[Parents, str, Issues]]) -> list[References]:
    """Read strong references from several places at once: their parents, the path of these, and their issues."""
    read = [_Strings(parents, path) for parents, path, _ in sources]
    uri, cid = pl.col("uri"), pl.col("cid")
    did, collection = _targets(uri)
    strings = pl.DataFrame(
        {
            "uri": text_series([text for each in read for text in each.uris]),
            "cid": text_series([text for each in read for text in each.cids]),
        }
    )
    judged = strings.select(
        "uri",
        "cid",
        did=did,
        collection=collection,
        is_uri=_AT_URI.matches(uri),
        is_cid=_CID.matches(cid),
        # What follows is the authority: a DID, or a handle, which has no colon.
        is_did=uri.str.starts_with("at://did:"),
    )
    if not all(judged[name].all(ignore_nulls=True) for name in ("is_uri", "is_cid", "is_did")):
        judged = judged.with_columns(
            *(pl.when("is_uri").then(name).alias(name) for name in ("uri", "collection", "is_did")),
            did=pl.when("is_uri", "is_did").then("did"),
            cid=pl.when("is_cid").then("cid"),
        )
    found = []
    start = 0
    for each, (parents, path, issues) in zip(read, sources, strict=True):
        part = judged.slice(start, len(parents))
        start += len(parents)
        each.note(part, path, issues)
        found.append(References(part["uri"], part["cid"], part["did"], part["collection"]))
    return found


class _Strings:
    """The strings of strong references, and what is wrong with those that are none."""

    def __init__(self, parents: Parents, path: str) -> None:
        self._rows = [row for row, parent in enumerate(parents) if parent is not None]
        present = [parents[row] for row in self._rows]
        self._uri_issues, self._cid_issues = Issues(), Issues()
        uris = read_texts(present, "uri", f"{path}.uri", self._uri_issues)
        cids = read_texts(present, "cid", f"{path}.cid", self._cid_issues)
        self.uris = spread(uris, self._rows, len(parents))
        self.cids = spread(cids, self._rows, len(parents))

    def note(self, judged: pl.DataFrame, path: str, issues: Issues) -> None:
        """Name what is wrong with each reference, in the order of its fields."""
        issues.add_all(self._uri_issues, self._rows)
        _note(judged["is_uri"], f"{path}.uri", FieldProblem.NOT_AN_AT_URI, issues)
        issues.add_all(self._cid_issues, self._rows)
        _note(judged["is_cid"], f"{path}.cid", FieldProblem.NOT_A_CID, issues)
        _note(judged["is_did"], f"{path}.uri", FieldProblem.NO_DID, issues)


def _note(is_sound: pl.Series, path: str, problem: FieldProblem, issues: Issues) -> None:
    if not is_sound.all(ignore_nulls=True):
        for row in (~is_sound).arg_true():
            issues.add(row, path, problem)


def read_uris(parents: Parents, path: str, issues: Issues) -> pl.Series:
    """Read the AT-URI of each strong reference; what is none becomes null, and is named."""
    return _read_identifiers(parents, "uri", f"{path}.uri", _AT_URI, issues)


def read_dids(parents: Parents, key: str, issues: Issues) -> pl.Series:
    """Read a required field that is a DID; what is none becomes null, and is named."""
    return _read_identifiers(parents, key, key, _DID, issues)


def _read_identifiers(
    parents: Parents, key: str, path: str, identifier: _Identifier, issues: Issues
) -> pl.Series:
    values = text_series(read_texts(parents, key, path, issues))
    if values.null_count() == len(values):
        return values
    is_other = pl.DataFrame({"text": values}).select(~identifier.matches(pl.col("text"))).to_series()
    if not is_other.any():
        return values
    others = is_other.arg_true()
    for row in others:
        issues.add(row, path, identifier.otherwise)
    return values.scatter(others, None)
