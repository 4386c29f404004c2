import subprocess
import sys
from pathlib import Path

import pytest

from backfill_dagster.api.environment import FacadeSettings
from backfill_dagster.api.serving import ServerSettings
from backfill_dagster.errors import ConfigError
from backfill_dagster_tests.api.serving_stub import ENVIRONMENT


def test_the_defaults() -> None:
    settings = FacadeSettings.from_environment({})
    assert settings.dagster_url == "http://127.0.0.1:3000"
    assert settings.location == "backfill_dagster"
    assert settings.configs == Path("configs")
    assert settings.reach.data == (Path("data"),)
    assert settings.reach.variables == frozenset()


def test_what_is_set() -> None:
    settings = FacadeSettings.from_environment(
        {
            "BACKFILL_DAGSTER_URL": "https://dagster.test/prefix/",
            "BACKFILL_CONFIGS": "/srv/configs",
            "BACKFILL_API_PATHS": "/srv/data:/srv/more",
            "BACKFILL_API_VARIABLES": "AWS_REGION, LISTS",
            "BACKFILL_DAGSTER_TIMEOUT_SECONDS": "7.5",
        }
    )
    assert settings.dagster_url == "https://dagster.test/prefix"
    assert settings.reach.data == (Path("/srv/data"), Path("/srv/more"))
    assert settings.reach.variables == {"AWS_REGION", "LISTS"}
    assert settings.timeout_seconds == 7.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BACKFILL_DAGSTER_URL", "dagster:3000"),
        ("BACKFILL_DAGSTER_URL", "ftp://dagster:3000"),
        ("BACKFILL_DAGSTER_URL", "http://dagster:port"),
        ("BACKFILL_DAGSTER_URL", "http://dagster?x=1"),
        ("BACKFILL_DAGSTER_TIMEOUT_SECONDS", "soon"),
        ("BACKFILL_DAGSTER_TIMEOUT_SECONDS", "nan"),
        ("BACKFILL_DAGSTER_TIMEOUT_SECONDS", "0"),
        ("BACKFILL_API_VARIABLES", "A-B"),
    ],
)
def test_what_is_wrong_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}"):
        FacadeSettings.from_environment({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BACKFILL_API_TOKENS", ""),
        ("BACKFILL_API_RATE", "often"),
        ("BACKFILL_API_RATE", "0/minute"),
        ("BACKFILL_API_FAILED_RATE", "-1/minute"),
        ("BACKFILL_API_MAX_BYTES", "0"),
        ("BACKFILL_API_MAX_BYTES", "1e12"),
        ("BACKFILL_API_PUBLIC_DOCS", "yes"),
        ("BACKFILL_API_PROXIES", "*"),
        ("BACKFILL_API_PROXIES", "127.0.0.1, proxy.test"),
    ],
)
def test_the_server_does_not_start_with_what_is_wrong(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}"):
        ServerSettings.from_environment({**ENVIRONMENT, name: value})


def test_without_tokens_nothing_is_served_and_nothing_imports_dagster() -> None:
    program = (
        "import sys; import backfill_dagster.handler; "
        "print({'dagster', 'fastapi', 'starlette', 'uvicorn', 'limits'} & set(sys.modules)); "
        "from backfill_dagster.api.__main__ import main; print(main([]), 'dagster' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "set()\n2 False\n", done.stderr
    assert done.stderr.startswith("BACKFILL_API_TOKENS: holds no token")
