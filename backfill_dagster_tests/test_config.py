import re
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backfill_dagster.config.loading import load_study
from backfill_dagster.config.sources import SOURCES, InlineSource
from backfill_dagster.config.study import RECORD_TYPES, RESERVED_NAMES, Study
from backfill_dagster.errors import ConfigError
from backfill_dagster.records.windows import study_windows

INLINE = "source: {type: inline, dids: ['did:plc:aaaaaaaaaaaaaaaaaaaaaaaa']}"


def write(folder: Path, body: str, name: str = "study") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"backfill:\n  name: {name}\n" + textwrap.indent(textwrap.dedent(body), "  "))
    return path


def load(folder: Path, body: str) -> Study:
    return load_study(write(folder, body))


def complaint(folder: Path, body: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, body)
    return str(caught.value)


def test_everything_beyond_name_and_source_has_a_default(tmp_path: Path) -> None:
    study = load(tmp_path, INLINE)
    assert study.record_types == RECORD_TYPES
    assert study.time_range.start_date == datetime(2024, 9, 27, tzinfo=UTC)
    assert study.time_range.end_date == datetime(2024, 12, 2, tzinfo=UTC)
    assert study.processing.verify == "full"
    assert study.root == Path("data/study")


@pytest.mark.parametrize(
    ("written", "start", "end"),
    [
        (
            "{start_date: '2024-09-27', end_date: '2024-12-02'}",
            datetime(2024, 9, 27, tzinfo=UTC),
            datetime(2024, 12, 2, 23, 59, 59, 999_999, tzinfo=UTC),
        ),
        (
            "{start_date: 2024-09-27, end_date: 2024-12-02}",
            datetime(2024, 9, 27, tzinfo=UTC),
            datetime(2024, 12, 2, 23, 59, 59, 999_999, tzinfo=UTC),
        ),
        (
            "{start_date: '2024-09-27-01:02:03', end_date: '2024-12-02-00:00:00'}",
            datetime(2024, 9, 27, 1, 2, 3, tzinfo=UTC),
            datetime(2024, 12, 2, tzinfo=UTC),
        ),
        (
            "{start_date: '2024-09-27T02:00:00+02:00'}",
            datetime(2024, 9, 27, tzinfo=UTC),
            None,
        ),
    ],
)
def test_both_ends_are_inside(tmp_path: Path, written: str, start: datetime, end: datetime | None) -> None:
    period = load(tmp_path, f"{INLINE}\ntime_range: {written}").time_range
    assert (period.start_date, period.end_date) == (start, end)


def test_months_under_drop_run_from_floor_to_ceiling(tmp_path: Path) -> None:
    study = load(
        tmp_path, f"{INLINE}\ntime_range: {{start_date: '2024-09-27', end_date: '2024-12-02', outside: drop}}"
    )
    assert study_windows(study.time_range) == ["2024-09", "2024-10", "2024-11", "2024-12"]


def test_months_under_normalize_span_the_life_of_the_network(tmp_path: Path) -> None:
    months = study_windows(load(tmp_path, INLINE).time_range, now=datetime(2025, 2, 28, tzinfo=UTC))
    assert months[0] == "2022-11"
    assert months[-1] == "2025-02"
    assert len(months) == 28


def test_environment_variables_fill_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH", "7")
    monkeypatch.setenv("WHERE", "elsewhere")
    study = load(
        tmp_path, f"{INLINE}\nprocessing: {{batch_size: '${{BATCH}}'}}\nstorage: {{path: './${{WHERE}}/x'}}"
    )
    assert study.processing.batch_size == 7
    assert study.storage.path == Path("elsewhere/x")


@pytest.mark.parametrize(
    "value",
    [
        "!!timestamp 'x'",
        "!!int ''",
        "!!float 'x'",
        "!!bool x",
        "!!set [a]",
        "!!omap x",
        "!!binary ö",
        "[" * 5000,
    ],
)
def test_a_value_that_its_tag_does_not_fit_is_no_yaml(tmp_path: Path, value: str) -> None:
    assert "study.yaml: is not valid YAML" in complaint(tmp_path, f"{INLINE}\nversion: {value}")


