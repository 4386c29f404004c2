"""How often and how much: by token, by address, by bytes."""

from collections.abc import Iterator
from typing import Any

from backfill_dagster_tests.api.serving_stub import TOKENS, serving, study_yaml
from backfill_dagster_tests.api.stub_dagster import StubDagster

CONFIGS = "/api/backfill/configs"


def test_each_token_has_its_own_rate(dagster: StubDagster) -> None:
    with serving(dagster, BACKFILL_API_RATE="3/minute") as api:
        assert [api.ask("GET", CONFIGS, token="reader").status_code for _ in range(5)] == [
            *(200, 200, 200),
            *(429, 429),
        ]
        refused = api.ask("GET", CONFIGS, token="reader")
        assert refused.json()["error"]["code"] == "too_many"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-content-type-options"] == "nosniff"
        assert api.ask("GET", CONFIGS, token="operator").status_code == 200


def test_an_address_that_keeps_failing_is_refused_and_those_with_a_token_who_share_it_are_not(
    dagster: StubDagster,
) -> None:
    with serving(dagster, BACKFILL_API_FAILED_RATE="3/minute") as api:
        bad = [("authorization", "Bearer no-such-token")]
        assert [api.raw("GET", CONFIGS, headers=bad).status_code for _ in range(5)] == [
            *(401, 401, 401),
            *(429, 429),
        ]
        # Nobody claims to come from elsewhere.
        claim = {"authorization": "Bearer no-such-token", "x-forwarded-for": "198.51.100.9"}
        assert api.raw("GET", CONFIGS, headers=claim).status_code == 429
        assert api.ask("GET", CONFIGS).status_code == 200
        assert api.raw("GET", CONFIGS, headers=bad).status_code == 429
        assert api.raw("GET", "/health").status_code == 200


def test_other_addresses_are_not_held_up_but_those_of_one_ipv6_network_are(dagster: StubDagster) -> None:
    app = serving(dagster, address="2001:db8::1", BACKFILL_API_FAILED_RATE="1/minute")
    with app as api:
        assert [api.raw("GET", CONFIGS).status_code for _ in range(2)] == [401, 429]
        transport: Any = api.client._transport
        for address, status in (("2001:db8::2", 429), ("2001:db8:0:1::1", 401), ("192.0.2.1", 401)):
            transport.client = (address, 1)
            assert api.raw("GET", CONFIGS).status_code == status


def test_a_body_that_is_too_large_is_refused_whatever_it_says_of_its_length(dagster: StubDagster) -> None:
    with serving(dagster, BACKFILL_API_MAX_BYTES="2000") as api:
        large = b'{"yaml": "' + b"x" * 5000 + b'"}'
        sent: list[int] = []

        def parts() -> Iterator[bytes]:
            for first in range(0, len(large), 500):
                sent.append(first)
                yield large[first : first + 500]

        json = {"content-type": "application/json"}
        variants: list[tuple[bytes | Iterator[bytes], dict[str, str]]] = [
            (large, {}),
            (parts(), {}),
            (large, {"content-length": "10"}),
        ]
        for content, claims in variants:
            headers = {**json, **claims, "authorization": f"Bearer {TOKENS['admin']}"}
            answer = api.raw("POST", CONFIGS, headers=headers, content=content)
            assert answer.status_code == 413
        assert dagster.asked == []
        # Without a token nothing of it is read.
        assert api.raw("POST", CONFIGS, content=large, headers=json).status_code == 401
        assert api.store(study_yaml()).status_code == 201


def test_a_body_that_nests_too_deep_is_refused(dagster: StubDagster) -> None:
    with serving(dagster) as api:
        headers = {"authorization": f"Bearer {TOKENS['admin']}", "content-type": "application/json"}
        for content in (b"[" * 100_000, b"9" * 50_000, b"\xff", b'{"yaml": "\\ud800", "\\ud800": 1}'):
            answer = api.raw("POST", CONFIGS, headers=headers, content=content)
            assert answer.status_code in (400, 422)
            assert answer.json()["error"]["code"] in ("bad_request", "invalid")


def test_an_answer_names_some_of_what_is_wrong_and_not_at_any_length(dagster: StubDagster) -> None:
    with serving(dagster) as api:
        for body in ({f"k{number}": 1 for number in range(5_000)}, {"k" * 100_000: 1}):
            answer = api.ask("POST", CONFIGS, json=body)
            assert answer.status_code == 422
            assert len(answer.text) < 5_000
