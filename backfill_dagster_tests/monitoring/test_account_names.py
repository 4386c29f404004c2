import pytest

from backfill_dagster.monitoring.account_names import AccountHashes, hashed_fields, without_accounts

PLC = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
SPELLINGS = [
    PLC,
    PLC.upper(),
    PLC.replace(":", "%3A"),
    PLC.replace(":", "%3a"),
    PLC.replace(":", "%253A"),
]
WEB_SPELLINGS = [
    "did:web:pds.example.org:8443",
    "did:web:pds.example.org%3A8443",
    "did%3Aweb%3Apds.example.org%3a8443",
    "did:web:PDS.example.org:8443",
]
OTHERS = [
    "did:key:zQ3shQo6TF2moaqMTrUZEM1jeuYRQXeHEx4evX9751y2qPqRA",
    f"at://{PLC}/app.bsky.feed.post/3k",
    "at://a.person.example.com/app.bsky.feed.post/3k",
    "at%3A%2F%2Fdid%3Aplc%3Aewvi7nxzyoun6zhxrhs64oiz%2Fapp.bsky.feed.post%2F3k",
    "@a.person.example.com",
    "someone.bsky.social",
]
HASHES = AccountHashes(b"k" * 32)


@pytest.mark.parametrize("name", [*SPELLINGS, *WEB_SPELLINGS, *OTHERS])
def test_no_name_is_left_however_it_is_written(name: str) -> None:
    text = f"it is '{name}' again; host pds.other.example said: {name}."
    assert without_accounts(text) == "it is '(an account)' again; host pds.other.example said: (an account)."
    hashed = HASHES.text(text)
    for part in (name, "ewvi7nxzyoun6zhxrhs64oiz", "a.person", "someone", "/3k", "%2F3k", "pds.example"):
        assert part.lower() not in hashed.lower()
    assert "pds.other.example" in hashed


def test_the_spellings_of_a_did_have_one_hash_and_other_dids_have_others() -> None:
    assert len({HASHES.did(did) for did in SPELLINGS}) == 1
    assert len({HASHES.did(did) for did in WEB_SPELLINGS}) == 1
    assert HASHES.did(PLC) != HASHES.did(WEB_SPELLINGS[0])
    assert HASHES.text(f"at://{PLC}/app.bsky.feed.post/3k").startswith(f"at://{HASHES.did(PLC)}/record:")
    assert HASHES.handle("@Someone.bsky.social") == HASHES.text("someone.bsky.social")


def test_another_key_gives_other_hashes() -> None:
    assert AccountHashes(b"j" * 32).did(PLC) != HASHES.did(PLC)


def test_what_follows_a_did_in_prose_is_not_part_of_it() -> None:
    for after in (".", ": not found", ",", ")", "%", "/path", "'s"):
        assert HASHES.text(f"{PLC}{after}") == f"{HASHES.did(PLC)}{after}"
        assert HASHES.text(f"did:web:example.org{after}") == f"{HASHES.did('did:web:example.org')}{after}"


@pytest.mark.parametrize(
    "text", ["", "a plain line", "pds1.host.bsky.network is parked", "did it end at 3:15?", "ratio 3:4 @ 5"]
)
def test_text_without_names_stays_as_it_is(text: str) -> None:
    assert without_accounts(text) == HASHES.text(text) == text


def test_fields_are_hashed_at_any_depth() -> None:
    fields = hashed_fields(
        {"did": PLC, "handle": "a.example", "detail": [f"of {PLC}", {"x": PLC, PLC: 1}], "bytes": 3}, HASHES
    )
    hashed = HASHES.did(PLC)
    assert fields == {
        "did": hashed,
        "handle": HASHES.handle("a.example"),
        "detail": [f"of {hashed}", {"x": hashed, hashed: 1}],
        "bytes": 3,
    }


def test_a_hostile_text_is_searched_in_linear_time() -> None:
    import time

    begun = time.process_time()
    for text in (
        "did:web:" + "%3a" * 50_000 + "%",
        "did:web:" + "a%3a" * 50_000,
        "at://" * 50_000,
        "a." * 100_000 + "@",
        "did%25252525" * 20_000,
    ):
        HASHES.text(text)
        without_accounts(text)
    assert time.process_time() - begun < 5
