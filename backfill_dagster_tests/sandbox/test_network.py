from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.sandbox.faults import GET_REPO
from backfill_dagster.sandbox.network import SandboxNetwork, process_sandbox
from backfill_dagster.sandbox.population import Role

from .conftest import SMALL, Ask, asker

HEALTH = "/xrpc/_health"


def test_names_are_stable_and_ports_are_not_chosen(network: SandboxNetwork) -> None:
    assert (network.plc_url, network.relay_url) == ("http://plc.sandbox.test", "http://relay.sandbox.test")
    assert network.hosts == tuple(f"pds{number}.sandbox.test" for number in range(1, 6))
    assert len(network.dids) == len(set(network.dids)) == 60
    assert network.dids == SandboxNetwork(SMALL).dids
    web = {did.removeprefix("did:web:") for did in network.dids if did.startswith("did:web:")}
    servers = ("plc.sandbox.test", "relay.sandbox.test")
    assert set(network.connect_to) == {f"{host}:80" for host in (*servers, *network.hosts, *web)}
    assert all(address.startswith("127.0.0.1:") for address in network.connect_to.values())
    assert len(set(network.connect_to.values())) == len(network.connect_to)


def _open_files() -> int:
    listed = Path("/proc/self/fd")
    return len(list(listed.iterdir())) if listed.is_dir() else 0


def test_it_starts_once_and_stop_frees_everything() -> None:
    threads = threading.active_count()
    files_before = _open_files()
    network = SandboxNetwork(SandboxSettings())
    network.start()
    network.start()
    ask = asker(network)
    assert ask("pds1.sandbox.test", HEALTH).status == 200
    assert ask("pds1.sandbox.test", f"{GET_REPO}?did={network.dids[0]}").status in (200, 400)
    network.stop()
    network.stop()
    with pytest.raises(RuntimeError, match="start"):
        _ = network.connect_to
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    assert _open_files() <= files_before
    with network:
        assert asker(network)("pds1.sandbox.test", HEALTH).status == 200


def test_the_log_says_what_was_asked(network: SandboxNetwork, ask: Ask) -> None:
    account = next(found for found in network.truth.accounts() if found.role is Role.NORMAL)
    assert account.pds is not None
    host = account.pds.removeprefix("http://")
    before = time.monotonic()
    body = ask(host, f"{GET_REPO}?did={account.did}", User_Agent="a test").body
    ask("plc.sandbox.test", f"/{account.did}")
    ask(host, f"{GET_REPO}?did=notadid")
    after = time.monotonic()

    first, second, third = network.requests.all()
    assert (first.host, first.method, first.path, first.did) == (host, "GET", GET_REPO, account.did)
    assert (first.status, first.body_bytes, first.user_agent) == (200, len(body), "a test")
    assert (second.host, second.did, second.status) == ("plc.sandbox.test", account.did, 200)
    assert (third.did, third.status) == ("notadid", 400)
    assert first.ended is not None
    assert before <= first.started <= first.ended <= second.started <= third.started <= after
    assert network.requests.count(did=account.did) == 2
    assert network.requests.count(host=host) == 2
    assert network.requests.count(path="getRepo", did=account.did) == 1
    network.requests.clear()
    assert network.requests.count() == 0


def test_many_clients_at_once_get_what_each_asked_for(network: SandboxNetwork, ask: Ask) -> None:
    complete = [found for found in network.truth.accounts() if found.is_complete]

    def fetch(number: int) -> tuple[str, bytes]:
        account = complete[number % len(complete)]
        assert account.pds is not None
        host = account.pds.removeprefix("http://")
        return account.did, ask(host, f"{GET_REPO}?did={account.did}").body

    with ThreadPoolExecutor(16) as threads:
        fetched = list(threads.map(fetch, range(4 * len(complete))))
    bodies: dict[str, set[bytes]] = {}
    for did, body in fetched:
        bodies.setdefault(did, set()).add(body)
    assert len(bodies) == len(complete)
    assert all(len(different) == 1 for different in bodies.values())
    assert all(did.encode() in next(iter(different)) for did, different in bodies.items())


def test_one_sandbox_per_process_and_settings() -> None:
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(process_sandbox, [SMALL] * 32))
    assert len(found) == 1
    other = process_sandbox(SandboxSettings(seed=2, accounts=30, hosts=1, records=10))
    assert other not in found
    assert asker(other)("pds1.sandbox.test", HEALTH).status == 200


# Run as a program of its own: the test runner's process has threads that a fork would tear.
FAMILY = """
import http.client, multiprocessing, sys
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.sandbox.network import process_sandbox

SETTINGS = SandboxSettings(accounts=30, hosts=2, records=10)

def check():
    network = process_sandbox(SETTINGS)
    address, port = network.connect_to["pds1.sandbox.test:80"].split(":")
    connection = http.client.HTTPConnection(address, int(port), timeout=5)
    connection.request("GET", "/xrpc/_health", headers={"Host": "pds1.sandbox.test"})
    assert connection.getresponse().status == 200
    connection.close()
    return network.connect_to

def child(answers):
    answers.put(check())

if __name__ == "__main__":
    ours = check()
    context = multiprocessing.get_context(sys.argv[1])
    answers = context.SimpleQueue()
    process = context.Process(target=child, args=(answers,))
    process.start()
    theirs = answers.get()
    process.join()
    assert process.exitcode == 0
    assert set(theirs) == set(ours)
    assert not set(theirs.values()) & set(ours.values())
    assert check() == ours
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes_get_a_sandbox_of_their_own(tmp_path: Path, method: str) -> None:
    program = tmp_path / "family.py"
    program.write_text(FAMILY)
    command = [sys.executable, str(program), method]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_interpreter_ends_promptly_whatever_is_under_way() -> None:
    script = (
        "import socket\n"
        "from backfill_dagster.config.network import SandboxSettings\n"
        "from backfill_dagster.sandbox.faults import Stall\n"
        "from backfill_dagster.sandbox.network import process_sandbox\n"
        "network = process_sandbox(SandboxSettings(accounts=30, records=20))\n"
        "network.faults.set_host('pds1.sandbox.test', Stall())\n"
        "address, port = network.connect_to['pds1.sandbox.test:80'].split(':')\n"
        "open_connection = socket.create_connection((address, int(port)))\n"
        "open_connection.sendall(b'GET /xrpc/_health HTTP/1.1\\r\\nHost: pds1.sandbox.test\\r\\n\\r\\n')\n"
        "print('ready', flush=True)\n"
    )
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert time.monotonic() - started < 10
    assert (ended.stdout, ended.stderr) == ("ready\n", "")


def test_the_command_serves_until_it_is_told_to_end() -> None:
    command = [sys.executable, "-m", "backfill_dagster.sandbox", "--accounts", "30", "--records", "10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        printed = ""
        while not printed.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            printed += line
        ready = json.loads(printed)
        assert len(ready["dids"]) == 30
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_the_command_lists_the_accounts() -> None:
    command = [sys.executable, "-m", "backfill_dagster.sandbox", "--dids", "--seed", "4"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert listed == SandboxNetwork(SandboxSettings(seed=4)).dids
