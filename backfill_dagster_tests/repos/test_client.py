import orjson
import pytest

from backfill_dagster.repos.client import classify_error
from backfill_dagster.repos.outcomes import FailureReason, Outcome


def xrpc(name: str, message: str = "words") -> bytes:
    return orjson.dumps({"error": name, "message": message})


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (400, xrpc("RepoNotFound", "Could not find repo for DID: did:plc:x"), Outcome.NOT_FOUND),
        (400, xrpc("RepoTakendown"), Outcome.TAKENDOWN),
        (400, xrpc("RepoSuspended"), Outcome.SUSPENDED),
        (400, xrpc("RepoDeactivated"), Outcome.DEACTIVATED),
        (400, xrpc("InvalidRequest", "Could not find repo: did:plc:x"), Outcome.NOT_FOUND),
        (404, xrpc("RepoNotFound"), Outcome.NOT_FOUND),
    ],
)
def test_states_of_an_account(status: int, body: bytes, outcome: Outcome) -> None:
    answer = classify_error(status, body)
    assert (answer.outcome, answer.reason) == (outcome, None)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, xrpc("InvalidRequest", "Invalid DID"), FailureReason.UNEXPECTED_ANSWER),
        (400, b"<html>", FailureReason.UNEXPECTED_ANSWER),
        (400, b"[1]", FailureReason.UNEXPECTED_ANSWER),
        (400, b'{"error": 5}', FailureReason.UNEXPECTED_ANSWER),
        (400, b"[" * 100_000, FailureReason.UNEXPECTED_ANSWER),
        (401, xrpc("AuthenticationRequired"), FailureReason.UNEXPECTED_ANSWER),
        (404, b"", FailureReason.UNEXPECTED_ANSWER),
        (500, xrpc("RepoNotFound"), FailureReason.SERVER_ERROR),
        (502, b"<html>bad gateway</html>", FailureReason.SERVER_ERROR),
        (429, xrpc("RateLimitExceeded"), FailureReason.RATE_LIMITED),
        (429, b"<html>slow down</html>", FailureReason.RATE_LIMITED),
        (302, b"", FailureReason.UNEXPECTED_ANSWER),
    ],
)
def test_failures(status: int, body: bytes, reason: FailureReason) -> None:
    answer = classify_error(status, body)
    assert (answer.outcome, answer.reason) == (Outcome.FAILED, reason)
    assert answer.http_status == status


def test_what_a_server_says_is_cut() -> None:
    answer = classify_error(400, xrpc("E" * 100_000, "m" * 100_000))
    assert len(answer.server_error or "") <= 300
    assert len(answer.detail or "") <= 300
