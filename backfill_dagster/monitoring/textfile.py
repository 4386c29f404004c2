"""Metrics in a file, for the textfile collector of Prometheus' node exporter: what is left of a run that has ended."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from prometheus_client import write_to_textfile

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)


class Textfile:
    """A file with all metrics, replaced as a whole at the end of each stage and every so many seconds."""

    def __init__(self, path: Path, registry: CollectorRegistry, *, every: float) -> None:
        self._path = path
        self._registry = registry
        self._every = every
        self._failing = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write_again_and_again, name="textfile", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """Write it now; a file that cannot be written is told of once."""
        with self._lock:
            try:
                write_to_textfile(str(self._path), self._registry)
            except Exception as error:  # noqa: BLE001  also one of a collector: none is worth a run
                if not self._failing:
                    logger.warning("the metrics cannot be written to %s: %s", self._path, error)
                self._failing = True
            else:
                self._failing = False

    def close(self) -> None:
        """Write no more."""
        self._closed.set()
        self._thread.join()

    def _write_again_and_again(self) -> None:
        while not self._closed.wait(self._every):
            self.refresh()
