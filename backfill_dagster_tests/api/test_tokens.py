import hashlib
import pickle

import pytest

from backfill_dagster.api.tokens import Caller, Scope, Tokens
from backfill_dagster.errors import ConfigError

TOKEN, OTHER = (hashlib.sha256(name).hexdigest()[:43] + "-_Q" for name in (b"one", b"other"))


def test_a_token_tells_whose_it_is_and_what_it_may_do() -> None:
    tokens = Tokens.parse(f" ana:read+run:{TOKEN},\n ci-bot:admin:{OTHER} ,")
    assert tokens.caller_of(TOKEN.encode()) == Caller("ana", frozenset({Scope.READ, Scope.RUN}))
    assert tokens.caller_of(OTHER.encode()) == Caller("ci-bot", frozenset({Scope.ADMIN}))
    for near in (TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "", f"ana:read+run:{TOKEN}"):
        assert tokens.caller_of(near.encode()) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no token"),
        (" , ", "holds no token"),
        (TOKEN, "must be name:scopes:token"),
        (f"ana:{TOKEN}", "must be name:scopes:token"),
        (f"ana:read:run:{TOKEN}", "must be name:scopes:token"),
        (f":read:{TOKEN}", "its name must be"),
        (f"Ana:read:{TOKEN}", "its name must be"),
        (f"{'a' * 33}:read:{TOKEN}", "its name must be"),
        (f"ana::{TOKEN}", "its scopes must be of read, run, admin"),
        (f"ana:write:{TOKEN}", "its scopes must be"),
        (f"ana:read+read:{TOKEN}", "each once"),
        (f"ana:READ:{TOKEN}", "its scopes must be"),
        ("ana:read:", "its token must be of"),
        (f"ana:read:{TOKEN}é", "its token must be of"),
        (f"ana:read:{TOKEN[:31]}", "at least 32 characters"),
        (f"ana:read:{'ab' * 40}", "drawn at random"),
        (f"ana:read:{TOKEN},ana:run:{OTHER}", "the same name"),
        (f"ana:read:{TOKEN},bob:run:{TOKEN}", "the same token"),
    ],
)
def test_what_is_malformed_is_refused_and_never_repeated(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        Tokens.parse(text)
    assert TOKEN[:31] not in str(caught.value)
    assert OTHER not in str(caught.value)


def test_only_hashes_are_kept() -> None:
    tokens = Tokens.parse(f"ana:read:{TOKEN}")
    kept = pickle.dumps(tokens)
    assert b"ana" in kept
    assert hashlib.sha256(TOKEN.encode()).digest() in kept
    assert TOKEN.encode() not in kept
