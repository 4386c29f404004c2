import pickle

from backfill_dagster.repos.faults import RepoFault, RepoRejectedError


def test_a_refusal_comes_back_whole_from_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(RepoRejectedError(RepoFault.BAD_TREE, "detail")))

    assert (error.fault, error.detail) == (RepoFault.BAD_TREE, "detail")
    assert str(error) == "bad_tree: detail"


def test_what_a_server_wrote_is_not_quoted_at_length() -> None:
    assert len(RepoRejectedError(RepoFault.WRONG_DID, "x" * 100_000).detail) == 300
