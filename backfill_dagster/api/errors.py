"""What a request can end in besides an answer: a small closed set, each with the HTTP status that it is told by."""

from __future__ import annotations

from typing import ClassVar

from backfill_dagster.errors import BackfillError


class ApiError(BackfillError):
    """Base of the errors of the façade; `status` is HTTP's, `code` a word that programs can go by."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "error"


class InvalidRequestError(ApiError):
    """The request, or the YAML in it, says something that cannot be right; the message names field and value."""

    status = 422
    code = "invalid"


class NotFoundError(ApiError):
    """There is no such config, or no such job of this project."""

    status = 404
    code = "not_found"


class ConflictError(ApiError):
    """What is asked for does not go with how things stand."""

    status = 409
    code = "conflict"


class ForbiddenError(ApiError):
    """The token's scopes do not allow it."""

    status = 403
    code = "forbidden"


class ConfigsUnwritableError(ApiError):
    """The configs folder cannot be read or written."""

    status = 503
    code = "configs_unwritable"


class DagsterError(ApiError):
    """Base of what can be wrong with Dagster's webserver; none of these messages names its address."""


class DagsterUnreachableError(DagsterError):
    """Nobody answers at its address."""

    status = 503
    code = "dagster_unreachable"


class DagsterTimeoutError(DagsterError):
    """It answers too slowly."""

    status = 504
    code = "dagster_timeout"


class DagsterAnswerError(DagsterError):
    """It answers something else than it should: an error, no GraphQL, or too much."""

    status = 502
    code = "dagster_answer"
