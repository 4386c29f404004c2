"""Where the metrics of a process can be read: on a port, at a push gateway, in a file.

None of these is worth a run: what fails is told once, and tried again.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from prometheus_client import start_http_server

from backfill_dagster.monitoring.push_gateway import PushGateway
from backfill_dagster.monitoring.textfile import Textfile

if TYPE_CHECKING:
    from pathlib import Path
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry

    from backfill_dagster.config.operation import Monitoring

logger = logging.getLogger(__name__)

# Between two pushes, and two writes of the file, however long a stage takes; seconds.
EVERY_SECONDS = 15.0


class Exposition:
    """Shows one registry in all the ways that the studies of this process ask for, from their first stage on."""

    def __init__(self, registry: CollectorRegistry, *, every: float = EVERY_SECONDS) -> None:
        self._registry = registry
        self._every = every
        self._lock = threading.Lock()
        self._servers: dict[tuple[str, int], tuple[WSGIServer, threading.Thread] | None] = {}
        self._gateways: dict[tuple[str, str], PushGateway] = {}
        self._textfiles: dict[Path, Textfile] = {}

    def begin(self, study: str, wanted: Monitoring) -> None:
        """Begin to show what the study of this name wants shown, unless that is done already."""
        with self._lock:
            if wanted.prometheus_port is not None:
                self._serve(wanted.prometheus_address, wanted.prometheus_port)
            if wanted.prometheus_pushgateway is not None:
                key = (wanted.prometheus_pushgateway, study)
                if key not in self._gateways:
                    self._gateways[key] = PushGateway(*key, self._registry, every=self._every)
            if wanted.prometheus_textfile is not None and wanted.prometheus_textfile not in self._textfiles:
                path = wanted.prometheus_textfile
                self._textfiles[path] = Textfile(path, self._registry, every=self._every)

    def refresh(self) -> None:
        """Push and write what there is to be told now: a stage has ended."""
        with self._lock:
            textfiles, gateways = list(self._textfiles.values()), list(self._gateways.values())
        for textfile in textfiles:
            textfile.refresh()
        for gateway in gateways:
            gateway.push()

    def close(self) -> None:
        """Show nothing any more."""
        with self._lock:
            for gateway in self._gateways.values():
                gateway.close()
            for textfile in self._textfiles.values():
                textfile.close()
            for server in self._servers.values():
                if server is not None:
                    server[0].shutdown()
                    server[0].server_close()
                    server[1].join()
            self._servers.clear()
            self._gateways.clear()
            self._textfiles.clear()

    def _serve(self, address: str, port: int) -> None:
        if self._servers.get((address, port)) is not None:
            return
        told_before = (address, port) in self._servers
        self._servers[address, port] = None
        try:
            self._servers[address, port] = start_http_server(port, address, self._registry)
        except OSError as error:
            if not told_before:
                logger.warning(
                    "the metrics are not served, because %s:%d cannot be had: %s", address, port, error
                )
