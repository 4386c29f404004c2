"""What all parts of a backfill's YAML have in common."""

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the YAML: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


def http_origin(value: str) -> str:
    """Validate an address of a server, without a path."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError("must be http(s)://host[:port]")
    return value.rstrip("/")
