"""Nobody gets past the tokens: whatever the route, the method, the headers and the spelling."""

import json

import pytest
from starlette.websockets import WebSocketDisconnect

from backfill_dagster_tests.api.serving_stub import OPERATIONS, SCOPES, TOKENS, ApiClient, serving
from backfill_dagster_tests.api.stub_dagster import StubDagster

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
PATHS = (
    *sorted({path for _, path, _ in OPERATIONS}),
    *("/", "/docs", "/openapi.json", "/redoc", "/docs/oauth2-redirect", "/metrics", "/api", "/no/such/path"),
    *(
        "/health/",
        "/HEALTH",
        "/health/../docs",
        "/health;x",
        "//health",
        "/health%2f",
        "/%68ealth/",
        "/health%00",
    ),
    *(
        "/api/backfill/configs/",
        "/API/BACKFILL/CONFIGS",
        "/api/backfill//configs",
        "/health/..%2fapi/backfill/configs",
    ),
)
TOKEN = TOKENS["everything"]
TRICKS: tuple[list[tuple[str, str]], ...] = (
    [],
    [("authorization", "")],
    [("authorization", "Bearer")],
    [("authorization", "Bearer ")],
    [("authorization", TOKEN)],
    [("authorization", f"Basic {TOKEN}")],
    [("authorization", f"Token {TOKEN}")],
    [("authorization", f"Bearer{TOKEN}")],
    [("authorization", f"Bearer {TOKEN[:-1]}")],
    [("authorization", f"Bearer {TOKEN}x")],
    [("authorization", f"Bearer {TOKEN}=")],
    [("authorization", f"Bearer {TOKEN.swapcase()}")],
    [("authorization", f"Bearer {TOKEN} {TOKEN}")],
    [("authorization", f"Bearer {TOKEN},Bearer {TOKEN}")],
    [("authorization", f'Bearer "{TOKEN}"')],
    [("authorization", f"Bearer everything:{TOKEN}")],
    [("authorization", f"Bearer everything:read+run+admin:{TOKEN}")],
    [("authorization", "Bearer null"), ("x-token", TOKEN)],
    [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")],
    [("authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")],
    [("authorization", f"Bearer {'a' * 5000}")],
    [("authorization", "Bearer é".encode("latin-1").decode("latin-1"))],
    [("proxy-authorization", f"Bearer {TOKEN}")],
    [("x-api-key", TOKEN)],
    [("cookie", f"token={TOKEN}; authorization=Bearer {TOKEN}")],
    [("x-forwarded-for", "127.0.0.1"), ("x-forwarded-user", "everything"), ("x-original-url", "/health")],
    [("x-rewrite-url", "/health"), ("x-http-method-override", "GET")],
)


@pytest.mark.parametrize("path", PATHS)
def test_no_route_and_no_method_answers_without_a_token(
    api: ApiClient, dagster: StubDagster, path: str
) -> None:
    for method in METHODS:
        answer = api.raw(method, path)
        assert answer.status_code == 401, f"{method} {path}"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-security-policy"] or method == "HEAD"
    assert dagster.asked == []


@pytest.mark.parametrize("headers", TRICKS)
def test_no_header_but_one_of_a_known_token_lets_in(
    api: ApiClient, dagster: StubDagster, headers: list[tuple[str, str]]
) -> None:
    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    for method, path, _ in OPERATIONS:
        answer = api.raw(method, path, headers=sent, params={"token": TOKEN, "access_token": TOKEN})
        assert answer.status_code == 401, f"{method} {path}"
        assert answer.json()["error"]["code"] == "unauthorized"
    assert dagster.asked == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_the_scheme_is_read_in_any_case(api: ApiClient, scheme: str) -> None:
    answer = api.raw("GET", "/api/backfill/configs", headers={"authorization": f"{scheme} {TOKEN}"})
    assert answer.status_code == 200


@pytest.mark.parametrize("name", SCOPES)
@pytest.mark.parametrize(("method", "path", "needed"), OPERATIONS)
def test_a_token_does_what_its_scopes_say_and_no_more(
    api: ApiClient, dagster: StubDagster, method: str, path: str, needed: set[str], name: str
) -> None:
    # A body that is no JSON: whoever is let in learns of that, whoever is not does not.
    answer = api.ask(method, path, token=name, content=b"{")
    if needed <= set(SCOPES[name].split("+")):
        assert answer.status_code in (200, 404, 422)
    else:
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "forbidden"
        assert dagster.asked == []


def test_a_whole_yaml_needs_admin_as_well(api: ApiClient, dagster: StubDagster) -> None:
    body = {"yaml": "backfill: {name: pilot}"}
    assert api.ask("POST", "/api/backfill/start", token="operator", json=body).status_code == 403
    assert api.ask("POST", "/api/backfill/start", token="admin", json=body).status_code == 403
    assert dagster.asked == []
    assert [path.name for path in dagster.configs.iterdir()] == ["demo.yaml"]


def test_only_health_needs_no_token_and_it_tells_nothing(api: ApiClient, dagster: StubDagster) -> None:
    answer = api.raw("GET", "/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    for method in METHODS[1:]:
        assert api.raw(method, "/health").status_code == 401
    assert dagster.asked == []


def test_the_docs_are_open_only_if_they_are_made_so(dagster: StubDagster) -> None:
    with serving(dagster, BACKFILL_API_PUBLIC_DOCS="true") as api:
        page = api.raw("GET", "/docs")
        assert page.status_code == 200
        assert "cdn.jsdelivr.net" in page.headers["content-security-policy"]
        assert api.raw("GET", "/openapi.json").status_code == 200
        assert api.raw("POST", "/docs").status_code == 401
        assert api.raw("GET", "/api/backfill/configs").status_code == 401
    with serving(dagster) as api:
        assert api.raw("GET", "/docs").status_code == 401
        assert api.ask("GET", "/docs", token="reader").status_code == 200


def test_every_answer_has_its_security_headers_and_none_allows_other_origins(api: ApiClient) -> None:
    for answer in (
        api.raw("GET", "/health", headers={"origin": "https://evil.test"}),
        api.raw("GET", "/nowhere"),
        api.ask("GET", "/api/backfill/configs"),
        api.ask("POST", "/api/backfill/start", content=b"{"),
        api.ask("PUT", "/api/backfill/start"),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert "access-control-allow-origin" not in answer.headers


def test_no_websocket_is_opened(api: ApiClient) -> None:
    with pytest.raises(WebSocketDisconnect), api.client.websocket_connect("/api/backfill/configs"):
        pass


def test_every_operation_says_its_scopes_and_has_examples(api: ApiClient) -> None:
    document = api.ask("GET", "/openapi.json").json()
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert len(operations) == len(OPERATIONS) + 1
    for (method, path), operation in operations.items():
        assert operation["x-scopes"] or path == "/health"
        success = next(answer for code, answer in operation["responses"].items() if code.startswith("2"))
        assert success["content"]["application/json"]["example"], (method, path)
        if method == "POST":
            assert operation["requestBody"]["content"]["application/json"]["examples"]
    assert document["security"] == [{"token": []}]
    assert TOKEN not in json.dumps(document)
