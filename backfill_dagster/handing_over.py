"""Stage 7 as functions of a study: its records handed to the consumers that its YAML names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.handoff.hand_over import Handoff, purge_handoffs
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study
    from backfill_dagster.handoff.hand_over import HandoffReport


def consumers(study: Study) -> list[str]:
    """Return the names of the consumers that records are handed to; none if that is switched off."""
    return list(study.integrations.consumers) if study.integrations.classification else []


def pending_consumers(study: Study) -> list[str]:
    """Return those consumers for whom there may be something new; reads no records."""
    return [name for name in consumers(study) if _handoff(study, name).is_pending()]


def hand_over(study: Study, consumer: str) -> HandoffReport:
    """Hand to one consumer all records of its tables that it was never handed; raises StorageError.

    Can be called again at any time, also after it was killed: nothing is handed over twice, and nothing is lost.
    """
    return _handoff(study, consumer).run()


def hand_over_all(study: Study) -> dict[str, HandoffReport]:
    """Hand their records to all consumers, one after the other."""
    return {name: hand_over(study, name) for name in consumers(study)}


def purge(study: Study, tombstones: Tombstones) -> tuple[int, int]:
    """Take what is purged out of what was handed over; return rows removed, and rows masked."""
    return purge_handoffs(StudyStorage(study.location), study.name, tombstones)


def _handoff(study: Study, consumer: str) -> Handoff:
    storage = StudyStorage(study.location)
    settings = study.integrations.consumers[consumer]
    return Handoff(storage, study.name, consumer, settings, Tombstones.load(storage))