@pytest.mark.parametrize(
    "part",
    [
        "2024-01-01: 1",
        "time_range: {start_date: '0001-01-01T00:00:00+14:00'}",
        "time_range: {start_date: 0001-01-01T00:00:00+14:00}",
        "version: 0x" + "f" * 20_000,
        "processing: {batch_size: 0x" + "f" * 20_000 + "}",
        "processing: {requests_per_second: 0x" + "f" * 20_000 + "}",
        "storage: {path: 0x" + "f" * 20_000 + "}",
        "? [a, b]\n: 1",
        "1: {2: 3}",
    ],
)
def test_a_value_that_cannot_be_is_told_of_its_file_alone(tmp_path: Path, part: str) -> None:
    assert "study.yaml: backfill" in complaint(
        tmp_path, f"{INLINE}\n{part}"
    ) or "not valid YAML" in complaint(tmp_path, f"{INLINE}\n{part}")


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (INLINE + "\nowners: ['${PASSWORD}']", "owners.0 = '${PASSWORD}'"),
        (INLINE + "\nowners: ['a ${PASSWORD} b']", "owners.0 = 'a ${PASSWORD} b'"),
        (INLINE + "\nprocessing: {batch: '${PASSWORD}'}", "processing.batch = '${PASSWORD}'"),
        (INLINE + "\nprocessing: '${PASSWORD}'", "processing = '${PASSWORD}'"),
        (INLINE + "\nmonitoring: {ui_url: 'http://user:${PASSWORD}@host/path'}", "${PASSWORD}@host/path'"),
        ("source: {type: nothing, path: '${PASSWORD}'}", "{'type': 'nothing', 'path': '${PASSWORD}'}"),
        # A message of a whole part can say the value as well.
        (INLINE + "\nother_record_types: ['${NSID}', '${NSID}', 'app.bsky.feed.post']", "${NSID}"),
    ],
)
def test_what_a_variable_holds_is_never_repeated(
    body: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2' hunter2")
    monkeypatch.setenv("NSID", "app.bsky.feed.post")
    told = complaint(tmp_path, body)
    assert shown in told
    assert "hunter2" not in told


def test_a_missing_variable_names_field_and_variable(tmp_path: Path) -> None:
    text = complaint(tmp_path, f"{INLINE}\nstorage: {{path: '${{NOT_SET_ANYWHERE}}'}}")
    assert "study.yaml: backfill.storage.path" in text
    assert "NOT_SET_ANYWHERE" in text


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("source: {type: sqlte}", ["backfill.source", "sqlte", "inline, text, csv, parquet, sqlite"]),
        ("source: {type: text}", ["backfill.source.path", "missing"]),
        ("source: {type: csv, pth: a}", ["backfill.source.pth", "'a'", "unknown key", "`path`"]),
        (f"{INLINE}\nprocessing: {{batch_sze: 4}}", ["backfill.processing.batch_sze", "4", "`batch_size`"]),
        (f"{INLINE}\nprocessing: {{batch_size: 5000}}", ["backfill.processing.batch_size", "5000", "1000"]),
        (f"{INLINE}\nprocessing: {{verify: fast}}", ["processing.verify", "fast", "'full' or 'structure'"]),
        (
            f"{INLINE}\nrecord_types: [app.bsky.feed.pst]",
            ["record_types.0", "app.bsky.feed.pst", "app.bsky.feed.post"],
        ),
        (f"{INLINE}\nrecord_types: []", ["record_types", "at least one"]),
        (f"{INLINE}\ninactive_accounts: drop", ["inactive_accounts", "drop", "'hide', 'keep' or 'purge'"]),
        (f"{INLINE}\npurge_deleted_after_days: -1", ["purge_deleted_after_days", "-1", "0"]),
        (
            f"{INLINE}\ntime_range: {{start_date: 2024-02-01, end_date: 2024-01-01}}",
            ["time_range", "after end_date"],
        ),
        (f"{INLINE}\ntime_range: {{partitions: hourly}}", ["time_range.partitions", "hourly", "'weekly'"]),
        (f"{INLINE}\ntime_range: {{start_date: soon}}", ["time_range.start_date", "soon", "YYYY-MM-DD"]),
        (f"{INLINE}\nstorage: {{type: dynamodb}}", ["storage.type", "dynamodb", "400 kB"]),
        (
            f"{INLINE}\nstorage: {{path: 's3://bucket/x'}}",
            ["storage.path", "s3://bucket/x", "local directory"],
        ),
        (f"{INLINE}\nnetwork: {{plc_url: 'plc.directory'}}", ["network.plc_url", "plc.directory", "http(s)"]),
        (f"{INLINE}\nnetwork: {{connect_to: {{'a b': 'c'}}}}", ["network.connect_to", "host:port"]),
        (
            f"{INLINE}\nnetwork: {{plc_export: {{use: maybe}}}}",
            ["network.plc_export.use", "'never'", "'auto'"],
        ),
        (
            f"{INLINE}\nnetwork: {{plc_export: {{mirrors: [plc.test]}}}}",
            ["network.plc_export.mirrors.0", "plc.test", "http(s)"],
        ),
        (f"{INLINE}\nname: two", ["name", "twice"]),
        ("", ["backfill.source", "missing"]),
    ],
)
def test_a_wrong_value_names_file_field_value_and_what_is_allowed(
    tmp_path: Path, body: str, parts: list[str]
) -> None:
    text = complaint(tmp_path, body)
    for part in ["study.yaml", *parts]:
        assert part in text, text


