"""The HTTP API: its routes with the scopes that they need, its documentation, and how errors become answers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from backfill_dagster.api.answers import AsciiJson, error_answer
from backfill_dagster.api.errors import ApiError, ForbiddenError
from backfill_dagster.api.examples import (
    CANCELED,
    CONFIGS,
    HEALTHY,
    STARTED,
    STARTS,
    STATUS,
    STORED,
    STORES,
    errors,
    success,
)
from backfill_dagster.api.facade import Backfills
from backfill_dagster.api.guard import CALLER, DOCS_PATH, HEALTH_PATH, SCHEMA_PATH, Guard
from backfill_dagster.api.models import (
    RUN_ID,
    CanceledJob,
    ConfigList,
    Health,
    JobStatus,
    StartedJob,
    StartRequest,
    StoredConfig,
    StoreRequest,
)
from backfill_dagster.api.rates import Rates
from backfill_dagster.api.tokens import Caller, Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from starlette.responses import Response

    from backfill_dagster.api.environment import FacadeSettings
    from backfill_dagster.api.serving import ServerSettings

JobId = Annotated[str, Path(pattern=RUN_ID, description="The job's id, as it was answered at its start.")]

_SCOPES = "x-scopes"
# Of what is wrong with a request: how many fields are named, and with how long a name, which can be the request's own.
_MAX_FIELDS = 20
_MAX_NAME = 200
_DESCRIPTION = """Starts, shows and cancels backfills of a running Dagster deployment, and stores their configs.

Every request needs the header `Authorization: Bearer <token>`; each operation says which scopes of the token it needs.
Errors are always `{"error": {"code": ..., "message": ...}}`."""


class ScopedRoute(APIRoute):
    """A route that looks at the scopes of the caller before anything reads the request's body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what handles a request."""
        handle = super().get_route_handler()
        needed = [Scope(scope) for scope in (self.openapi_extra or {})[_SCOPES]]

        async def guarded(request: Request) -> Response:
            if needed:
                require(_caller(request), *needed)
            return await handle(request)

        return guarded


def require(caller: Caller, *scopes: Scope) -> None:
    """Raise ForbiddenError unless a caller has all of these scopes."""
    missing = [scope for scope in scopes if scope not in caller.scopes]
    if missing:
        raise ForbiddenError(f"needs a token with the scope {' and '.join(missing)}")


def create_app(
    server: ServerSettings,
    facade: FacadeSettings,
    connect: Callable[[FacadeSettings], AbstractContextManager[Backfills]] = Backfills.connected,
) -> FastAPI:
    """Return the application; it connects to Dagster, without asking it anything, when it is started."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with connect(facade) as backfills:
            app.state.backfills = backfills
            yield

    app = _application(lifespan)
    # The last is the outermost: the body is counted once its sender is known.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=server.max_bytes)
    app.add_middleware(
        Guard,
        tokens=server.tokens,
        rates=Rates(server.rate, server.failed_rate),
        public_docs=server.public_docs,
    )
    return app


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document of the API; needs no settings."""
    return _application(None).openapi()


def _application(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None) -> FastAPI:
    app = FastAPI(
        title="backfill_dagster",
        version="1",
        description=_DESCRIPTION,
        lifespan=lifespan,
        default_response_class=AsciiJson,
        docs_url=DOCS_PATH,
        redoc_url=None,
        openapi_url=SCHEMA_PATH,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
        openapi_tags=[
            {"name": "jobs", "description": "Runs of stored configs."},
            {"name": "configs", "description": "What can be run."},
        ],
    )
    app.router.route_class = ScopedRoute
    _add_routes(app)
    _add_error_handlers(app)
    _describe_tokens(app)
    return app


