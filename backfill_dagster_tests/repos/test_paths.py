import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.repos import paths as repo_paths
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError


def split_paths(keys: list[bytes]) -> tuple[list[str], list[str]]:
    paths = repo_paths.split_paths(pa.array(keys, pa.large_binary()))
    return paths.collections.to_pylist(), paths.rkeys.to_pylist()


def test_no_keys_have_no_paths() -> None:
    assert split_paths([]) == ([], [])


def test_paths_are_taken_apart_at_their_first_slash() -> None:
    paths = {
        b"": ("", ""),
        b"/": ("", ""),
        b"//x": ("", "/x"),
        b"/x": ("", "x"),
        b"a": ("a", ""),
        b"a-b/x": ("a-b", "x"),
        b"a/": ("a", ""),
        b"a//": ("a", "/"),
        b"a/b/c": ("a", "b/c"),
        b"a/b0": ("a", "b0"),
        b"a0/b": ("a0", "b"),
        b"app.bsky.feed.like/3jzfcijpj2z2a": ("app.bsky.feed.like", "3jzfcijpj2z2a"),
        b"app.bsky.feed.post/3jzfcijpj2z2a": ("app.bsky.feed.post", "3jzfcijpj2z2a"),
        b"app.bsky.feed.post/self\n": ("app.bsky.feed.post", "self\n"),
        b"app.bsky.feed.postgate/3jzfcijpj2z2a": ("app.bsky.feed.postgate", "3jzfcijpj2z2a"),
        "app.bsky.feed.pöst/ключ\0".encode(): ("app.bsky.feed.pöst", "ключ\0"),
    }
    assert list(paths) == sorted(paths)

    assert list(zip(*split_paths(list(paths)), strict=True)) == list(paths.values())


@settings(max_examples=100)
@given(st.sets(st.text("/-.0aé", max_size=6), max_size=30))
def test_neighbours_do_not_mix(texts: set[str]) -> None:
    keys = sorted(text.encode() for text in texts)

    collections, rkeys = split_paths(keys)

    expected = [key.decode().partition("/") for key in keys]
    assert collections == [collection for collection, _, _ in expected]
    assert rkeys == [rkey for _, _, rkey in expected]


def test_a_part_of_more_keys() -> None:
    keys = pa.array([b"before/1", b"a/b", b"c", b"after/2"], pa.large_binary()).slice(1, 2)

    collections, rkeys = repo_paths.split_paths(keys)

    assert (collections.to_pylist(), rkeys.to_pylist()) == (["a", "c"], ["b", ""])


@pytest.mark.parametrize("key", [b"\xff", b"a/\xff", b"\xc3/a", b"app.bsky.feed.post/\xed\xa0\x80"])
def test_a_key_that_is_not_utf_8_is_refused(key: bytes) -> None:
    with pytest.raises(RepoRejectedError) as caught:
        split_paths(sorted([b"a/a", key, b"a/b"]))

    assert caught.value.fault is RepoFault.BAD_TREE
