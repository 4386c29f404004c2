"""Repositories exported from official PDS software, each with a manifest of what is in it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CARS = Path(__file__).resolve().parent.parent / "data" / "cars"
WHOLE_REPOS = ("small-1", "weird", "migrated", "deactivated-admin", "empty")


@dataclass(frozen=True)
class ExportedRepo:
    car: bytes
    manifest: dict[str, Any]

    @property
    def did(self) -> str:
        return str(self.manifest["account"]["did"])

    @property
    def signing_key(self) -> str:
        """The key that the account's DID document named, as `did:key:...`."""
        return str(self.manifest["plcData"]["verificationMethods"]["atproto"])

    @property
    def live_records(self) -> dict[str, str]:
        """CIDs by URI."""
        return {
            record["uri"]: record["cid"] for record in self.manifest["records"] if record["status"] == "live"
        }


def exported_repo(name: str) -> ExportedRepo:
    manifest = json.loads((CARS / f"{name}.manifest.json").read_text())
    return ExportedRepo((CARS / f"{name}.car").read_bytes(), manifest)
