"""Serves the API: `python -m backfill_dagster.api`; `--openapi` prints its OpenAPI document instead."""

from __future__ import annotations

import argparse
import json
import os
import sys

from backfill_dagster.errors import ConfigError

_INSTALL = "the API needs its extra: pip install 'backfill-dagster[api]'"
# Requests at once; more are told to come again.
_MOST_AT_ONCE = 64


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; return 2 if the environment is not in order."""
    parser = argparse.ArgumentParser(prog="python -m backfill_dagster.api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--openapi", action="store_true", help="print the OpenAPI document and serve nothing")
    chosen = parser.parse_args(arguments)
    try:
        import uvicorn

        from backfill_dagster.api.app import create_app, openapi_document
        from backfill_dagster.api.environment import FacadeSettings
        from backfill_dagster.api.serving import ServerSettings
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{_INSTALL} ({error})\n")
        return 2
    if chosen.openapi:
        sys.stdout.write(json.dumps(openapi_document(), indent=2) + "\n")
        return 0
    try:
        server = ServerSettings.from_environment(os.environ)
        app = create_app(server, FacadeSettings.from_environment(os.environ))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    uvicorn.run(
        app,
        host=chosen.host,
        port=chosen.port,
        # Whoever may claim to speak for others could try tokens from a new address each time.
        proxy_headers=bool(server.proxies),
        forwarded_allow_ips=list(server.proxies),
        server_header=False,
        limit_concurrency=_MOST_AT_ONCE,
        timeout_graceful_shutdown=30,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
