"""Pseudonyms: keyed, the same for the same name, and of any shape of column; and places in a sample."""

import hashlib
import hmac

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.config.sharing import Sharing
from backfill_dagster.sharing.pseudonyms import PSEUDONYM_DIGITS, Pseudonyms
from backfill_dagster.sharing.sample import accounts_to_share

SALT = b"correct horse battery staple 0123456789"
NAMES = st.one_of(st.none(), st.text(max_size=30), st.sampled_from(["did:plc:a", "at://did:plc:a/b/c"]))


def test_a_pseudonym_is_hmac_sha256_of_the_name_and_its_kind() -> None:
    for text, kind in (("did:plc:a", b"did"), ("at://did:plc:a/b/c", b"uri")):
        expected = hmac.new(SALT, kind + b"\0" + text.encode(), hashlib.sha256).hexdigest()
        assert Pseudonyms(SALT).of(text) == expected[:PSEUDONYM_DIGITS]
    assert SALT.decode() not in repr(Pseudonyms(SALT))


@settings(max_examples=30)
@given(st.lists(NAMES, max_size=20))
def test_a_column_has_the_pseudonym_of_each_of_its_names(names: list[str | None]) -> None:
    expected = [None if name is None else Pseudonyms(SALT).of(name) for name in names]
    column = pl.Series("name", names, pl.String)
    assert Pseudonyms(SALT).of_column(column).to_list() == expected
    doubled = pl.concat([column] * 3)
    assert Pseudonyms(SALT).of_column(doubled).to_list() == expected * 3
    lists = pl.Series("names", [names, None, []], pl.List(pl.String))
    assert Pseudonyms(SALT).of_column(lists).to_list() == [expected, None, []]


def test_a_sample_has_about_its_share_and_depends_on_the_seed_and_on_the_secret() -> None:
    dids = [f"did:plc:{number:024}" for number in range(4000)]
    accounts = pl.DataFrame(
        {"did": dids, "shown": True, "obtained": "repo", "state": "complete", "reason": None}
    )

    def sample(pseudonyms: Pseudonyms | None = None, **said: object) -> set[str]:
        return set(accounts_to_share(accounts, Sharing.model_validate(said), pseudonyms)["did"])

    tenth = sample(sample=0.1)
    assert 300 < len(tenth) < 500
    assert tenth < sample(sample=0.2) < sample(sample=1.0) == sample() == set(dids)
    others = [sample(sample=0.1, sample_seed="b"), sample(Pseudonyms(SALT), sample=0.1)]
    # As many as two samples of a tenth have in common by chance: a hundredth.
    assert all(10 < len(tenth & other) < 80 for other in others)
