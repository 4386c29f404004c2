"""What may change from one run to the next: fields of the launchpad, with the study's YAML as defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

import dagster as dg
from pydantic import Field, ValidationError, create_model

from backfill_dagster.config.network import Network
from backfill_dagster.config.processing import Processing
from backfill_dagster.dids.syntax import WHITESPACE, check_did
from backfill_dagster.errors import ConfigError
from backfill_dagster.repos.snapshots import FetchMode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic.fields import FieldInfo

    from backfill_dagster.config.study import Study

_Section = TypeVar("_Section", Processing, Network)
_Settings = TypeVar("_Settings", bound=dg.Config)

# What a run may set, and what of the YAML it is set over.
_FETCH_FIELDS = {
    name: name
    for name in (
        "max_concurrent_pds",
        "requests_in_flight",
        "requests_per_second",
        "max_retries",
        "max_run_minutes",
    )
}
# What a purge is given, and what of all settings names accounts or records.
PURGE_FIELDS = ("dids", "uris", "file")
_NAMING = frozenset({"only_dids", "dids", "uris"})
_DIRECTORY_FIELDS = {
    "max_age_hours": "directory_max_age_hours",
    "plc_requests_per_second": "plc_requests_per_second",
}


class FetchSettings(dg.Config):
    """What may change from one fetch to the next; each study has its own class, with its YAML's values as defaults."""

    only_hosts: list[str] = Field(
        default=[],
        description="Fetch from these PDS hosts alone, named as their partitions are; all if empty.",
    )
    only_dids: list[str] = Field(
        default=[],
        description="Fetch these accounts alone; all if empty. A run's configuration is kept with its history, until "
        "an account that stands in it is purged.",
    )

    @property
    def accounts(self) -> list[str]:
        """The accounts to fetch alone; raises ConfigError for what is no DID."""
        for number, did in enumerate(self.only_dids, start=1):
            if (rejection := check_did(did)) is not None:
                # Not repeated: it may be a handle, and an event cannot be rid of a name again.
                raise ConfigError(
                    f"run config: only_dids: entry {number} is no DID of an account ({rejection})"
                )
        return [did.strip(WHITESPACE) for did in self.only_dids]

    def hosts_among(self, partitions: Sequence[str]) -> list[str]:
        """Return the hosts, of those that a run is for, to fetch from; raises ConfigError for one that is none."""
        for host in self.only_hosts:
            if host not in partitions:
                raise ConfigError(f"run config: only_hosts = {host!r}: is no host that this run is for")
        return [host for host in partitions if not self.only_hosts or host in self.only_hosts]

    def over(self, processing: Processing) -> Processing:
        """Return the study's processing with this run's values in place; raises ConfigError."""
        return _over(processing, self, _FETCH_FIELDS)

    def check(self, processing: Processing) -> None:
        """Raise ConfigError for a value that can be told to be wrong without the directory."""
        self.over(processing)
        _ = self.accounts

    def leaves_some_out(self, processing: Processing) -> bool:
        """Tell whether accounts that are not attempted are what was asked for."""
        has_end = self.over(processing).max_run_minutes is not None
        return has_end or bool(self.only_hosts or self.only_dids)


class AssetFetchSettings(FetchSettings):
    """Those of a fetch by itself: the jobs that do a whole study settle what they fetch."""

    mode: Literal["unsettled", "failed", "refresh"] = Field(
        default=FetchMode.UNSETTLED.value,
        description="`unsettled` fetches accounts that were not fetched yet or failed, `failed` only the latter, "
        "`refresh` all that have moved on since.",
    )

    @property
    def fetch_mode(self) -> FetchMode:
        """Return the mode."""
        return FetchMode(self.mode)


class DirectorySettings(dg.Config):
    """What may change from one look at the directory to the next; each study has its own class."""

    def over(self, network: Network) -> Network:
        """Return the study's network section with this run's values in place; raises ConfigError."""
        return _over(network, self, _DIRECTORY_FIELDS)


class ConversionSettings(dg.Config):
    """What may change from one conversion to the next."""

    again: bool = Field(
        default=False, description="Also convert what is converted with these settings already."
    )


class BuildSettings(dg.Config):
    """What may change from one build of the tables to the next."""

    again: bool = Field(default=False, description="Also build what is up to date.")


class TableSettings(BuildSettings):
    """What may change from one build of a table's partitions to the next."""

    only_stale: bool = Field(
        default=False, description="Build and report only the partitions whose records have changed."
    )


def differing_settings(study: Study, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a step's configuration what differs from the YAML; of accounts and records only how many."""
    usual: dict[str, Any] = {
        **{field: getattr(study.processing, name) for field, name in _FETCH_FIELDS.items()},
        **{field: getattr(study.network, name) for field, name in _DIRECTORY_FIELDS.items()},
        "mode": FetchMode.UNSETTLED.value,
    }
    told = {name: value for name, value in given.items() if value and value != usual.get(name)}
    # A number of theirs can be 0, which is none of the values that say nothing.
    told |= {name: value for name, value in given.items() if name in usual and value != usual[name]}
    return {
        name: len(value) if name in _NAMING and isinstance(value, list) else value
        for name, value in told.items()
    }


def fetch_settings_class(study: Study, base: type[_Settings]) -> type[_Settings]:
    """Make the class of a study's fetch settings on top of one of the above."""
    return _settings_class(base, study.processing, _FETCH_FIELDS)


def directory_settings_class(study: Study) -> type[DirectorySettings]:
    """Make the class of a study's directory settings."""
    return _settings_class(DirectorySettings, study.network, _DIRECTORY_FIELDS)


def _settings_class(
    base: type[_Settings], section: Processing | Network, fields: Mapping[str, str]
) -> type[_Settings]:
    """Make a class with these fields of a section of the YAML, its values as defaults."""
    infos = {field: type(section).model_fields[name] for field, name in fields.items()}
    made: dict[str, Any] = {
        field: (
            info.annotation,
            Field(default=getattr(section, fields[field]), description=_described(info)),
        )
        for field, info in infos.items()
    }
    settings: type[_Settings] = create_model(base.__name__, __base__=base, **made)
    return settings


def _described(info: FieldInfo) -> str:
    """Return a field's description with its bounds, which Dagster's own schema cannot hold."""
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    bounds = [
        f"{word} {getattr(bound, kind):g}"
        for bound in info.metadata
        for kind, word in words.items()
        if hasattr(bound, kind)
    ]
    return f"{info.description or ''} {', '.join(bounds).capitalize()}.".strip()


def _over(section: _Section, chosen: dg.Config, fields: Mapping[str, str]) -> _Section:
    """Return a section of the YAML with a run's values in place; they have the YAML's bounds."""
    values = {name: getattr(chosen, field) for field, name in fields.items()}
    try:
        return type(section).model_validate({**section.model_dump(), **values})
    except ValidationError as error:
        ours = {name: field for field, name in fields.items()}
        told = [
            f"run config: {ours.get(str(item['loc'][0]), item['loc'][0])} = {item['input']!r}: {item['msg']}"
            for item in error.errors(include_url=False)
        ]
        raise ConfigError("\n".join(told)) from None
