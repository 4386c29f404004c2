"""What hosts see of us, by the sandbox's own accounting: its limiter's answers and its log of requests."""

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from backfill_dagster.config.network import Network, SandboxSettings
from backfill_dagster.config.processing import Processing
from backfill_dagster.directory.documents import parse_document
from backfill_dagster.directory.resolver import Resolver
from backfill_dagster.network.addresses import AddressPolicy
from backfill_dagster.network.http import Answer, Download, HttpClient
from backfill_dagster.network.leases import LocalHostLeases
from backfill_dagster.network.limits import HostGate, HostGates
from backfill_dagster.network.patience import RunTime
from backfill_dagster.network.turns import Turns
from backfill_dagster.repos.accounts import Account, by_host
from backfill_dagster.repos.client import DownloadBounds
from backfill_dagster.repos.crawl import Crawl, CrawlSettings, HostReport
from backfill_dagster.repos.outcomes import FailureReason, Outcome
from backfill_dagster.repos.proof import ProofSettings
from backfill_dagster.repos.verify import RepoLimits
from backfill_dagster.sandbox.account_state import first_state
from backfill_dagster.sandbox.accounts import Accounts
from backfill_dagster.sandbox.documents import did_document
from backfill_dagster.sandbox.exports import Exports
from backfill_dagster.sandbox.faults import Faults
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import Account as PlannedAccount
from backfill_dagster.sandbox.population import Population, Role
from backfill_dagster.sandbox.repo import Repos
from backfill_dagster.sandbox.request_log import LoggedRequest, RequestLog
from backfill_dagster.sandbox.servers import PersonalDataServer, Query, RateLimit
from backfill_dagster_tests.dids.sources.s3_server import BUCKET
from backfill_dagster_tests.network.loopback import loopback_client, serve
from backfill_dagster_tests.network.virtual_time import run_in_virtual_time
from backfill_dagster_tests.studies import sandbox_study

HOSTS = 20
STATUS = "com.atproto.sync.getRepoStatus"
ON_THE_CLOCK = [
    "backfill_dagster.network.limits",
    "backfill_dagster.network.leases",
    "backfill_dagster.network.patience",
    "backfill_dagster.network.turns",
    "backfill_dagster.repos.crawl",
    "backfill_dagster.sandbox.servers",
    "backfill_dagster.sandbox.request_log",
]


def most_in_a_window(requests: Iterable[LoggedRequest], seconds: float) -> int:
    """Count the most requests that arrived within any so many seconds."""
    times = sorted(request.started for request in requests)
    most = first = 0
    for last, moment in enumerate(times):
        while times[first] <= moment - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def assert_polite(requests: Sequence[LoggedRequest], limit: RateLimit) -> None:
    """Hold the log of one host against its limit."""
    assert most_in_a_window(requests, limit.seconds) <= limit.requests
    assert 429 not in {request.status for request in requests}


def test_a_window_is_counted_wherever_it_begins() -> None:
    log = [LoggedRequest("a", "GET", "/", None, "", started) for started in (0, 5, 6, 7, 14.9, 15, 16)]
    assert most_in_a_window(log, 10) == 4
    assert most_in_a_window(log, 10.1) == 5
    assert most_in_a_window(log, 0.1) == 1
    assert most_in_a_window(log, 1.5) == 3


# --- at the limit ---


