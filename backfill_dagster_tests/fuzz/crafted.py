"""Mutations that know the format: a record, a node, the commit or a section is changed, all above it hashed and signed.

Some leave the repository lawful, as another record in place of one does; most do not.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from cbrrr import decode_dag_cbor

from backfill_dagster_tests.fuzz.corpus import whole_seeds
from backfill_dagster_tests.fuzz.draft import SIGNERS, Draft, Entry, Node, entry_of, tree_of
from backfill_dagster_tests.fuzz.loose_cbor import (
    ODD_CIDS,
    Raw,
    bent_map,
    claim_bomb,
    encode,
    lawless_item,
    random_value,
)
from backfill_dagster_tests.repos.forge import (
    K256_ORDER,
    P256_ORDER,
    Link,
    P256Signer,
    car_header,
    cid_of,
    frame,
    keys_at_layer,
    varint,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

Mutation: TypeAlias = "Callable[[Random, Draft], None]"

COLLECTIONS = ["app.bsky.feed.post", "app.bsky.feed.like", "app.bsky.feed.repost", "app.bsky.graph.follow"]
COLLECTIONS += ["app.bsky.graph.block", "app.bsky.actor.profile", "com.example.thing"]
DATES = [
    "",
    "2024-10-05",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:60Z",
    "2024-10-05T24:00:00Z",
    "1e9",
    "\0",
]
DATES += ["2024-10-05T12:00:00-00:00", "2024-02-30T00:00:00Z", "2024-10-05T12:00:00." + "9" * 400 + "+23:59"]
DATES += ["-2024-10-05T12:00:00Z", "２０２４-10-05T12:00:00Z", "2024-10-05T12:00:00.000Z" * 50]  # noqa: RUF001


class Stage(IntEnum):
    """What is changed; the stages are gone through in this order."""

    RECORDS = 0
    TREE = 1
    COMMIT = 2
    FILE = 3


def mutate_knowingly(chance: Random) -> tuple[str, Draft]:
    """Change part of a real repository in one way, or now and then in two; return the first way's name."""
    seed = chance.choice(whole_seeds())
    count = chance.choice([1, 2, 5, 12, 30, 30, 60, len(seed.records)])
    keys = sorted(chance.sample(sorted(seed.records), min(count, len(seed.records))))
    draft = Draft(seed.did, chance.choice(SIGNERS), {key: seed.records[key] for key in keys})
    chosen = [chance.choice(_MUTATIONS)]
    if chance.random() < 0.2:
        chosen.append(chance.choice(_MUTATIONS))
    for _, _, mutation in sorted(chosen, key=lambda item: item[0]):
        mutation(chance, draft)
    return chosen[0][1], draft


# Records


def _some_key(chance: Random, draft: Draft) -> bytes:
    return chance.choice(sorted(draft.records) or [b"com.example.thing/only"])


def _remove_records(chance: Random, draft: Draft) -> None:
    for _ in range(chance.choice([1, 1, 5, 1_000])):
        draft.records.pop(_some_key(chance, draft), None)


def _new_path(chance: Random, draft: Draft) -> None:
    """Give records new keys: lawful paths, odd ones, and such as are no paths at all."""
    for _ in range(chance.choice([1, 1, 4, 40])):
        collection, number = chance.choice(COLLECTIONS).encode(), b"%08x" % chance.getrandbits(32)
        odd = [
            b"/",
            b"",
            b".",
            b"..",
            b"self",
            b"a" * 512,
            b"a" * 513,
            b"a/b",
            b"a b",
            b"\0",
            "é".encode(),
            b"\xff",
        ]
        odd += [
            b"x" * (1024 - len(collection) - 1),
            b"x" * (1024 - len(collection)),
            b"~" + number,
            b":" + number,
        ]
        key = collection + b"/" + (number if chance.random() < 0.5 else chance.choice(odd))
        if chance.random() < 0.1:
            key = chance.choice(
                [b"", b"/", b"noslash", b"no nsid/a", b"a" * 1024, b"a" * 1025, b"\xfe/a", b"a.b.c/"]
            )
        draft.records[key] = draft.records.get(_some_key(chance, draft), b"\xa0")