@pytest.mark.parametrize("name", ["config", "type", "my-study", "Study", "1st", "x" * 42, "demo_rebuild"])
def test_names_that_cannot_be_jobs_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        load_study(write(tmp_path, INLINE, name))


def test_the_name_is_the_file_s(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(f"backfill:\n  name: two\n  {INLINE}\n")
    with pytest.raises(ConfigError, match="must be 'one'"):
        load_study(path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("backfill: [", "not valid YAML"),
        ("just text", "mapping named `backfill`"),
        ("backfill: {}\nextra: 1", "extra"),
        ("&a [*a]", "mapping named `backfill`"),
    ],
)
def test_a_file_that_is_no_backfill(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=part):
        load_study(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_study(tmp_path / "study.yaml")


def test_every_name_that_dagster_keeps_is_reserved() -> None:
    from dagster._core.definitions.utils import DISALLOWED_NAMES

    assert set(DISALLOWED_NAMES) <= RESERVED_NAMES


# --- sources, which nest ---

DIDS = "['did:plc:aaaaaaaaaaaaaaaaaaaaaaaa']"
EXAMPLE_URI = "at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.feed.post/3l5uvwqz2fk2k"


@pytest.mark.parametrize(
    "source",
    [
        "{type: sqlite, path: a, query: 'SELECT did FROM x WHERE n > ? AND m = ?', parameters: [1, null]}",
        "{type: sqlite, path: a, query: 'SELECT did FROM x WHERE n > :n', parameters: {n: 1.5}}",
        "{type: parquet, path: 's3://bucket/prefix/', column: account}",
        "{type: parquet, path: 'data/*.parquet'}",
        "{type: s3, path: 's3://bucket/list.CSV'}",
        "{type: s3, path: 's3://bucket/prefix/'}",
        "{type: s3, path: 's3://bucket/list', format: text}",
        "{type: asset, backfill: users, min_interactions: 2}",
        "{type: handles, handles: [alice.example.com]}",
        "{type: handles, path: handles.txt}",
        "{type: union, sources: [{type: pds, hosts: ['https://pds.example.com']}, {type: plc_export}]}",
        "{type: except, source: {type: collection, collection: a.b.c}, without: {type: inline, dids: [x]}}",
    ],
)
def test_every_kind_of_source_can_be_source_and_exclusion(tmp_path: Path, source: str) -> None:
    study = load(tmp_path, f"source: {source}\nexclude: {source}")
    assert study.source == study.exclude


# Every kind of place in which a source can stand, marked by HERE, and what the place is called.
PLACES = {
    "source": "source: HERE",
    "exclude": f"{INLINE}\nexclude: HERE",
    "source.sources.1": f"source: {{type: union, sources: [{{type: inline, dids: {DIDS}}}, HERE]}}",
    "exclude.source": f"{INLINE}\nexclude: {{type: except, source: HERE, without: {{type: text, path: a}}}}",
    "source.without.sources.0": "source: {type: except, source: {type: text, path: a}, "
    "without: {type: union, sources: [HERE]}}",
    "filters.app.bsky.feed.post.uris": f"{INLINE}\nfilters: {{app.bsky.feed.post: {{uris: HERE}}}}",
    "filters.app.bsky.feed.like.subjects.sources.0": f"{INLINE}\n"
    "filters: {app.bsky.feed.like: {subjects: {type: union, sources: [HERE]}}}",
    "derived.posts_used_in_feeds.feeds": f"{INLINE}\nderived: {{posts_used_in_feeds: {{feeds: HERE}}}}",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{type: txt, path: a}", " = {'type': 'txt', 'path': 'a'}: `type` must be one of inline, text, csv,"),
        ("{path: a}", " = {'path': 'a'}: `type` must be one of inline, text, csv,"),
        ("a.txt", " = 'a.txt': `type` must be one of inline, text, csv,"),
        ("{type: text}", ".path: is missing"),
        (
            "{type: csv, pth: a}",
            ".pth = 'a': unknown key; did you mean `path`? allowed here: type, path, column",
        ),
        ("{type: csv, path: a, sheet: b}", ".sheet = 'b': unknown key; allowed here: type, path, column"),
        ("{type: csv, path: 3}", ".path = 3: must be a path"),
        ("{type: parquet, path: 3}", ".path = 3: must be a path, or s3://bucket/key"),
        (
            "{type: parquet, path: 's3://b'}",
            ".path = 's3://b': must be s3://bucket/key or s3://bucket/prefix/",
        ),
        ("{type: s3, path: 'a.csv'}", ".path = 'a.csv': must be s3://bucket/key or s3://bucket/prefix/"),
        (
            "{type: s3, path: 's3://bucket/list'}",
            " = {'type': 's3', 'path': 's3://bucket/list'}: the name of the object tells no format, as "
            ".txt, .csv, .parquet, .sqlite, .db do: give `format`",
        ),
        (
            "{type: s3, path: 's3://bucket/a.csv', format: tsv}",
            ".format = 'tsv': must be 'text', 'csv', 'parquet' or 'sqlite'",
        ),
        (
            "{type: sqlite, path: a, parameters: 3}",
            ".parameters = 3: must be a list, or a mapping of names to values",
        ),
        (
            "{type: sqlite, path: a, parameters: {low: [1]}}",
            ".parameters = {'low': [1]}: low = [1] must be text, a number or null",
        ),
        (
            "{type: sqlite, path: a, parameters: [1, {a: b}]}",
            ".parameters = [1, {'a': 'b'}]: 1 = {'a': 'b'} must be text, a number or null",
        ),
        (
            "{type: asset, backfill: Users}",
            ".backfill = 'Users': String should match pattern '^[a-z][a-z0-9_]{0,40}$'",
        ),
        (
            "{type: asset, backfill: users, min_accounts: 0}",
            ".min_accounts = 0: must be greater than or equal to 1",
        ),
        (
            "{type: handles, handles: [a.com], path: b}",
            " = {'type': 'handles', 'handles': ['a.com'], 'path': 'b'}: needs either `handles` or `path`, and not both",
        ),
        ("{type: handles, handles: []}", ".handles = []: must have at least one item"),
        ("{type: handles, handles: a.com}", ".handles = 'a.com': must be a list"),
        (
            "{type: pds, hosts: [pds.example.com]}",
            ".hosts.0 = 'pds.example.com': must be http(s)://host[:port]",
        ),
        (
            "{type: collection, collection: posts}",
            ".collection = 'posts': must be the NSID of a collection, such as app.bsky.feed.post",
        ),
        (
            "{type: list, uri: 'https://bsky.app/profile/x/lists/y'}",
            ".uri = 'https://bsky.app/profile/x/lists/y': must be at://<did>/app.bsky.graph.list/<rkey>, or that of an "
            "app.bsky.graph.starterpack",
        ),
        ("{type: plc_export, created_from: soon}", ".created_from = 'soon': must be YYYY-MM-DD, "),
        ("{type: union, sources: []}", ".sources = []: must have at least one item"),
        ("{type: union}", ".sources: is missing"),
        ("{type: union, sources: [{type: text}]}", ".sources.0.path: is missing"),
        ("{type: except, source: {type: text, path: a}}", ".without: is missing"),
        ("{type: inline}", " = {'type': 'inline'}: needs either `dids` or `uris`, and not both"),
        ("{type: inline, dids: x}", ".dids = 'x': must be a list"),
    ],
)
def test_a_mistake_in_a_source_is_said_once_with_its_place(
    tmp_path: Path, place: str, source: str, said: str
) -> None:
    text = complaint(tmp_path, PLACES[place].replace("HERE", source))
    assert text.startswith(f"{tmp_path}/study.yaml: backfill.{place}{said}")
    assert text.count("\n") == 0