@pytest.mark.parametrize("limit", [RateLimit(300, 30), RateLimit(30, 3)], ids=str)
def test_hosts_at_their_limit_never_see_more_of_us_and_hardly_less(
    limit: RateLimit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gates as a study has them, but set faster than the hosts allow, so that these have to say so."""
    population = Population(SandboxSettings(accounts=30, hosts=HOSTS))
    exports = Exports(Repos(population))
    accounts, faults = Accounts(population), Faults()
    servers = {host: PersonalDataServer(host, accounts, exports, faults, limit) for host in population.hosts}
    log = RequestLog()
    chance = random.Random(1)
    seconds = 45.0

    async def ask(host: str, gate: HostGate, end: float) -> None:
        while asyncio.get_running_loop().time() < end:
            async with gate.request():
                await asyncio.sleep(chance.uniform(0.005, 0.1))
                entry = log.begin(host=host, method="GET", path=STATUS, did=None, user_agent="")
                answer = await servers[host].answer(
                    Query("GET", f"/xrpc/{STATUS}", {"did": "did:web:none.test"})
                )
                entry.status = answer.status
                await asyncio.sleep(chance.uniform(0.005, 0.1))
            gate.observe(answer.status, httpx.Headers(list(answer.headers)))

    async def work() -> dict[str, float]:
        loop = asyncio.get_running_loop()
        all_gates = {
            host: HostGate(host, rate=20, burst=10, in_flight=4, clock=loop.time) for host in servers
        }
        end = loop.time() + seconds
        await asyncio.gather(*(ask(host, gate, end) for host, gate in all_gates.items() for _ in range(4)))
        return {host: gate.rate for host, gate in all_gates.items()}

    rates = run_in_virtual_time(monkeypatch, ON_THE_CLOCK, work)

    for host in servers:
        assert_polite(log.all(host=host), limit)
        burst = min(10, limit.requests / 10)
        assert rates[host] == pytest.approx(0.9 * (limit.requests - burst) / limit.seconds)
    assert log.count() >= 0.95 * sum(rates.values()) * seconds


def test_real_requests_keep_to_the_limit_as_well() -> None:
    limit = RateLimit(30, 3)
    settings = SandboxSettings(accounts=30, hosts=HOSTS, records=1)
    gates = HostGates(rate=20, burst=3, in_flight=2)

    async def ask(client: HttpClient, host: str) -> None:
        gate = gates.gate(host)
        for _ in range(18):
            async with gate.request():
                answer = await client.get(
                    f"http://{host}/xrpc/{STATUS}", params={"did": "did:web:none.test"}, max_bytes=1000
                )
            gate.observe(answer.status, answer.headers)

    async def work(network: SandboxNetwork) -> None:
        async with loopback_client(connect_to=network.connect_to) as client:
            await asyncio.gather(*(ask(client, host) for host in network.hosts for _ in range(2)))

    with SandboxNetwork(settings, rate_limit=limit) as network:
        asyncio.run(work(network))
        for host in network.hosts:
            requests = network.requests.all(host=host)
            assert len(requests) == 36
            # However late the machine delivers them: what the gate lets go in a window, and those under way
            # at its beginning, are together fewer than the limit.
            assert 3 + 8.1 * limit.seconds + 2 <= limit.requests
            assert_polite(requests, limit)


# --- one host that is parked ---


class InlineExecutor(Executor):
    """Does at once what it is given."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class VirtualHttp(HttpClient):
    """Answers from memory after 0.1 s; `parked` hosts answer 429 and ask for a quarter of an hour.

    With `documents`, by DID, they do so to small requests alone. An account without a repository is deactivated.
    """

    def __init__(
        self,
        repos: Mapping[str, bytes],
        parked: frozenset[str],
        documents: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__(AddressPolicy(), contact=None, connect_timeout=1, read_timeout=1)
        self._repos = repos
        self._parked = parked
        self._documents = documents

    async def get(
        self,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        max_bytes: int,
        total_timeout: float | None = None,
    ) -> Answer:
        await asyncio.sleep(0.1)
        asked = httpx.URL(url)
        if asked.host in self._parked:
            return Answer(429, httpx.Headers({"retry-after": "900"}), b"", url)
        assert self._documents is not None
        return Answer(200, httpx.Headers(), self._documents[asked.path.removeprefix("/")], url)

    async def download(
        self,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        to: Path,
        max_bytes: int,
        total_timeout: float,
    ) -> Download:
        await asyncio.sleep(0.1)
        assert params is not None
        if httpx.URL(url).host in self._parked and self._documents is None:
            return Download(429, httpx.Headers({"retry-after": "900"}), 0, 0, b"", 0.1)
        car = self._repos.get(params["did"])
        if car is None:
            return Download(400, httpx.Headers(), 0, 0, b'{"error": "RepoDeactivated"}', 0.1)
        _write(to, car)
        return Download(200, httpx.Headers(), len(car), len(car), b"", 0.1)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def new_crawl(
    root: Path,
    http: HttpClient,
    gates: HostGates,
    *,
    rate: float,
    in_flight: int = 4,
    active: int = 5,
    max_park: float = 2000,
    max_run: float | None = None,
) -> Crawl:
    """Return a crawl with so many hosts active at once, each asked at `rate`; times in seconds."""
    settings = CrawlSettings(
        batch_size=100,
        pack_bytes=2**20,
        max_concurrent_pds=active,
        requests_in_flight=in_flight,
        requests_per_second=rate,
        max_retries=0,
        retry_base_seconds=1,
        max_park_seconds=max_park,
        bounds=DownloadBounds(2**20, 60),
        proof=ProofSettings(check_signature=True, limits=RepoLimits()),
    )
    scratch = root / "scratch"
    scratch.mkdir(parents=True)
    leases = LocalHostLeases(root / ".leases", "study")
    turns = Turns(http, gates, leases, rate=rate, in_flight=in_flight)
    run_time = RunTime(max_run)
    return Crawl(
        root=root,
        scratch=scratch,
        turns=turns,
        gates=gates,
        leases=leases,
        resolver=Resolver(turns, gates, Network(), Processing(), run_time=run_time),
        run_time=run_time,
        workers=InlineExecutor(),
        worker_count=2,
        settings=settings,
    )


def crawl_in_virtual_time(
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    accounts: Sequence[Account],
    http: HttpClient,
    **options: Any,
) -> dict[str, tuple[float, HostReport]]:
    """Return when each host was done, and what it came to."""

    async def work() -> dict[str, tuple[float, HostReport]]:
        loop = asyncio.get_running_loop()
        gates = HostGates(rate=0.5, burst=1, in_flight=4, clock=loop.time)
        crawl = new_crawl(root, http, gates, rate=0.5, **options)
        started, done = loop.time(), {}

        def note(report: HostReport) -> None:
            done[report.pds_host] = (loop.time() - started, report)

        await crawl.run(by_host(accounts), note)
        return done

    return run_in_virtual_time(monkeypatch, ON_THE_CLOCK, work)


def account_of(planned: PlannedAccount, host: str, known_rev: str | None = None) -> tuple[Account, bytes]:
    """Return an account as if it lived on this host, and its document."""
    document = did_document(first_state(planned))
    (service,) = document["service"]
    document["service"] = [{**service, "serviceEndpoint": f"http://{host}"}]
    body = json.dumps(document).encode()
    found = parse_document(planned.did, body)
    account = Account.from_directory(
        planned.did, f"http://{host}", host, found.key_type, found.key_multibase, known_rev
    )
    return account, body


@pytest.mark.parametrize(("max_park", "waited"), [(2000, 1800), (600, 0)])
def test_a_parked_host_delays_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_park: float, waited: float
) -> None:
    """Whether its pauses are waited for, all through the time of the others, or are longer than that is worth."""
    population = Population(SandboxSettings(accounts=250, hosts=1, records=1))
    repos = Repos(population)
    normal = [account for account in population.accounts if account.role is Role.NORMAL][: 8 * HOSTS]
    accounts, cars = [], {}
    for number, account in enumerate(normal):
        host = f"pds{number % HOSTS}.sandbox.test"
        cars[account.did] = repos.build(first_state(account)).car
        accounts.append(account_of(account, host)[0])
    slow = accounts[0].pds_host
    others = [account for account in accounts if account.pds_host != slow]
    assert len(others) == 8 * (HOSTS - 1)

    without = crawl_in_virtual_time(monkeypatch, tmp_path / "without", others, VirtualHttp(cars, frozenset()))
    beside = crawl_in_virtual_time(
        monkeypatch, tmp_path / "beside", accounts, VirtualHttp(cars, frozenset({slow})), max_park=max_park
    )

    parked_for, report = beside.pop(slow)
    assert report.reasons == {FailureReason.RATE_LIMITED: 8}
    assert all(found.outcomes == {Outcome.COMPLETE: 8} for _, found in beside.values())
    assert beside.keys() == without.keys()
    last_without = max(seconds for seconds, _ in without.values())
    last_beside = max(seconds for seconds, _ in beside.values())
    assert waited <= parked_for < waited + 10
    assert last_beside <= 1.05 * last_without


@pytest.mark.parametrize("question", ["listRepos", "getRepoStatus"])
@pytest.mark.parametrize(("max_park", "waited"), [(2000, 1800), (600, 0)])
def test_a_host_that_is_parked_over_a_small_question_delays_no_other_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str, max_park: float, waited: float
) -> None:
    """With one host active at once, and this one first: whether accounts moved on, or why they are not active."""
    population = Population(SandboxSettings(accounts=60, hosts=1, records=1))
    repos = Repos(population)
    normal = [account for account in population.accounts if account.role is Role.NORMAL]
    asks_first = question == "listRepos"
    parked = [account_of(account, "slow.test", "rev" if asks_first else None) for account in normal[:9]]
    others = [account_of(account, "other.test")[0] for account in normal[9:13]]
    cars = {account.did: repos.build(first_state(account)).car for account in normal[9 * (not asks_first) :]}
    http = VirtualHttp(
        cars, frozenset({"slow.test"}), documents={account.did: body for account, body in parked}
    )

    done = crawl_in_virtual_time(
        monkeypatch,
        tmp_path,
        [*(account for account, _ in parked), *others],
        http,
        active=1,
        max_park=max_park,
    )

    other_took, other = done["other.test"]
    slow_took, slow = done["slow.test"]
    assert other.outcomes == {Outcome.COMPLETE: 4}
    assert waited <= slow_took < waited + 60
    assert waited == 0 or other_took < 60
    if asks_first:
        # The pause is of the host as a whole: it is not asked for the repositories either.
        assert slow.reasons == {FailureReason.RATE_LIMITED: 9}
    else:
        assert slow.outcomes[Outcome.DEACTIVATED] + slow.reasons[FailureReason.RATE_LIMITED] == 9
        assert slow.outcomes[Outcome.DEACTIVATED] > 0


