"""`python -m backfill_dagster.sandbox`: run a sandbox until it is interrupted, or list its accounts."""

from __future__ import annotations

import argparse
import json
import signal
import sys

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.sandbox.network import SandboxNetwork


def main() -> None:
    """Print where the sandbox's hosts are and who lives there, then serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m backfill_dagster.sandbox", description=__doc__)
    for name, field in SandboxSettings.model_fields.items():
        parser.add_argument(f"--{name}", type=int, default=field.default, help=field.description)
    parser.add_argument("--dids", action="store_true", help="print the accounts, one a line, and end")
    arguments = vars(parser.parse_args())
    only_dids = arguments.pop("dids")
    network = SandboxNetwork(SandboxSettings.model_validate(arguments))
    if only_dids:
        sys.stdout.write("".join(f"{did}\n" for did in network.dids))
        return
    ended = {signal.SIGINT, signal.SIGTERM}
    # Blocked before any thread starts, so that every thread leaves them to `sigwait`.
    signal.pthread_sigmask(signal.SIG_BLOCK, ended)
    with network:
        ready = {"plc_url": network.plc_url, "connect_to": network.connect_to, "dids": network.dids}
        sys.stdout.write(json.dumps(ready, indent=1) + "\n")
        sys.stdout.flush()
        signal.sigwait(ended)


if __name__ == "__main__":
    main()
