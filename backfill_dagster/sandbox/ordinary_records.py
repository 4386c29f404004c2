"""What ordinary accounts write: posts, replies, likes, reposts, follows, blocks, a profile and a little else.

The mix, the dates and the shapes follow what real repositories hold. References lead to posts of other
accounts of the sandbox, or to accounts outside of it. To know a post of another account without generating
that account's whole repository, each has *anchors*: plain posts that depend on nothing but the account.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import libipld

from backfill_dagster.sandbox.dag_cbor import blob_cid, cid_of, cid_text, encode
from backfill_dagster.sandbox.population import Role
from backfill_dagster.sandbox.tid import tid
from backfill_dagster.sandbox.vocabulary import EMOJI, LANGUAGES, NAMES, SITES, TAGS, WORDS
from backfill_dagster.sandbox.written import (
    BLOCK,
    FOLLOW,
    LIKE,
    POST,
    PROFILE,
    REPOST,
    Written,
    instant_of,
    iso_milliseconds,
    microseconds,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.sandbox.population import Account, Population

WINDOW_START = microseconds(datetime(2024, 9, 27, tzinfo=UTC))
WINDOW_END = microseconds(datetime(2024, 12, 2, tzinfo=UTC))
_FIRST = microseconds(datetime(2023, 1, 1, tzinfo=UTC))
_LAST = microseconds(datetime(2025, 6, 1, tzinfo=UTC))
_IN_WINDOW = 0.75

# Clock ids of the keys' TIDs: apart, so that no two records of an account can meet on one key.
_ANCHOR_CLOCK = 11
_RECORD_CLOCK = 22

_MOST_ANCHORS = 32
_PEERS = 40
_POPULAR = 256
_SANDBOX_SHARE = 0.6
_OUTSIDERS = 16_384

# Upper bounds of the kinds' shares of the records that are no anchors. With these, which are all posts, an
# account has about 58 % likes, 17 % posts, a third of them replies, 14 % follows, 8 % reposts and 2 % blocks.
_LIKES, _POSTS, _FOLLOWS, _REPOSTS, _BLOCKS = 0.60, 0.735, 0.88, 0.965, 0.988
_REPLIES_OF_POSTS = 0.42


class Reference(NamedTuple):
    """A record that another one can refer to; the CID as text."""

    uri: str
    cid: str

    def strong(self) -> dict[str, str]:
        """Write it as a `com.atproto.repo.strongRef`."""
        return {"uri": self.uri, "cid": self.cid}


class OrdinaryRecords:
    """The records that accounts of one population write, apart from what is peculiar to their roles."""

    def __init__(self, population: Population) -> None:
        self._population = population
        self._anchor_references = lru_cache(maxsize=_POPULAR)(self._find_anchor_references)

    def of(self, account: Account) -> Iterator[Written]:
        """Generate the records of one account; equal for equal accounts, whatever was generated before."""
        if account.role is Role.EMPTY or not account.has_repo:
            return
        yield from _anchors(account)
        yield _profile(account, self._anchor_references(account))
        rng = Random(f"sandbox records {account.seed} {account.did}")
        times = _times(rng, account.size - 1 - _anchor_count(account))
        peers = self._peers(account, rng)
        yield from _Author(account, rng, peers, self._references(peers, rng)).write(times)

    def _peers(self, account: Account, rng: Random) -> list[Account]:
        popular = [peer for peer in self._population.accounts[:_POPULAR] if peer.has_repo and peer != account]
        return rng.sample(popular, min(_PEERS, len(popular)))

    def _references(self, peers: list[Account], rng: Random) -> list[Reference]:
        """List posts of the peers, in an order of chance."""
        found = [reference for peer in peers for reference in self._anchor_references(peer)]
        rng.shuffle(found)
        return found

    def _find_anchor_references(self, account: Account) -> tuple[Reference, ...]:
        return tuple(
            Reference(
                f"at://{account.did}/{anchor.collection}/{anchor.rkey}",
                cid_text(cid_of(encode(anchor.value))),
            )
            for anchor in _anchors(account)
        )


def _times(rng: Random, count: int) -> list[int]:
    """Draw times in microseconds, ascending and distinct, most of them in the study window."""
    before, after = WINDOW_START - _FIRST, _LAST - WINDOW_END
    drawn = []
    for _ in range(count):
        if rng.random() < _IN_WINDOW:
            drawn.append(WINDOW_START + int(rng.random() * (WINDOW_END - WINDOW_START)))
        else:
            place = int(rng.random() * (before + after))
            drawn.append(_FIRST + place if place < before else WINDOW_END + place - before)
    drawn.sort()
    for position in range(1, count):
        if drawn[position] <= drawn[position - 1]:
            drawn[position] = drawn[position - 1] + 1
    return drawn


def _anchor_count(account: Account) -> int:
    if account.role is Role.EMPTY or not account.has_repo:
        return 0
    return min(_MOST_ANCHORS, account.size // 10)


def _anchors(account: Account) -> Iterator[Written]:
    rng = Random(f"sandbox anchors {account.seed} {account.did}")
    for created in _times(rng, _anchor_count(account)):
        value = {
            "$type": POST,
            "text": _sentence(rng, "en"),
            "langs": ["en"],
            "createdAt": _iso(created, rng),
        }
        yield Written(POST, tid(created, _ANCHOR_CLOCK), value, _precise(created, value))


def _profile(account: Account, anchors: tuple[Reference, ...]) -> Written:
    rng = Random(f"sandbox profile {account.seed} {account.did}")
    created = _FIRST + int(rng.random() * (WINDOW_START - _FIRST))
    name = rng.choice(NAMES)
    value: dict[str, Any] = {
        "$type": PROFILE,
        "displayName": f"{name} {rng.choice(EMOJI)}",
        "description": _sentence(rng, "en"),
        "createdAt": iso_milliseconds(created),
        "avatar": _blob(rng, "image/jpeg"),
    }
    if rng.random() < 0.1:
        value["labels"] = _self_labels("!no-unauthenticated")
    if rng.random() < 0.5:
        value["banner"] = _blob(rng, "image/jpeg")
    if anchors and rng.random() < 0.3:
        value["pinnedPost"] = rng.choice(anchors).strong()
    if rng.random() < 0.2:
        value |= {"pronouns": "they/them", "website": f"https://{rng.choice(SITES)}/"}
    if rng.random() < 0.2:
        uri = f"at://{_outsider_did(rng.randrange(_OUTSIDERS))}/app.bsky.graph.starterpack/{tid(created, 0)}"
        value["joinedViaStarterPack"] = Reference(uri, cid_text(cid_of(uri.encode()))).strong()
    if account.role is Role.ODD_DATES:
        # As all profiles are that were made before clients began to date them.
        del value["createdAt"]
        return Written(PROFILE, "self", value, None)
    return Written(PROFILE, "self", value, created // 1000 * 1000)


class _Author:
    """Writes one account's records in the order of time."""

    def __init__(
        self, account: Account, rng: Random, peers: list[Account], references: list[Reference]
    ) -> None:
        self._account = account
        self._rng = rng
        self._peers = [peer.did for peer in peers]
        self._references = references
        self._subjects = iter(self._peers)
        self._outsider = rng.randrange(_OUTSIDERS)
        self._thread: Reference | None = None

    def write(self, times: list[int]) -> Iterator[Written]:
        rng = self._rng
        for created in times:
            kind = rng.random()
            if kind < _LIKES:
                collection, value = LIKE, self._like(created)
            elif kind < _POSTS:
                collection, value = POST, self._post(created)
            elif kind < _FOLLOWS:
                collection, value = FOLLOW, {"$type": FOLLOW, "subject": self._subject()}
            elif kind < _REPOSTS:
                collection, value = REPOST, {"$type": REPOST, "subject": self._refer(created).strong()}
            elif kind < _BLOCKS:
                collection, value = BLOCK, {"$type": BLOCK, "subject": self._next_outsider()}
            else:
                collection, value = self._other(created)
            value["createdAt"] = _iso(created, rng)
            yield Written(collection, tid(created, _RECORD_CLOCK), value, _precise(created, value))

    def _refer(self, created: int) -> Reference:
        """Choose a post to refer to: of the sandbox, each but once, or of an outsider, a little older."""
        if self._references and self._rng.random() < _SANDBOX_SHARE:
            return self._references.pop()
        did = _outsider_did(self._rng.randrange(_OUTSIDERS))
        older = created - int(self._rng.random() * 86_400_000_000)
        uri = f"at://{did}/{POST}/{tid(older, 0)}"
        return Reference(uri, cid_text(b"\x01\x71\x12\x20" + sha256(uri.encode()).digest()))

    def _subject(self) -> str:
        return next(self._subjects, None) or self._next_outsider()

    def _next_outsider(self) -> str:
        self._outsider = (self._outsider + 1) % _OUTSIDERS
        return _outsider_did(self._outsider)

    def _like(self, created: int) -> dict[str, Any]:
        value: dict[str, Any] = {"$type": LIKE, "subject": self._refer(created).strong()}
        if self._rng.random() < 0.04:
            via = self._refer(created)
            value["via"] = {"uri": via.uri.replace(POST, REPOST), "cid": via.cid}
        return value

    def _other(self, created: int) -> tuple[str, dict[str, Any]]:
        if self._rng.random() < 0.5:
            collection = "app.bsky.feed.threadgate"
            uri = f"at://{self._account.did}/{POST}/{tid(created, _RECORD_CLOCK)}"
            allow = [{"$type": "app.bsky.feed.threadgate#mentionRule"}]
            return collection, {"$type": collection, "post": uri, "allow": allow}
        collection = "app.bsky.graph.listitem"
        uri = f"at://{self._account.did}/app.bsky.graph.list/{tid(created, 0)}"
        return collection, {"$type": collection, "list": uri, "subject": self._next_outsider()}

    def _post(self, created: int) -> dict[str, Any]:
        rng = self._rng
        language = rng.choices(LANGUAGES, (60, 12, 10, 10, 8))[0]
        value: dict[str, Any] = {"$type": POST, "text": _sentence(rng, language)}
        if rng.random() < 0.95:
            value["langs"] = [language] if rng.random() < 0.95 else [language, "en-GB"]
        if rng.random() < _REPLIES_OF_POSTS:
            parent = self._refer(created)
            root = self._thread if self._thread is not None and rng.random() < 0.4 else parent
            value["reply"] = {"root": root.strong(), "parent": parent.strong()}
            self._thread = root
        if rng.random() < 0.25:
            self._add_facets(value)
        if rng.random() < 0.05:
            value["tags"] = rng.sample(TAGS, 2)
        if rng.random() < 0.03:
            value["labels"] = _self_labels(rng.choice(("porn", "nudity", "graphic-media")))
        embed = self._embed(created)
        if embed is not None:
            value["embed"] = embed
        return value

    def _embed(self, created: int) -> dict[str, Any] | None:
        kind = self._rng.random()
        if kind < 0.17:
            return self._images()
        if kind < 0.27:
            return self._external()
        if kind < 0.35:
            return self._quote(created)
        if kind < 0.38:
            media = self._images() if self._rng.random() < 0.7 else self._external()
            quote = self._quote(created)
            return {"$type": "app.bsky.embed.recordWithMedia", "record": quote, "media": media}
        return self._video() if kind < 0.40 else None

    def _add_facets(self, value: dict[str, Any]) -> None:
        """Append a link, a mention and a tag to the text, or some of them; indexes count UTF-8 bytes."""
        rng = self._rng
        facets = []
        for kind in rng.sample(("link", "mention", "tag"), rng.randint(1, 3)):
            feature: dict[str, Any] = {"$type": f"app.bsky.richtext.facet#{kind}"}
            if kind == "link":
                shown = rng.choice(SITES) + "/" + rng.choice(WORDS["en"])
                feature["uri"] = f"https://{shown}?utm={rng.randrange(1000)}"
            elif kind == "mention":
                shown = "@" + rng.choice(NAMES).lower() + ".sandbox.test"
                feature["did"] = rng.choice(self._peers) if self._peers else self._next_outsider()
            else:
                feature["tag"] = rng.choice(TAGS)
                shown = "#" + feature["tag"]
            start = len(value["text"].encode()) + 1
            value["text"] += " " + shown
            index = {"byteStart": start, "byteEnd": start + len(shown.encode())}
            facets.append({"index": index, "features": [feature]})
        value["facets"] = facets

    def _images(self) -> dict[str, Any]:
        rng = self._rng
        images = []
        for _ in range(rng.choices((1, 2, 3, 4), (70, 15, 5, 10))[0]):
            alt = _sentence(rng, "en") if rng.random() < 0.6 else ""
            image: dict[str, Any] = {"alt": alt, "image": _blob(rng, "image/jpeg")}
            if rng.random() < 0.9:
                image["aspectRatio"] = {"width": rng.randint(400, 2000), "height": rng.randint(400, 2000)}
            images.append(image)
        return {"$type": "app.bsky.embed.images", "images": images}

    def _external(self) -> dict[str, Any]:
        rng = self._rng
        external: dict[str, Any] = {
            "uri": f"https://{rng.choice(SITES)}/{rng.randrange(10**6)}?a=1&b=ü",
            "title": _sentence(rng, "en")[:40],
            "description": _sentence(rng, "en"),
        }
        if rng.random() < 0.7:
            external["thumb"] = _blob(rng, "image/jpeg")
        return {"$type": "app.bsky.embed.external", "external": external}

    def _quote(self, created: int) -> dict[str, Any]:
        return {"$type": "app.bsky.embed.record", "record": self._refer(created).strong()}

    def _video(self) -> dict[str, Any]:
        video: dict[str, Any] = {"$type": "app.bsky.embed.video", "video": _blob(self._rng, "video/mp4")}
        if self._rng.random() < 0.5:
            video["alt"] = _sentence(self._rng, "en")
        return video


