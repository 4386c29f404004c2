"""What a YAML may not do that came over the network, although a file in the configs folder may.

Whoever may write files on the server has its rights anyway; whoever has a token must not get them by a YAML. So it can
read no environment variable and no file but those that are allowed, write nowhere but in the studies' storage, and
not loosen what protects private networks. And it cannot be built to take more time or memory than its size tells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from backfill_dagster.api.errors import InvalidRequestError
from backfill_dagster.config.metadata_store import MetadataStore
from backfill_dagster.config.network import Network
from backfill_dagster.config.operation import Monitoring
from backfill_dagster.config.processing import Storage
from backfill_dagster.config.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.config.study import Study

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# What an escape in a YAML can make, and no file name and no UTF-8 can hold.
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
_MAX_DEPTH = 30
# Of all mappings together: what is said of one wrong key takes a look at all others.
_MAX_KEYS = 1_000
# What only somebody with access to the server may set, by the file itself.
_FILE_ONLY = {
    "network.allow_private_addresses": "it lets servers lead into private networks",
    "network.connect_to": "it leads into private networks",
    "network.dns_server": "it decides where handles lead",
    "monitoring.prometheus_address": "it opens the server to its network",
    "monitoring.prometheus_pushgateway": "it may lead into private networks",
    "storage.type": "it writes with the server's credentials",
    "storage.endpoint_url": "the server's credentials go there, and it may lead into private networks",
    "metadata_store.type": "it writes with the server's credentials",
    "metadata_store.endpoint_url": "the server's credentials go there, and it may lead into private networks",
}
# A source has a metadata store too, which it only reads; where that is, only a file may say all the same.
_ENDPOINT = "metadata_store.endpoint_url"
_STORAGE = "storage.path"
# The parts of a study that name files to read. All other paths are written to.
_READ = ("source", "exclude", "filters", "derived")


@dataclass(frozen=True, slots=True)
class Reach:
    """What a YAML from the network may use: environment variables, and folders.

    `data` are the folders that studies may be stored in and may read lists from; `lists` is the configs folder, which
    they may read lists from as well. Relative paths are as the code location sees them: run the API in its folder.
    """

    variables: frozenset[str] = frozenset()
    data: tuple[Path, ...] = (Path("data"),)
    lists: Path = Path("configs")


def check_text(text: str, reach: Reach) -> None:
    """Raise InvalidRequestError for YAML that grows when it is read, or that asks for a variable it may not have.

    Only what can be told before it is a study; what is no YAML at all is for the loader to say.
    """
    # Of each mapping or list that is open, whether it is a mapping.
    open_nodes: list[bool] = []
    entries = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            _check_event(event, reach)
            if isinstance(event, yaml.CollectionEndEvent):
                open_nodes.pop()
            if isinstance(event, yaml.NodeEvent) and open_nodes and open_nodes[-1]:
                # A key, or its value.
                entries += 1
                if entries > 2 * _MAX_KEYS:
                    raise InvalidRequestError(f"yaml: no more than {_MAX_KEYS:,} keys are accepted here")
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append(isinstance(event, yaml.MappingStartEvent))
                if len(open_nodes) > _MAX_DEPTH:
                    raise InvalidRequestError(f"yaml: must not be nested deeper than {_MAX_DEPTH}")
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidRequestError(f"yaml: is not valid YAML: {' '.join(str(error).split())}") from None


def check_study(study: Study, reach: Reach) -> None:
    """Raise InvalidRequestError for a path or a setting that a YAML from the network may not have."""
    fields, usual_fields = dict(_leaves(study)), _usual_fields()
    for field, value in fields.items():
        name = _ENDPOINT if field.endswith(f".{_ENDPOINT}") else field
        if name in _FILE_ONLY and value != usual_fields[name]:
            raise _file_only(field, _FILE_ONLY[name])
    variables = {
        "monitoring.alert_webhook_variable": (
            study.monitoring.alert_webhook_variable,
            Monitoring().alert_webhook_variable,
        ),
        "sharing.salt_variable": (study.sharing.salt_variable, Sharing().salt_variable),
    }
    for field, (variable, usual) in variables.items():
        if variable != usual and variable not in reach.variables:
            # Not repeated: somebody may have put the secret itself there.
            raise InvalidRequestError(f"backfill.{field}: must be {usual}, or an allowed one")
    for field, value in fields.items():
        if isinstance(value, Path):
            _check_path(field, value, reach)


def _check_event(event: yaml.Event, reach: Reach) -> None:
    if isinstance(event, yaml.AliasEvent):
        raise InvalidRequestError("yaml: aliases (*name) are not accepted here; write the value out")
    if getattr(event, "tag", None) is not None:
        raise InvalidRequestError("yaml: tags (!!type) are not accepted here; write the plain value")
    if isinstance(event, yaml.ScalarEvent):
        _check_variables(event.value, reach)
        if _NO_TEXT.search(event.value):
            raise InvalidRequestError("yaml: holds a NUL, or half a character (a lone surrogate)")


def _check_variables(value: str, reach: Reach) -> None:
    for name in _VARIABLE.findall(value):
        if name not in reach.variables:
            raise InvalidRequestError(
                f"yaml: ${{{name}}}: this environment variable is not among those that a YAML may use over the API "
                "(BACKFILL_API_VARIABLES)"
            )


def _check_path(field: str, path: Path, reach: Reach) -> None:
    real, data = path.resolve(), [folder.resolve() for folder in reach.data]
    if field == _STORAGE:
        if real not in data:
            shown = " or ".join(map(str, reach.data))
            raise InvalidRequestError(f"backfill.{field} = {str(path)!r}: must be {shown} over the API")
    elif field.partition(".")[0] not in _READ:
        raise _file_only(field, "it is written to on the server")
    elif not any(real.is_relative_to(folder) for folder in [*data, reach.lists.resolve()]):
        shown = ", ".join(map(str, [*reach.data, reach.lists]))
        raise InvalidRequestError(f"backfill.{field} = {str(path)!r}: must be below {shown} over the API")


def _file_only(field: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"backfill.{field}: cannot be set over the API: {why}; put the file into the configs folder itself"
    )


@cache
def _usual_fields() -> dict[str, Any]:
    """Return what the fields are that only a file may set, if it does not."""
    sections = {
        "network": Network(),
        "monitoring": Monitoring(),
        "metadata_store": MetadataStore(),
        "storage": Storage(),
    }
    return {field: value for name, section in sections.items() for field, value in _leaves(section, name)}


def _leaves(value: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a model that is no model itself, with its field; mappings whole and by their values."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), f"{field}.{name}".lstrip("."))
        return
    yield field, value
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{field}.{key}")
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{field}.{number}")
