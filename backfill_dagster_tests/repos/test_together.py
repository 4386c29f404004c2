"""Repositories that are proven together: each is accepted if, and as, it would be by itself."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import polars as pl
import pytest

from backfill_dagster.purge.tombstones import bury
from backfill_dagster.repos import proof
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.limits import RepoLimits
from backfill_dagster.repos.outcomes import Outcome
from backfill_dagster.repos.packs import Attempt, PackWriter
from backfill_dagster.repos.proof import Delivery, PackReport, ProofSettings, prove_and_pack
from backfill_dagster.repos.verify import Claim, VerifiedRepo, prove_together, verify_repo
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.fuzz.cases import make_case
from backfill_dagster_tests.fuzz.corpus import whole_seeds
from backfill_dagster_tests.repos.forge import ForgedRepo, K256Signer, Link, car, car_of_tree, cid_of, tree
from backfill_dagster_tests.repos.plain import PlainRepo, plain_repo

SEED = 11
CASES = 600
LIMITS = RepoLimits()
KEY = K256Signer().did_key

# A file, and the account and the key that it is to be verified with.
File = tuple[bytes, str, str]


def did_of(number: int) -> str:
    return f"did:plc:{number:024}".translate(str.maketrans("01", "ab"))


def forged(number: int, records: int = 30) -> ForgedRepo:
    """A repository of an account of its own, most of whose records others have as well."""
    paths = [
        f"app.bsky.feed.like/3l4qxwyzab{n:03}".translate(str.maketrans("0189", "abcd"))
        for n in range(records)
    ]
    shared = {path: {"n": n} for n, path in enumerate(paths)}
    return ForgedRepo({**shared, "a.b.c/self": {"own": number}}, commit_fields={"did": did_of(number)})


def file_of(number: int, content: bytes | None = None) -> File:
    return content or forged(number).car(), did_of(number), KEY


def alone(file: File, limits: RepoLimits = LIMITS) -> PlainRepo | RepoFault:
    content, did, key = file
    try:
        repo = verify_repo(content, did=did, keys=[SigningKey.from_did_key(key)], limits=limits)
    except RepoRejectedError as error:
        return error.fault
    return plain_repo(repo, content)


def together(files: Sequence[File], limits: RepoLimits = LIMITS) -> dict[int, PlainRepo] | None:
    """What was proven of which file, with positions in it."""
    contents = [content for content, _, _ in files]
    claims = [Claim(did, [SigningKey.from_did_key(key)]) for _, did, key in files]
    proven = prove_together(contents, claims, limits=limits)
    if proven is None:
        return None
    assert proven.content == b"".join(contents)
    return {
        number: _in_file(repo, contents, number)
        for number, repo in zip(proven.numbers, proven.repos(), strict=True)
    }


def _in_file(repo: VerifiedRepo, contents: Sequence[bytes], number: int) -> PlainRepo:
    begin = sum(map(len, contents[:number]))
    moved = replace(repo, starts=repo.starts - begin, ends=repo.ends - begin)
    return plain_repo(moved, contents[number])


def test_all_that_hold_are_what_they_are_by_themselves() -> None:
    files = [(seed.car, seed.did, seed.did_key) for seed in whole_seeds()]
    files += [file_of(number, forged(number, number).car()) for number in range(20)]

    assert together(files) == dict(enumerate(map(alone, files)))


def test_changed_files_are_accepted_only_if_they_are_by_themselves() -> None:
    cases = [make_case(SEED, number) for number in range(CASES)]
    files = [(case.car, case.did, case.did_key) for case in cases]
    files += [(seed.car, seed.did, seed.did_key) for seed in whole_seeds()]
    expected = [alone(file) for file in files]
    sound = [number for number, repo in enumerate(expected) if isinstance(repo, PlainRepo)]
    chance = Random(SEED)
    accepted = refused = 0
    for _ in range(CASES):
        numbers = [chance.randrange(len(files)), *chance.choices(sound, k=chance.choice([1, 2, 4]))]
        chance.shuffle(numbers)
        found = together([files[number] for number in numbers])
        apart = {place: expected[number] for place, number in enumerate(numbers)}
        if found is None:
            refused += 1
            assert any(isinstance(repo, RepoFault) for repo in apart.values())
        else:
            accepted += len(found)
            assert found == {place: apart[place] for place in found}
            assert all(isinstance(apart[place], RepoFault) for place in apart.keys() - found.keys())
    assert accepted > CASES
    assert refused > CASES // 10


@pytest.mark.parametrize("kind", ["commit", "node", "record"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_block_of_another_file_is_none_of_this_one(kind: str, place: int) -> None:
    repo = forged(1)
    lost = {"commit": repo.root, "node": repo.data, "record": repo.leaves[b"a.b.c/self"]}[kind]
    files = [file_of(1), file_of(1)]
    without = {cid: block for cid, block in repo.blocks.items() if cid != lost}
    files.insert(place, file_of(1, car(repo.root, without)))

    assert alone(files[place]) is RepoFault.MISSING_BLOCK
    assert together(files) is None


@pytest.mark.parametrize("place", [0, 1])
def test_an_empty_block_at_the_end_belongs_to_its_file(place: int) -> None:
    empty = cid_of(b"")
    data, nodes = tree({b"a.b.c/self": empty})
    whole, without = (
        car_of_tree(data, {**nodes, **blocks}, did=did_of(0))
        for blocks in (
            {empty: b""},
            {},
        )
    )
    files = [file_of(0, whole), file_of(0, whole)]

    assert together(files) == dict(enumerate(map(alone, files)))

    files.insert(place, file_of(0, without))

    assert alone(files[place]) is RepoFault.MISSING_BLOCK
    assert together(files) is None


def test_blocks_that_stand_in_several_files_several_times() -> None:
    repo = forged(1)
    twice = [*repo.blocks.items(), *repo.blocks.items()]
    files = [file_of(1, car(repo.root, twice)), file_of(2), file_of(1, car(repo.root, twice)), file_of(1)]

    found = together(files)

    assert found is not None
    assert list(found) == [0, 1, 2, 3]
    for number, repo_found in found.items():
        by_itself = alone(files[number])
        assert isinstance(by_itself, PlainRepo)
        assert repo_found.cids == by_itself.cids


def test_a_corrupt_block_is_not_made_good_by_another_file() -> None:
    repo = forged(1)
    spoiled: dict[Link, bytes] = repo.blocks | {repo.leaves[b"a.b.c/self"]: b"other"}
    files = [file_of(1), file_of(1, car(repo.root, spoiled))]

    assert alone(files[1]) is RepoFault.CORRUPT_BLOCK
    assert together(files) is None


@pytest.mark.parametrize(
    "limits",
    [
        replace(LIMITS, max_records=60),
        replace(LIMITS, max_nodes=15),
        replace(LIMITS, max_blocks=80),
        replace(LIMITS, max_paths_bytes=1500),
        replace(LIMITS, max_records_bytes=200),
        replace(LIMITS, max_car_bytes=8000),
    ],
)
def test_limits_are_kept_by_all_together(limits: RepoLimits) -> None:
    files = [file_of(number) for number in range(3)]

    assert together(files) is not None
    assert all(isinstance(alone(file, limits), PlainRepo) for file in files)
    assert together(files, limits) is None


# Packs


def packed(root: Path, files: Sequence[File]) -> tuple[PackReport, dict[str, bytes]]:
    """Prove files and pack them; also return what was written."""
    root.mkdir()
    deliveries = []
    for number, (content, did, key) in enumerate(files):
        path = root / f"{number}.car"
        path.write_bytes(content)
        attempt = Attempt(did, "https://pds.test", Outcome.COMPLETE, datetime(2025, 1, 1, tzinfo=UTC))
        deliveries.append(Delivery(attempt, path, (key,)))
    report = prove_and_pack(root, "pds.test", tuple(deliveries), ProofSettings(True, LIMITS))
    left = {path.name for path in root.glob("*.car")}
    assert left == {f"{n}.car" for n, (_, did, _) in enumerate(files) if did in report.rejected}
    return report, {path.name: path.read_bytes() for path in root.rglob("*.parquet")}


def test_what_is_purged_while_a_pack_is_written_does_not_come_in_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, commit = StudyStorage(tmp_path / "study"), PackWriter.commit

    def purge_before(writer: PackWriter) -> str | None:
        """As by a run that took this one for dead, and looked through the packs before this one was there."""
        bury(storage, [did_of(1)], [], datetime.now(UTC))
        return commit(writer)

    monkeypatch.setattr(PackWriter, "commit", purge_before)
    report, files = packed(tmp_path / "study", [file_of(number) for number in range(3)])
    assert report.pack is not None
    stored = [rows["did"] for rows in map(pl.read_parquet, files.values()) if "did" in rows.columns]
    assert len(stored) == 2
    for dids in stored:
        assert set(dids) == {did_of(0), did_of(2)}


def test_a_pack_is_the_same_however_files_are_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [file_of(number) for number in range(12)]
    whole = forged(3)
    files[3] = file_of(3, car(whole.root, {cid: b for cid, b in whole.blocks.items() if cid != whole.data}))
    files[5] = (files[5][0][:-1], *files[5][1:])
    files[7] = (b"<html>", *files[7][1:])
    files[8] = (*files[8][:2], K256Signer(b"\x33" * 32).did_key)
    files[9] = (b"", *files[9][1:])

    several = packed(tmp_path / "several", files)
    monkeypatch.setattr(proof, "_GROUP_BYTES", 10_000)
    some = packed(tmp_path / "some", files)
    monkeypatch.setattr(proof, "_GROUP_BYTES", 0)
    single = packed(tmp_path / "single", files)

    assert {did: fault for did, (fault, _) in several[0].rejected.items()} == {
        did_of(3): RepoFault.MISSING_BLOCK,
        did_of(5): RepoFault.TRUNCATED,
        did_of(7): RepoFault.NOT_A_CAR,
        did_of(8): RepoFault.BAD_SIGNATURE,
        did_of(9): RepoFault.EMPTY_BODY,
    }
    assert several[0].rejected == some[0].rejected == single[0].rejected
    assert several[1] == some[1] == single[1]
    assert len(single[1]) == 2