def _add_routes(app: FastAPI) -> None:
    @app.get(
        HEALTH_PATH,
        summary="Whether the API is there",
        description="Needs no token, and asks nobody.",
        responses=success(200, HEALTHY),
        openapi_extra={_SCOPES: [], "security": []},
    )
    async def health() -> Health:
        # On the event loop: it answers although all threads wait for Dagster.
        return Health()

    @app.post(
        "/api/backfill/start",
        status_code=202,
        tags=["jobs"],
        summary="Start a backfill",
        description="Of a stored config by its name, or of a whole YAML, which is validated and stored first. Answers "
        "with the job's id as soon as Dagster has taken it on. Needs the scope `run`; for a YAML `admin` as well.",
        responses={**success(202, STARTED), **errors(400, 401, 403, 404, 409, 413, 422, 429, 502, 503, 504)},
        openapi_extra={_SCOPES: [Scope.RUN], **STARTS},
    )
    def start(request: Request, wanted: StartRequest) -> StartedJob:
        backfills, caller = _backfills(request), _caller(request)
        started_by = f"api:{caller.name}"
        if wanted.yaml is not None:
            require(caller, Scope.RUN, Scope.ADMIN)
            return backfills.start_yaml(wanted.yaml, wanted.mode, wanted.settings, started_by)
        return backfills.start(wanted.config or "", wanted.mode, wanted.settings, started_by)

    @app.get(
        "/api/backfill/status/{job_id}",
        tags=["jobs"],
        summary="Where a job stands",
        description="Its state, how far the stage under way is, what became of the accounts and records, and why it "
        "failed. Also of jobs that were started elsewhere. Needs the scope `read`.",
        responses={**success(200, STATUS), **errors(401, 403, 404, 422, 429, 502, 503, 504)},
        openapi_extra={_SCOPES: [Scope.READ]},
    )
    def status(request: Request, job_id: JobId) -> JobStatus:
        return _backfills(request).status(job_id)

    @app.delete(
        "/api/backfill/jobs/{job_id}",
        status_code=202,
        tags=["jobs"],
        summary="Cancel a job",
        description="Has it ended in order, with the stage that it is in; its status says when it has. What it has "
        "fetched is kept: the next job of the config goes on from there. Needs the scope `run`.",
        responses={**success(202, CANCELED), **errors(401, 403, 404, 409, 422, 429, 502, 503, 504)},
        openapi_extra={_SCOPES: [Scope.RUN]},
    )
    def cancel(request: Request, job_id: JobId) -> CanceledJob:
        return _backfills(request).cancel(job_id)

    @app.get(
        "/api/backfill/configs",
        tags=["configs"],
        summary="List the configs",
        description="All that are stored, each with whether it can be started. Needs the scope `read`.",
        responses={**success(200, CONFIGS), **errors(401, 403, 429, 502, 503, 504)},
        openapi_extra={_SCOPES: [Scope.READ]},
    )
    def configs(request: Request) -> ConfigList:
        return ConfigList(configs=_backfills(request).configs())

    @app.post(
        "/api/backfill/configs",
        status_code=201,
        tags=["configs"],
        summary="Validate and store a config",
        description="As the file `<backfill.name>.yaml`, and has Dagster load it. A config that is there is never "
        "replaced. What the YAML may use of the server is bounded. Needs the scope `admin`.",
        responses={
            **success(201, STORED),
            **errors(400, 401, 403, 409, 413, 422, 429, 502, 503, 504),
        },
        openapi_extra={_SCOPES: [Scope.ADMIN], **STORES},
    )
    def store(request: Request, wanted: StoreRequest) -> StoredConfig:
        return _backfills(request).store(wanted.yaml)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def known(_: Request, error: ApiError) -> Response:
        return error_answer(error.status, error.code, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        # Neither pydantic's `input` nor its `ctx`: they repeat what was sent.
        fields = [
            (".".join(map(str, item["loc"]))[:_MAX_NAME], str(item["msg"]).removeprefix("Value error, "))
            for item in error.errors()[:_MAX_FIELDS]
        ]
        return error_answer(422, "invalid", "the request is not as the docs say", fields=fields)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        codes = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
        code = codes.get(error.status_code, "error")
        return error_answer(error.status_code, code, str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:  # noqa: ARG001  it is logged by who raises it on
        return error_answer(
            500, "unexpected", "something went wrong that should not have: see the server's log"
        )


def _describe_tokens(app: FastAPI) -> None:
    """Have the OpenAPI document say that every operation but one needs a token."""
    make = app.openapi

    def described() -> dict[str, Any]:
        document = make()
        document.setdefault("components", {})["securitySchemes"] = {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "A token of the server's environment.",
            }
        }
        document["security"] = [{"token": []}]
        return document

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's documented way


def _caller(request: Request) -> Caller:
    caller = request.scope["state"][CALLER]
    assert isinstance(caller, Caller)  # noqa: S101  Guard lets nothing else through
    return caller


def _backfills(request: Request) -> Backfills:
    backfills = request.app.state.backfills
    assert isinstance(backfills, Backfills)  # noqa: S101  set when the application was started
    return backfills
