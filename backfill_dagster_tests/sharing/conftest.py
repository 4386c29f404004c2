from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from backfill_dagster.config.study import Study
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.servers import RateLimit
from backfill_dagster.sharing.share import share
from backfill_dagster_tests.sharing.studies import GATE, POST, PROFILE, SETTINGS, collect, study_of


@pytest.fixture(scope="package")
def servers() -> Iterator[SandboxNetwork]:
    # Whose limits do not slow down one who asks for each record by itself.
    with SandboxNetwork(SETTINGS, rate_limit=RateLimit(requests=1_000_000)) as network:
        own = [account.did for account in network.truth.accounts() if account.is_complete][-1]
        created = datetime(2024, 10, 5, tzinfo=UTC)
        gate = {"post": f"at://{own}/{POST}/3kaaaaaaaaa22"}
        network.edit.create(own, GATE, gate, rkey="3kaaaaaaaaa22", created=created)
        profile = {"displayName": "Somebody", "description": "Nobody in particular"}
        network.edit.update(own, PROFILE, "self", profile, created=created)
        yield network


@pytest.fixture(scope="package")
def shared(servers: SandboxNetwork, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that has shared the ids of its records."""
    study = study_of(servers, tmp_path_factory.mktemp("shared"))
    collect(study)
    share(study)
    return study
