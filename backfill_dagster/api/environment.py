"""What the environment says of the façade: where Dagster is, where the configs are, what they may reach."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from backfill_dagster.api.untrusted import Reach
from backfill_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

DAGSTER_URL_VARIABLE = "BACKFILL_DAGSTER_URL"
LOCATION_VARIABLE = "BACKFILL_DAGSTER_LOCATION"
TIMEOUT_VARIABLE = "BACKFILL_DAGSTER_TIMEOUT_SECONDS"
RELOAD_VARIABLE = "BACKFILL_DAGSTER_RELOAD_SECONDS"
# The same that the code location goes by.
CONFIGS_VARIABLE = "BACKFILL_CONFIGS"
PATHS_VARIABLE = "BACKFILL_API_PATHS"
VARIABLES_VARIABLE = "BACKFILL_API_VARIABLES"


@dataclass(frozen=True, slots=True)
class FacadeSettings:
    """Where the façade finds what it needs."""

    dagster_url: str
    configs: Path
    reach: Reach
    # The name that the workspace gives this project's code location.
    location: str = "backfill_dagster"
    # The longest time for one answer of the webserver, and for a reloaded code location to have a new job.
    timeout_seconds: float = 30
    reload_seconds: float = 120

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables; raises ConfigError naming the one that is wrong, not always with its value."""
        configs = Path(environ.get(CONFIGS_VARIABLE) or "configs")
        return cls(
            dagster_url=_webserver(environ.get(DAGSTER_URL_VARIABLE) or "http://127.0.0.1:3000"),
            configs=configs,
            reach=Reach(
                variables=frozenset(_variables(environ.get(VARIABLES_VARIABLE, ""))),
                data=tuple(
                    Path(part) for part in environ.get(PATHS_VARIABLE, "data").split(os.pathsep) if part
                ),
                lists=configs,
            ),
            location=environ.get(LOCATION_VARIABLE) or "backfill_dagster",
            timeout_seconds=number_in(environ, TIMEOUT_VARIABLE, default=30, least=1, most=300),
            reload_seconds=number_in(environ, RELOAD_VARIABLE, default=120, least=1, most=900),
        )


def number_in(environ: Mapping[str, str], name: str, *, default: float, least: float, most: float) -> float:
    """Read a number from the environment; raises ConfigError if it is none, or out of bounds."""
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ConfigError(f"{name} = {text!r}: must be a number from {least:g} to {most:g}")
    return value


def switch_in(environ: Mapping[str, str], name: str) -> bool:
    """Read a switch from the environment, off unless it is set; raises ConfigError if it is neither true nor false."""
    text = environ.get(name) or "false"
    if text not in ("true", "false"):
        raise ConfigError(f"{name} = {text!r}: must be true or false")
    return text == "true"


def _webserver(url: str) -> str:
    # Not repeated: it may hold a password.
    complaint = (
        f"{DAGSTER_URL_VARIABLE}: must be http(s)://host[:port][/prefix], the address of dagster-webserver"
    )
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigError(complaint) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(complaint)
    return url.rstrip("/")


def _variables(text: str) -> list[str]:
    names = [name for name in re.split(r"[,\s]+", text) if name]
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"{VARIABLES_VARIABLE} = {text!r}: {name!r} is no name of a variable")
    return names