def _high_path(chance: Random, draft: Draft) -> None:
    """Add keys that belong on layers far above the others'."""
    for _ in range(chance.choice([1, 2, 3])):
        draft.records[chance.choice(_HIGH_KEYS)] = encode(random_value(chance))


def _exchange_records(chance: Random, draft: Draft) -> None:
    a, b = _some_key(chance, draft), _some_key(chance, draft)
    draft.records[a], draft.records[b] = draft.records.get(b, b"\xa0"), draft.records.get(a, b"\xa0")


def _share_record(chance: Random, draft: Draft) -> None:
    block = draft.records.get(_some_key(chance, draft), b"\xa0")
    for key in chance.sample(sorted(draft.records), len(draft.records) // 2):
        draft.records[key] = block


def _link_as_raw(chance: Random, draft: Draft) -> None:
    draft.raw.add(_some_key(chance, draft))


def _lose_record(chance: Random, draft: Draft) -> None:
    draft.lost.add(_some_key(chance, draft))


def _other_record(chance: Random, draft: Draft) -> None:
    """Put any bytes in a record's place: CBOR of any type, or none."""
    blocks = [encode(random_value(chance)), encode(random_value(chance, 6)), lawless_item(chance).encoded]
    blocks += [
        b"",
        chance.randbytes(chance.choice([1, 30, 300])),
        encode({"e": [], "l": None}),
        b"\xa1\x61a" * 600 + b"\x01",
    ]
    blocks.append(claim_bomb(chance))
    draft.records[_some_key(chance, draft)] = chance.choice(blocks)


def _flip_record_bits(chance: Random, draft: Draft) -> None:
    key = _some_key(chance, draft)
    block = bytearray(draft.records.get(key, b"\xa0"))
    for _ in range(chance.choice([1, 1, 3])):
        if block:
            block[chance.randrange(len(block))] ^= 1 << chance.randrange(8)
    draft.records[key] = bytes(block)


def _decoded(chance: Random, draft: Draft) -> tuple[bytes, dict[str, Any]]:
    """Choose a record to change; one that another mutation made into something else begins anew."""
    key = _some_key(chance, draft)
    block = draft.records.get(key, b"\xa0")
    try:
        record = decode_dag_cbor(block, cid_ctor=Link) if len(block) < _MAX_HONEST_BYTES else {}
        encode(record)
    except (ValueError, RecursionError):
        record = {}
    return key, record if isinstance(record, dict) else {}


def _bend_record(chance: Random, draft: Draft) -> None:
    """Bend a record's map, or a map somewhere in it."""
    key, record = _decoded(chance, draft)
    parent, name, current = None, "", record
    while True:
        inner = [(field, value) for field, value in current.items() if isinstance(value, dict)]
        inner += [
            (field, value[0])
            for field, value in current.items()
            if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        if not inner or chance.random() < 0.4:
            break
        parent, (name, current) = current, chance.choice(inner)
    bent = bent_map(chance, current)
    if parent is None:
        draft.records[key] = encode(bent)
        return
    parent[name] = [bent] if isinstance(parent[name], list) else bent
    draft.records[key] = encode(record)


def _odd_field(chance: Random, draft: Draft) -> None:
    """Put odd values of the right type into fields that the tables read."""
    key, record = _decoded(chance, draft)
    long = chance.choice(["a", "é", "a.", "a:", "🦋", "1", " "]) * chance.choice([300, 9_000, 100_000])
    text = chance.choice(
        [*DATES, *DATES, long, "at://" + long, "did:plc:" + long, "at://handle.example/a.b.c/d"]
    )
    many = chance.choice([1, 2, 300]) if len(text) < 1_000 else 2
    blob = {"$type": "blob", "ref": Link(chance.choice(ODD_CIDS)), "mimeType": text, "size": 2**64 - 1}
    image = {"image": chance.choice([blob, {"cid": text, "mimeType": text}, {}]), "alt": text}
    images = {"$type": "app.bsky.embed.images", "images": [image] * many}
    reference = {"uri": text, "cid": chance.choice([text, cid_of(b""), None])}
    feature = {
        "$type": f"app.bsky.richtext.facet#{chance.choice(['link', 'mention', 'tag', 'x'])}",
        "uri": text,
    }
    facet = {"features": [feature | {"did": text, "tag": text}] * many, "index": {}}
    fields: dict[str, Any] = {
        "createdAt": text,
        "$type": text,
        "text": text,
        "langs": [text] * chance.choice([0, many]),
        "tags": [text, random_value(chance)],
        "subject": chance.choice([text, reference]),
        "via": reference,
        "reply": {"parent": reference, "root": chance.choice([reference, {}, text])},
        "embed": chance.choice(
            [
                images,
                {"$type": "app.bsky.embed.recordWithMedia", "record": {"record": reference}, "media": images},
                {"$type": "app.bsky.embed.external", "external": {"uri": text}},
                {"$type": text},
            ]
        ),
        "facets": [facet, random_value(chance)],
        "labels": {"values": [{"val": text}, random_value(chance)]},
        "$link": text,
        "$bytes": {"$link": {"$bytes": text}},
        "n": [-(2**64), 2**64 - 1, 1e308, -0.0],
    }
    for name in chance.sample(sorted(fields), chance.choice([1, 1, 3])):
        record[name] = fields[name]
    draft.records[key] = encode(record)


# The tree


def _nodes(top: object) -> list[Node]:
    """Return a node and all below it; none for what is no node."""
    found: list[Node] = []
    waiting = [top]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Node):
            found.append(node)
            waiting += [node.left, *(entry.tree for entry in node.entries)]
    return found


def _some_node(chance: Random, draft: Draft) -> Node:
    nodes = _nodes(draft.tree)
    return nodes[0] if chance.random() < 0.2 else chance.choice(nodes)


def _some_entry(chance: Random, draft: Draft) -> Entry:
    """Choose an entry; an empty tree is given one."""
    entries = [item for node in _nodes(draft.tree) for item in node.entries]
    if not entries:
        draft.tree.entries.append(entry_of(_HIGH_KEYS[0], cid_of(b""), None, b""))
        return draft.tree.entries[0]
    return chance.choice(entries)


def _some_link(chance: Random, draft: Draft) -> object:
    """Choose what could stand in a link's place."""
    links: list[object] = [None, None, cid_of(b"nowhere"), Link(chance.choice(ODD_CIDS)), bytes(cid_of(b""))]
    links += [*draft.record_links[:3], Node(None, []), Node(Node(None, []), []), _some_node(chance, draft)]
    links += [Node(None, [entry_of(_some_key(chance, draft), cid_of(b""), None, b"")]), random_value(chance)]
    return chance.choice(links)


def _exchange_entries(chance: Random, draft: Draft) -> None:
    """Let two entries change places: as they are, or all but their keys, or their keys only."""
    a, b = _some_entry(chance, draft), _some_entry(chance, draft)
    names = chance.choice(
        [("prefix", "rest", "value", "tree"), ("value",), ("tree",), ("rest",), ("prefix", "rest")]
    )
    for name in names:
        # A node within itself would never end.
        if name == "tree" and (_holds(a.tree, b) or _holds(b.tree, a)):
            continue
        first, second = getattr(a, name), getattr(b, name)
        setattr(a, name, second)
        setattr(b, name, first)


def _holds(top: object, entry: Entry) -> bool:
    return any(entry in node.entries for node in _nodes(top))


def _change_prefix(chance: Random, draft: Draft) -> None:
    entry = _some_entry(chance, draft)
    shared = entry.prefix if isinstance(entry.prefix, int) else 0
    others: list[Any] = [
        shared + 1,
        shared - 1,
        0,
        -1,
        255,
        2**63,
        2**64 - 1,
        float(shared),
        True,
        str(shared),
    ]
    entry.prefix = chance.choice(
        [*others, Raw(b"\x18" + bytes([shared % 256])), Raw(b"\x19\0" + bytes([shared % 256]))]
    )


def _lengthen_rest(chance: Random, draft: Draft) -> None:
    """Write the same key with a shorter prefix than it has."""
    for node in chance.sample(_nodes(draft.tree), len(_nodes(draft.tree))):
        before = b""
        for entry in node.entries:
            if not (isinstance(entry.prefix, int) and isinstance(entry.rest, bytes)):
                break
            key = before[: entry.prefix] + entry.rest
            if 0 < entry.prefix <= len(before):
                shorter = chance.randrange(entry.prefix)
                entry.prefix, entry.rest = shorter, key[shorter:]
                return
            before = key


def _change_rest(chance: Random, draft: Draft) -> None:
    entry = _some_entry(chance, draft)
    rest = entry.rest if isinstance(entry.rest, bytes) else b""
    place = chance.randrange(len(rest) + 1)
    others: list[Any] = [
        b"",
        rest[:-1],
        rest + b"a",
        rest + b"\0",
        rest[:place] + b"\xff" + rest[place + 1 :],
    ]
    others += [
        rest[:place] + b"/" + rest[place:],
        rest + b"x" * 1100,
        rest.decode("latin-1"),
        Link(rest),
        None,
    ]
    entry.rest = chance.choice(others)


def _change_value(chance: Random, draft: Draft) -> None:
    entry = _some_entry(chance, draft)
    value = entry.value if isinstance(entry.value, Link) else cid_of(b"")
    others: list[Any] = [
        *draft.record_links[:4],
        cid_of(b"nowhere"),
        None,
        bytes(value),
        random_value(chance),
    ]
    others += [
        Link(b"\x01\x55" + value[2:]),
        Link(chance.choice(ODD_CIDS)),
        Link(value + b"\0"),
        Link(value[:-1]),
    ]
    entry.value = chance.choice(others)


def _change_subtree(chance: Random, draft: Draft) -> None:
    entry, link = _some_entry(chance, draft), _some_link(chance, draft)
    if not _holds(link, entry):
        entry.tree = link


def _change_left(chance: Random, draft: Draft) -> None:
    node, link = _some_node(chance, draft), _some_link(chance, draft)
    if node not in _nodes(link):
        node.left = link


def _drop_entry(chance: Random, draft: Draft) -> None:
    node = _some_node(chance, draft)
    if node.entries:
        del node.entries[chance.randrange(len(node.entries))]


def _repeat_entry(chance: Random, draft: Draft) -> None:
    """Put a copy of an entry somewhere, without what is below it or with it."""
    entry, node = _some_entry(chance, draft), _some_node(chance, draft)
    tree = entry.tree if chance.random() < 0.2 and node not in _nodes(entry.tree) else None
    copy = Entry(entry.prefix, entry.rest, entry.value, tree)
    node.entries.insert(chance.randrange(len(node.entries) + 1), copy)


def _insert_layer(chance: Random, draft: Draft) -> None:
    """Put empty nodes, one or thousands of them, between a node and what is below it, or on top of all."""
    levels = chance.choice([1, 1, 2, 70, 130, 3_000])
    kind = chance.randrange(3)
    if kind == 0:
        draft.tree = _below(draft.tree, levels)
    elif kind == 1:
        node = _some_node(chance, draft)
        node.left = _below(node.left, levels)
    else:
        entry = _some_entry(chance, draft)
        entry.tree = _below(entry.tree, levels)


def _below(node: Any, levels: int) -> Any:
    for _ in range(levels):
        node = Node(node, [])
    return node


def _remove_layer(chance: Random, draft: Draft) -> None:
    """Put what is below a node in its place; of nodes without entries, if there are any."""
    nodes = _nodes(draft.tree)
    parents = [node for node in nodes if isinstance(node.left, Node) and not node.left.entries] or nodes
    node = chance.choice(parents)
    if isinstance(node.left, Node):
        node.left = node.left.left
    elif node.entries:
        entry = chance.choice(node.entries)
        if isinstance(entry.tree, Node):
            entry.tree = entry.tree.left


def _merge_into_one(chance: Random, draft: Draft) -> None:
    """Put all keys into one node, whatever layers they belong on."""
    node, before = Node(None, []), b""
    for key, link in sorted(zip(draft.records, draft.record_links, strict=True)):
        node.entries.append(entry_of(key, link, None, before))
        before = key
    _ = draft.tree
    draft.tree = node


def _widen(chance: Random, draft: Draft) -> None:
    """Give the bottom of the tree a node of hundreds or thousands of keys."""
    keys = _LOW_KEYS[: chance.choice([60, 60, 300, 300, 600]) if chance.random() < 0.9 else 4_097]
    leaves = dict(zip(draft.records, draft.record_links, strict=True))
    block = chance.choice(sorted(draft.records.values()) or [b"\xa0"])
    draft.records |= dict.fromkeys(keys, block)
    _ = draft.tree
    draft.tree = tree_of(leaves | dict.fromkeys(keys, cid_of(block)))


def _link_to_node_as_raw(chance: Random, draft: Draft) -> None:
    _some_node(chance, draft).codec = 0x55


def _bend_node(chance: Random, draft: Draft) -> None:
    _some_node(chance, draft).bend = lambda fields: bent_map(chance, fields)


def _bend_entry(chance: Random, draft: Draft) -> None:
    _some_entry(chance, draft).bend = lambda fields: bent_map(chance, fields)


# The commit


def _bend_commit(chance: Random, draft: Draft) -> None:
    """Bend the commit's map before it is signed, if it can be, or after."""
    if chance.random() < 0.5:
        bent = bent_map(chance, draft.commit)
        if isinstance(bent, dict):
            draft.commit = bent
        else:
            draft.commit_block = encode(bent)
    else:
        signature = draft.signer.sign(encode(draft.commit))
        draft.commit_block = encode(bent_map(chance, draft.commit | {"sig": signature}))


def _change_commit(chance: Random, draft: Draft) -> None:
    """Sign other values of the right type, and fields that nobody knows."""
    data = draft.commit.get("data", cid_of(b""))
    changes: list[dict[str, Any]] = [
        {"did": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"},
        {"did": draft.did.upper()},
        {"did": draft.did + "\0"},
        *({"version": version} for version in (1, 2, 4, -3, 2**64 - 1)),
        *(
            {"rev": rev}
            for rev in ("", "zzzzzzzzzzzzz", "3l4qxwyzabc2", "3l4qxwyzabc2kk", "3L4QXWYZABC2K", "2" * 13)
        ),
        *({"prev": prev} for prev in (data, Link(chance.choice(ODD_CIDS)), cid_of(b"", 0x55))),
        *(
            {"data": link}
            for link in (*draft.record_links[:1], cid_of(b"nowhere"), Link(chance.choice(ODD_CIDS)))
        ),
        {"data": Link(b"\x01\x55" + bytes(data)[2:])} if isinstance(data, Link) else {"data": None},
        {"unknown": random_value(chance)},
        {"unknown": "x" * chance.choice([7_000, 8_500])},
        {"version": 2, "rev": None},
        {
            chance.choice(["version", "rev"]): chance.choice(
                [3.0, lawless_item(chance), Raw(b"\x81" * 3_000 + b"\x01")]
            )
        },
    ]
    draft.commit = draft.commit | chance.choice(changes)
    if chance.random() < 0.1:
        draft.commit = {name: value for name, value in draft.commit.items() if name not in ("prev", "rev")}


def _change_signature(chance: Random, draft: Draft) -> None:
    message = encode(draft.commit)
    signature = draft.signer.sign(message)
    order = P256_ORDER if isinstance(draft.signer, P256Signer) else K256_ORDER
    r, s = signature[:32], int.from_bytes(signature[32:])
    flipped = bytearray(signature)
    flipped[chance.randrange(64)] ^= 1 << chance.randrange(8)
    others: list[Any] = [
        bytes(flipped),
        b"",
        signature[:-1],
        signature + b"\0",
        bytes(64),
        b"\xff" * 64,
        b"\0" + signature,
    ]
    others += [r + (order - s).to_bytes(32), r + bytes(32), bytes(32) + signature[32:], signature[32:] + r]
    others += [draft.signer.sign(message + b"\0"), draft.signer.sign(b""), None, signature.decode("latin-1")]
    others += [signer.sign(message) for signer in SIGNERS if signer is not draft.signer]
    draft.commit_block = encode(draft.commit | {"sig": chance.choice(others)})


# The file


def _bend_header(chance: Random, draft: Draft) -> None:
    fields = {"roots": [draft.root], "version": 1}
    header = encode(bent_map(chance, fields))
    draft.header = varint(len(header)) + header


def _change_roots(chance: Random, draft: Draft) -> None:
    root, data = draft.root, draft.commit.get("data")
    raw = Link(b"\x01\x55" + root[2:])
    others: list[list[Any]] = [[], [root, root], [root, cid_of(b"")], [cid_of(b"nowhere")], [raw]]
    others += [[root[:-1]], [root + b"\0"], [data] if isinstance(data, Link) else [], draft.record_links[:1]]
    if chance.random() < 0.2:
        # The commit is in the file under this link as well.
        draft.sections = [*draft.sections, frame(raw, draft.sign())]
        others = [[raw]]
    draft.header = car_header(chance.choice(others), version=chance.choice([1, 1, 1, 1, 2, 0]))


def _change_sections(chance: Random, draft: Draft) -> None:
    """Do to whole sections what a lawful writer may do, and some of what none may."""
    sections = list(draft.sections)
    place = chance.randrange(len(sections))
    section = sections[place]
    body = section[1 if section[0] < 0x80 else 2 if section[1] < 0x80 else 3 :]
    cid, block = body[:36], body[36:]
    harmless = [frame(cid_of(b"\xa0"), b"\xa0"), frame(b"\x12\x20" + bytes(32), b"version 0"), section]
    harmless += [
        frame(cid_of(b"other"), b"not that"),
        frame(b"\x01\x71\x13\x40" + bytes(64), b""),
        frame(cid, b"\xa0"),
    ]
    harmless += [frame(cid, block + b"\0"), frame(b"\x01\x71\x00\x04", b"")]
    harmful = [
        b"\0",
        b"\x01\x01",
        b"\x23" + cid,
        frame(cid[:20], b""),
        frame(b"\x02" + cid[1:], block),
        b"\x80",
    ]
    harmful += [varint(len(body) + 1) + body, b"\xff" * 9 + b"\x01", frame(b"\x01\x71\x12\x7f", block[:50])]
    match chance.randrange(6):
        case 0:
            chance.shuffle(sections)
        case 1:
            sections.insert(chance.randrange(len(sections) + 1), chance.choice(harmless))
        case 2:
            sections.insert(chance.randrange(len(sections) + 1), chance.choice(harmful))
        case 3:
            del sections[place]
        case 4:
            sections[place] = frame(cid, chance.choice([b"", block[:-1], block + b"\0", block[::-1]]))
        case _:
            sections[place] = chance.choice(
                [frame(Link(b"\x01\x55") + cid[2:], block), varint(len(body))[:-1] + body]
            )
    draft.sections = sections


_MAX_HONEST_BYTES = 10_000
_LOW_KEYS = keys_at_layer(0, 4_097)
_HIGH_KEYS = [key for layer in (3, 4, 5) for key in keys_at_layer(layer, 3, "com.example.high")]
_BY_STAGE: dict[Stage, list[Mutation]] = {
    Stage.RECORDS: [
        _remove_records,
        _new_path,
        _high_path,
        _exchange_records,
        _share_record,
        _link_as_raw,
        _lose_record,
        _other_record,
        _flip_record_bits,
        _bend_record,
        _bend_record,
        _odd_field,
        _odd_field,
    ],
    Stage.TREE: [
        _exchange_entries,
        _change_prefix,
        _lengthen_rest,
        _change_rest,
        _change_value,
        _change_subtree,
        _change_left,
        _drop_entry,
        _repeat_entry,
        _insert_layer,
        _remove_layer,
        _merge_into_one,
        _widen,
        _link_to_node_as_raw,
        _bend_node,
        _bend_node,
        _bend_entry,
        _bend_entry,
    ],
    Stage.COMMIT: [_bend_commit, _bend_commit, _change_commit, _change_commit, _change_signature],
    Stage.FILE: [_bend_header, _change_roots, _change_sections, _change_sections],
}
_MUTATIONS = [
    (stage, mutation.__name__.strip("_"), mutation)
    for stage, mutations in _BY_STAGE.items()
    for mutation in mutations
]
CRAFTED_KINDS = sorted({kind for _, kind, _ in _MUTATIONS})