@pytest.mark.parametrize("question", ["getRepo", "listRepos"])
def test_time_that_is_over_ends_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    population = Population(SandboxSettings(accounts=60, hosts=1, records=1))
    normal = [account for account in population.accounts if account.role is Role.NORMAL]
    known_rev = "rev" if question == "listRepos" else None
    accounts = [account_of(account, "slow.test", known_rev)[0] for account in normal[:9]]
    http = VirtualHttp({}, frozenset({"slow.test"}))

    took, report = crawl_in_virtual_time(monkeypatch, tmp_path, accounts, http, max_run=300)["slow.test"]

    assert 300 <= took < 310
    assert report.left == 9
    assert report.outcomes == {}


# --- redirects ---


def test_a_host_that_others_lead_to_sees_no_more_of_us_than_its_limit(tmp_path: Path) -> None:
    """Half of the accounts are asked for at the host itself, half at one that redirects each request there."""
    limit = RateLimit(30, 3)
    settings = SandboxSettings(accounts=90, hosts=1, records=1)
    with SandboxNetwork(settings, rate_limit=limit) as network:
        behind = network.hosts[0]
        planned = [account for account in network.population.accounts if account.role is Role.NORMAL][:40]
        hosts = ["front.test", behind]
        accounts = [account_of(account, hosts[number % 2])[0] for number, account in enumerate(planned)]
        redirected: list[str] = []

        async def redirect(request: web.Request) -> web.StreamResponse:
            redirected.append(request.path_qs)
            return web.Response(status=307, headers={"Location": f"http://{behind}{request.path_qs}"})

        async def work() -> list[HostReport]:
            async with serve(redirect) as front:
                connect_to = {**network.connect_to, "front.test:80": front}
                async with loopback_client(connect_to=connect_to) as http:
                    gates = HostGates(rate=20, burst=3, in_flight=2)
                    return await new_crawl(tmp_path, http, gates, rate=20, in_flight=2).run(by_host(accounts))

        reports = asyncio.run(work())

        assert {report.pds_host: report.outcomes for report in reports} == {
            host: {Outcome.COMPLETE: 20} for host in hosts
        }
        assert len(redirected) == 20
        # As above: 3 at once, 8.1 a second and 2 under way are fewer than the limit.
        requests = network.requests.all(host=behind)
        assert len(requests) == 40
        assert_polite(requests, limit)