def test_two_mistakes_are_two_lines(tmp_path: Path) -> None:
    text = complaint(
        tmp_path,
        "source: {type: union, sources: [{type: text}, {type: csv, pth: a}, {type: pds, hosts: [x]}]}",
    )
    assert [line.split(": ")[1] for line in text.splitlines()] == [
        "backfill.source.sources.0.path",
        "backfill.source.sources.1.pth = 'a'",
        "backfill.source.sources.2.hosts.0 = 'x'",
    ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "source: {type: inline, uris: [x]}",
            "source = {'type': 'inline', 'uris': ['x']}: a list of accounts has `dids`, not `uris`",
        ),
        (
            f"{INLINE}\nexclude: {{type: union, sources: [{{type: inline, uris: [x]}}]}}",
            "exclude = {'type': 'union', 'sources': [{'type': 'inline', 'uris': ['x']}]}: "
            "sources.0: a list of accounts has `dids`, not `uris`",
        ),
        (
            f"{INLINE}\nfilters: {{app.bsky.feed.post: {{uris: {{type: inline, dids: [x]}}}}}}",
            "post.uris = {'type': 'inline', 'dids': ['x']}: a list of records has `uris`, not `dids`",
        ),
        *(
            (
                f"{INLINE}\nfilters: {{app.bsky.feed.post: {{uris: {source}}}}}",
                f"{where}type {kind} gives accounts; a list of records can come from inline, text, csv, "
                "parquet, sqlite, s3, asset, union, except",
            )
            for kind, where, source in (
                ("handles", "", "{type: handles, handles: [a.com]}"),
                ("pds", "", "{type: pds, hosts: ['https://a.com']}"),
                ("collection", "", "{type: collection, collection: a.b.c}"),
                ("plc_export", "", "{type: plc_export}"),
                (
                    "plc_export",
                    "source: ",
                    "{type: except, source: {type: plc_export}, without: {type: plc_export}}",
                ),
            )
        ),
        *(
            (
                f"{INLINE}\nderived: {{posts_used_in_feeds: {{feeds: {source}}}}}",
                said,
            )
            for source, said in (
                (
                    "{type: text, path: a}",
                    "type text has no columns; a table can come from csv, parquet, sqlite, s3, asset",
                ),
                ("{type: inline, uris: [a]}", "type inline has no columns; a table"),
                ("{type: union, sources: [{type: csv, path: a}]}", "type union has no columns; a table"),
                ("{type: s3, path: 's3://bucket/a.txt'}", "format text has no columns; a table is csv,"),
                ("{type: s3, path: 's3://bucket/a/', format: text}", "format text has no columns"),
            )
        ),
        (
            f"{INLINE}\nfilters: {{app.bsky.feed.pst: {{text: a}}}}",
            "filters.app.bsky.feed.pst = 'app.bsky.feed.pst': must be 'app.bsky.feed.post', 'app.bsky.feed.like'",
        ),
        (f"{INLINE}\nderived: {{posts_used_in_feeds: yes}}", "posts_used_in_feeds = True: must be a mapping"),
        (
            f"{INLINE}\ndiscovery: {{interactions: [lik]}}",
            "discovery.interactions.0 = 'lik': must be 'reply', ",
        ),
    ],
)
def test_a_source_that_cannot_stand_there_is_told_what_can(tmp_path: Path, body: str, said: str) -> None:
    text = complaint(tmp_path, body)
    assert said in text
    assert text.count("\n") == 0