def _sentence(rng: Random, language: str) -> str:
    words = " ".join(rng.choices(WORDS[language], k=rng.randint(3, 18)))
    return f"{words} {rng.choice(EMOJI)}" if rng.random() < 0.2 else words


def _blob(rng: Random, mime_type: str) -> dict[str, Any]:
    ref = blob_cid(rng.randbytes(32))
    return {"$type": "blob", "ref": ref, "mimeType": mime_type, "size": rng.randint(10_000, 900_000)}


def _self_labels(label: str) -> dict[str, Any]:
    return {"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": label}]}


@lru_cache(maxsize=_OUTSIDERS)
def _outsider_did(number: int) -> str:
    """Name an account that lives outside the sandbox."""
    digest = sha256(f"sandbox outsider {number}".encode()).digest()
    return f"did:plc:{libipld.encode_multibase('b', digest[:15])[1:]}"


def _iso(created: int, rng: Random) -> str:
    """Write a time as clients do: nearly always in milliseconds and UTC, now and then in another form."""
    style = rng.random()
    if style > 0.04:
        return iso_milliseconds(created)
    instant = instant_of(created)
    if style < 0.01:
        return instant.isoformat(timespec="microseconds")
    if style < 0.02:
        return instant.isoformat(timespec="seconds")[:-6] + "Z"
    if style < 0.03:
        local = instant_of(created + 9 * 3_600_000_000).isoformat(timespec="milliseconds")
        return local[:-6] + "+09:00"
    return instant.isoformat(timespec="microseconds")[:-6] + "Z"


def _precise(created: int, value: dict[str, Any]) -> int:
    """Cut a time to what its written form still says."""
    written = value["createdAt"]
    if "." not in written:
        return created // 1_000_000 * 1_000_000
    fraction = written[20:26]
    return created if fraction.isdigit() else created // 1000 * 1000
