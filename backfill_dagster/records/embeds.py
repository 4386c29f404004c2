"""Embeds of posts: pictures, videos, link cards, other records, or a record beside one of the others.

An issue names a field by its place in its own lexicon, whether it stands in the embed or in the media of an
`app.bsky.embed.recordWithMedia`. Embeds of unknown type keep their type and their JSON.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import polars as pl

from backfill_dagster.records.blobs import blob_cid
from backfill_dagster.records.fields import (
    Map,
    Note,
    Value,
    read_map,
    read_present,
    read_text,
    spread,
    text_series,
    texts_series,
)
from backfill_dagster.records.issues import FieldProblem, Issues, problem_of
from backfill_dagster.records.record_json import json_series, to_json

_RECORD = "app.bsky.embed.record"
_RECORD_WITH_MEDIA = "app.bsky.embed.recordWithMedia"
_IMAGES = "app.bsky.embed.images"
_GALLERY = "app.bsky.embed.gallery"
_GALLERY_IMAGE = "app.bsky.embed.gallery#image"
_VIDEO = "app.bsky.embed.video"
_EXTERNAL = "app.bsky.embed.external"


@dataclass(slots=True)
class _Embed:
    """What one embed says; its three lists have one element for each image or video."""

    type: str | None
    json: bytes
    media_types: list[str | None]
    alt_texts: list[str | None]
    blob_cids: list[str | None]
    quoted: Map | None = None
    external_uri: str | None = None


@dataclass(frozen=True, slots=True)
class Embeds:
    """What the embeds of some records say: columns, and the reference in each to the record that it quotes."""

    columns: dict[str, pl.Series]
    quoted: list[Map | None]


def read_embeds(records: list[Map], issues: Issues) -> Embeds:
    """Read the columns of posts that come from the field `embed`, but for the references of what it quotes."""
    rows, values = read_present(records, "embed", dict, FieldProblem.NOT_A_MAP, issues)
    embeds = [_read_embed(value, partial(issues.add, row)) for row, value in zip(rows, values, strict=True)]

    def column(of_embeds: Iterable[Value | None]) -> list[Value | None]:
        return spread(of_embeds, rows, len(records))

    columns = {
        "embed_type": text_series(column(embed.type for embed in embeds)),
        "embed": json_series(column(embed.json for embed in embeds)),
        "external_uri": text_series(column(embed.external_uri for embed in embeds)),
        "media_types": texts_series(column(embed.media_types for embed in embeds)),
        "alt_texts": texts_series(column(embed.alt_texts for embed in embeds)),
        "blob_cids": texts_series(column(embed.blob_cids for embed in embeds)),
    }
    return Embeds(columns, column(embed.quoted for embed in embeds))


def _read_embed(value: Map, note: Note) -> _Embed:
    embed = _Embed(read_text(value, "$type", "embed.$type", note), to_json(value), [], [], [])
    if embed.type == _RECORD:
        embed.quoted = read_map(value, "record", "embed.record", note)
    elif embed.type == _RECORD_WITH_MEDIA:
        record = read_map(value, "record", "embed.record", note)
        if record is not None:
            embed.quoted = read_map(record, "record", "embed.record", note)
        media = read_map(value, "media", "embed.media", note)
        if media is not None:
            _read_media(media, read_text(media, "$type", "embed.media.$type", note), embed, note)
    else:
        _read_media(value, embed.type, embed, note)
    return embed


def _read_media(media: Map, kind: str | None, embed: _Embed, note: Note) -> None:
    if kind == _IMAGES:
        _read_images(media, "images", embed, note)
    elif kind == _GALLERY:
        _read_images(media, "items", embed, note)
    elif kind == _VIDEO:
        _add_blob(media, "video", "embed.video", embed, note)
        embed.alt_texts.append(read_text(media, "alt", "embed.alt", note) if "alt" in media else None)
    elif kind == _EXTERNAL:
        external = read_map(media, "external", "embed.external", note)
        if external is not None:
            embed.external_uri = read_text(external, "uri", "embed.external.uri", note)


def _read_images(media: Map, key: str, embed: _Embed, note: Note) -> None:
    path = f"embed.{key}"
    items = media.get(key)
    if type(items) is not list:
        note(path, problem_of(media, key, FieldProblem.NOT_A_LIST))
        return
    for item in items:
        if type(item) is not dict:
            note(path, FieldProblem.BAD_ELEMENT)
        elif key == "items" and item.get("$type") != _GALLERY_IMAGE:
            # The items of a gallery are an open union: other kinds stay in the JSON.
            if type(item.get("$type")) is not str:
                note(path, FieldProblem.BAD_ELEMENT)
        else:
            _add_blob(item, "image", f"{path}.image", embed, note)
            embed.alt_texts.append(read_text(item, "alt", f"{path}.alt", note))


def _add_blob(parent: Map, key: str, path: str, embed: _Embed, note: Note) -> None:
    blob = parent.get(key)
    if type(blob) is not dict:
        note(path, problem_of(parent, key, FieldProblem.NOT_A_BLOB))
        embed.blob_cids.append(None)
        embed.media_types.append(None)
        return
    embed.blob_cids.append(blob_cid(blob, path, note))
    embed.media_types.append(read_text(blob, "mimeType", f"{path}.mimeType", note))
