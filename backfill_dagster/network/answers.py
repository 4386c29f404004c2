"""What is wrong with an answer that arrived whole; apart from what asks, so that workers need not load that."""

from __future__ import annotations

from backfill_dagster.errors import BackfillError


class BadAnswerError(BackfillError):
    """A whole answer that is not what was asked for; the message says what is wrong with it."""
