from backfill_dagster.config.operation import Monitoring
from backfill_dagster.monitoring.alerts import (
    FEWEST_TRIED,
    Alert,
    AlertedRun,
    AlertKind,
    RunWatch,
    Sight,
    Thresholds,
    failure_alert_of,
)

RUN = AlertedRun("study", "study_refresh", "0123456789abcdef", "https://dagster.example.org/")
DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


def watch(**thresholds: float) -> RunWatch:
    return RunWatch(RUN, Thresholds(**thresholds))


def kinds(found: list[Alert]) -> list[str]:
    return [alert.kind.value for alert in found]


def test_thresholds_are_what_the_yaml_says_in_seconds() -> None:
    monitoring = Monitoring(alert_failed_share=0.1, alert_stalled_minutes=2, alert_parked_minutes=0.5)
    assert Thresholds.of(monitoring) == Thresholds(0.1, 120, 30)
    assert not Thresholds.of(Monitoring()).any_set


def test_without_thresholds_nothing_is_told() -> None:
    sight = Sight("repos", tried=1000, failed=1000, parked={"pds.example": 1e6})
    watching = watch()
    assert watching.look(sight, 0) == watching.look(sight, 1e9) == []


def test_a_share_of_failures_is_told_once_and_not_of_a_few() -> None:
    watching = watch(failed_share=0.2)
    assert watching.look(Sight("repos", 1, tried=FEWEST_TRIED - 1, failed=FEWEST_TRIED - 1), 0) == []
    assert watching.look(Sight("repos", 2, tried=100, failed=20), 1) == []
    [alert] = watching.look(
        Sight("repos", 3, tried=100, failed=21, reasons={"timed_out": 20, "bad_tree": 1}), 2
    )
    assert alert.kind is AlertKind.FAILED_SHARE
    assert "21 of 100 accounts" in alert.text
    assert "timed_out 20, bad_tree 1" in alert.text
    assert watching.look(Sight("repos", 4, tried=200, failed=200), 3) == []


def test_when_a_fetch_is_over_fewer_accounts_are_enough() -> None:
    assert kinds(watch(failed_share=0.2).look(Sight("repos", tried=10, failed=3, is_over=True), 0)) == [
        "failed_share"
    ]
    assert watch(failed_share=0.2).look(Sight("repos", tried=9, failed=9, is_over=True), 0) == []


def test_a_share_of_nothing_allows_no_failure() -> None:
    assert watch(failed_share=0).look(Sight("repos", tried=100, failed=0), 0) == []
    assert kinds(watch(failed_share=0).look(Sight("repos", tried=100, failed=1), 0)) == ["failed_share"]


def test_a_stage_that_gets_no_further_is_told_of_once_it_has_taken_so_long() -> None:
    watching = watch(stalled_seconds=60)
    assert watching.look(Sight("repos", (1, 0)), 1000) == []
    assert watching.look(Sight("repos", (1, 0)), 1059) == []
    assert watching.look(Sight("repos", (1, 5)), 1060) == [], "bytes have come in"
    assert watching.look(Sight("repos", (1, 5)), 1119) == []
    [alert] = watching.look(Sight("repos", (1, 5), parked={"a": 1.0, "b": 2.0}), 1120)
    assert alert.kind is AlertKind.STALLED
    assert "repos has got no further for 60 seconds; 2 hosts ask to be left alone" in alert.text
    assert watching.look(Sight("repos", (1, 5)), 5000) == []


def test_another_stage_has_time_of_its_own() -> None:
    watching = watch(stalled_seconds=60)
    watching.look(Sight("repos", 1), 0)
    assert watching.look(Sight("records", 1), 59) == []
    assert watching.look(Sight("records", 1), 118) == []
    assert kinds(watching.look(Sight("records", 1), 119)) == ["stalled"]


def test_each_host_that_is_parked_for_long_is_told_of_once() -> None:
    watching = watch(parked_seconds=300)
    assert watching.look(Sight("repos", 1, parked={"a": 299.0}), 0) == []
    assert [
        alert.subject for alert in watching.look(Sight("repos", 2, parked={"a": 300.0, "b": 1.0}), 1)
    ] == ["a"]
    assert [
        alert.subject for alert in watching.look(Sight("repos", 3, parked={"a": 900.0, "b": 301.0}), 2)
    ] == ["b"]
    assert watching.look(Sight("repos", 4, parked={"a": 9000.0}), 3) == []


def test_a_message_has_a_link_and_names_no_account() -> None:
    alert = failure_alert_of(RUN, [f"{DID} broke", f"at://{DID}/app.bsky.feed.post/3k  and\nmore"])
    assert alert.text == (
        "backfill_dagster: study_refresh failed (run 01234567)\n(an account) broke (an account) and more\n"
        "https://dagster.example.org/runs/0123456789abcdef"
    )
    [alert] = watch(parked_seconds=1).look(Sight("repos", parked={"did:web:a.person.example": 2.0}), 0)
    assert "person" not in alert.text


def test_a_name_at_the_end_of_a_long_reason_is_not_cut_in_two() -> None:
    for length in range(560, 610):
        assert "did:" not in failure_alert_of(RUN, ["x" * length + " " + DID]).text
    assert len(failure_alert_of(RUN, ["word " * 1000]).text) < 800