# --- two processes on one host ---

FETCH = """
import sys
from pathlib import Path
from backfill_dagster import pipeline
from backfill_dagster.config.loading import load_study

if __name__ == "__main__":
    study = load_study(Path(sys.argv[1]))
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    print("ready", flush=True)
    sys.stdin.readline()
    pipeline.fetch_repos(study)
"""


@pytest.mark.parametrize("kept", ["on a disk", "in S3"])
def test_two_processes_on_one_host_keep_its_limit_together(
    tmp_path: Path, request: pytest.FixtureRequest, kept: str
) -> None:
    """Each fetches everything from it, at a pace at which one alone needs nearly all that it allows.

    However late the machine delivers requests: 5 at once, 13 a second for 3 s and 4 under way are fewer than 50.
    """
    limit = RateLimit(50, 3)
    settings = SandboxSettings(accounts=30, hosts=1, records=1)
    storage = {"path": str(tmp_path / "data")}
    if kept == "in S3":
        request.getfixturevalue("s3")
        storage = {"type": "s3", "path": f"s3://{BUCKET}/{tmp_path.name}"}
    with SandboxNetwork(settings, rate_limit=limit) as network, ExitStack() as stack:
        host = network.hosts[0]
        fetch = tmp_path / "fetch.py"
        fetch.write_text(FETCH)
        processes = []
        for name in ("one", "two"):
            sandbox_study(
                tmp_path,
                name,
                settings,
                source={"type": "inline", "dids": network.dids},
                storage=storage,
                processing={"requests_per_second": 13, "requests_in_flight": 4, "workers": 1},
                network={
                    "sandbox": None,
                    "plc_url": network.plc_url,
                    "connect_to": network.connect_to,
                    "contact": name,
                },
            )
            command = [sys.executable, str(fetch), str(tmp_path / f"{name}.yaml")]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0

        requests = network.requests.all(host=host)
        assert_polite(requests, limit)
        repos = {
            name: {request.did for request in requests if f"+{name})" in request.user_agent}
            for name in ("one", "two")
        }
        assert repos["one"] == repos["two"]
        assert len(requests) > limit.requests
        # They took turns: whoever came first was done before the other began.
        agents = [request.user_agent for request in requests]
        assert agents == sorted(agents, key=agents.index)
