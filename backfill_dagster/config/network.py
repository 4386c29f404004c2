"""The servers that are talked to, real ones or a sandbox's."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from backfill_dagster.config.section import Section, http_origin


class SandboxSettings(Section):
    """A made-up network on loopback instead of the real one: the same for the same numbers."""

    seed: int = Field(1, ge=0, description="Another number is another network.")
    accounts: int = Field(60, ge=30, le=100_000, description="Accounts that it has.")
    hosts: int = Field(5, ge=1, le=5_000, description="Servers that these live on.")
    records: int = Field(500, ge=1, description="Median number of records per account.")


class PlcExport(Section):
    """The PLC directory's export of all its operations, of which the studies of one storage share a copy.

    From nothing it is tens of thousands of requests, one after the other; once there is a copy, a day more takes some
    hundred.
    """

    use: Literal["never", "auto", "always"] = Field(
        "auto",
        description="Whether accounts are looked up in the copy: `auto` if at least `at_least` are to be looked up.",
    )
    at_least: int = Field(500_000, ge=1, description="Accounts from which on `auto` uses the export.")
    max_age_hours: float = Field(
        24, ge=0, description="How old the copy may be before it is brought up to date."
    )
    mirrors: tuple[Annotated[str, AfterValidator(http_origin)], ...] = Field(
        (),
        description="Other servers of the same export, asked in turn if the directory fails, and believed.",
    )


class Network(Section):
    """Everything about the servers that are talked to."""

    plc_url: Annotated[str, AfterValidator(http_origin)] = Field(
        "https://plc.directory", description="The directory of did:plc accounts."
    )
    plc_requests_per_second: float = Field(
        20, gt=0, le=1000, description="Requests per second to the directory."
    )
    plc_export: PlcExport = PlcExport()
    contact: str | None = Field(
        None,
        max_length=200,
        description="An e-mail or web address in the User-Agent, for the servers' operators.",
    )
    directory_max_age_hours: float = Field(
        24, ge=0, description="How long a resolved DID document is believed."
    )
    connect_timeout_seconds: float = Field(
        10, gt=0, le=300, description="The longest time for finding and connecting to a server."
    )
    read_timeout_seconds: float = Field(60, gt=0, le=600, description="The longest silence within an answer.")
    repo_timeout_seconds: float = Field(3600, gt=0, description="The longest time for one repository.")
    min_bytes_per_second: float = Field(
        1000,
        ge=0,
        description="A repository that comes more slowly, on average after 30 s, is given up; 0 never gives up.",
    )
    max_repo_megabytes: int = Field(2048, ge=1, description="The largest repository that is accepted.")
    retry_base_seconds: float = Field(
        1, gt=0, le=60, description="Backoff before the first retry, on average."
    )
    max_park_minutes: float = Field(
        30, ge=0, description="How long a host may ask for pauses before its accounts count as rate-limited."
    )
    allow_private_addresses: bool = Field(
        False, description="Also talk to hosts in private, loopback and link-local address ranges."
    )
    connect_to: dict[str, str] = Field(
        default_factory=dict,
        description="`host:port` of a URL to the `address:port` that is connected to instead.",
    )
    dns_server: str | None = Field(
        None,
        description="`address:port` of the DNS server that handles are asked of; the system's if left out.",
    )
    sandbox: SandboxSettings | None = None

    @field_validator("contact")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.isprintable()):
            raise ValueError("must be printable ASCII: it is sent in a header of each request")
        return value

    @field_validator("dns_server")
    @classmethod
    def _address_and_port(cls, value: str | None) -> str | None:
        if value is not None:
            address, _, port = value.rpartition(":")
            try:
                ip_address(address.removeprefix("[").removesuffix("]"))
            except ValueError:
                raise ValueError("must be address:port, such as 192.0.2.53:53 or [2001:db8::53]:53") from None
            if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
                raise ValueError("must end in a port from 1 to 65535")
        return value

    @field_validator("connect_to")
    @classmethod
    def _endpoints(cls, value: dict[str, str]) -> dict[str, str]:
        for endpoint in (*value, *value.values()):
            if not re.fullmatch(r"[A-Za-z0-9._-]+:\d{1,5}", endpoint):
                raise ValueError(f"{endpoint!r} must be host:port")
        return value
