"""What records point at: a record by a strong reference (a map of `uri` and `cid`), an account by its DID."""

from dataclasses import dataclass

import polars as pl

from backfill_dagster.records import syntax
from backfill_dagster.records.fields import Parents, read_texts, text_series
from backfill_dagster.records.issues import Issues, Problem


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
    otherwise: Problem


_AT_URI = _Identifier(syntax.whole(syntax.AT_URI), syntax.MAX_AT_URI_BYTES, Problem.NOT_AN_AT_URI)
_CID = _Identifier(syntax.whole(syntax.CID), syntax.MAX_CID_BYTES, Problem.NOT_A_CID)
_DID = _Identifier(syntax.whole(syntax.DID), syntax.MAX_DID_BYTES, Problem.NOT_A_DID)


def read_references(parents: Parents, path: str, issues: Issues) -> References:
    """Read strong references. A URI whose authority is a handle is kept; its DID is null, and named."""
    uri = read_uris(parents, path, issues)
    cid = _read_identifiers(parents, "cid", f"{path}.cid", _CID, issues)
    # at: // authority / collection / rkey
    parts = pl.col("uri").str.splitn("/", 5).struct
    target = pl.DataFrame({"uri": uri}).select(did=parts.field("field_2"), collection=parts.field("field_3"))
    is_handle = ~target["did"].str.starts_with("did:")
    if is_handle.any():
        for row in is_handle.arg_true():
            issues.add(row, f"{path}.uri", Problem.NO_DID)
        target = target.with_columns(did=pl.when(~is_handle).then(pl.col("did")))
    return References(uri=uri, cid=cid, did=target["did"], collection=target["collection"])


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
    text = pl.col("text")
    matches = text.str.contains(identifier.pattern) & (text.str.len_bytes() <= identifier.max_bytes)
    is_other = pl.DataFrame({"text": values}).select(~matches).to_series()
    if not is_other.any():
        return values
    others = is_other.arg_true()
    for row in others:
        issues.add(row, path, identifier.otherwise)
    return values.scatter(others, None)