def test_lists_of_records_can_be_written_into_the_yaml(tmp_path: Path) -> None:
    study = load(
        tmp_path,
        f"{INLINE}\nfilters: {{app.bsky.feed.post: {{uris: {{type: inline, uris: ['{EXAMPLE_URI}']}}}}}}",
    )
    listed = study.filters["app.bsky.feed.post"].uris
    assert isinstance(listed, InlineSource)
    assert listed.uris == (EXAMPLE_URI,)


def test_a_long_value_is_shown_in_part(tmp_path: Path) -> None:
    dids = ", ".join(["did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"] * 1000)
    text = complaint(tmp_path, f"source: {{type: inline, dids: [{dids}], uris: [x]}}")
    assert "not both" in text
    assert len(text) < 500


@pytest.mark.parametrize("server", ["127.0.0.1:53", "[::1]:5353", "[2001:db8::53]:53"])
def test_a_dns_server_is_an_address_and_a_port(tmp_path: Path, server: str) -> None:
    assert load(tmp_path, f"{INLINE}\nnetwork: {{dns_server: '{server}'}}").network.dns_server == server


@pytest.mark.parametrize(
    "server", ["127.0.0.1", "dns.example.com:53", "127.0.0.1:0", "127.0.0.1:99999", "::1", ":53"]
)
def test_what_is_no_dns_server_is_refused(tmp_path: Path, server: str) -> None:
    text = complaint(tmp_path, f"{INLINE}\nnetwork: {{dns_server: '{server}'}}")
    assert "backfill.network.dns_server" in text
    assert repr(server) in text


def documented_examples() -> list[str]:
    page = Path(__file__).resolve().parent.parent / "docs" / "sources.md"
    return re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", documented_examples())
def test_every_documented_source_is_valid(tmp_path: Path, example: str) -> None:
    load(tmp_path, example if "source:" in example else f"{INLINE}\n{example}")


def test_every_type_of_source_is_documented() -> None:
    assert {
        kind for kind in SOURCES if not any(f"type: {kind}" in text for text in documented_examples())
    } == set()


def test_two_consumers_do_not_take_the_same_records_from_one_place(tmp_path: Path) -> None:
    def consumers(*tables: str, **parts: str) -> str:
        said = [{"type": "sqlite", "path": "queue.sqlite", "tables": [table], **parts} for table in tables]
        return f"{INLINE}\nintegrations: {{consumers: {dict(zip(('one', 'two'), said, strict=True))}}}"

    assert "two.path = 'queue.sqlite': one has posts there already" in complaint(
        tmp_path, consumers("posts", "posts")
    )
    assert len(load(tmp_path, consumers("posts", "likes")).integrations.consumers) == 2
