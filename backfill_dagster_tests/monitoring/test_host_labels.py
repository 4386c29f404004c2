"""Hosts by name: few, the same ones all along, and none that names an account."""

import polars as pl

from backfill_dagster.monitoring.host_labels import OTHER, HostLabels, accounts_by_host


def test_the_largest_have_names_and_the_rest_are_other() -> None:
    labels = HostLabels(2)
    labels.choose({"c.test": 5, "b.test": 7, "a.test": 5, "d.test": 1})
    assert [labels.of(host) for host in ("a.test", "b.test", "c.test", "d.test", "unknown.test")] == [
        "a.test",
        "b.test",
        OTHER,
        OTHER,
        OTHER,
    ]


def test_the_first_choice_holds() -> None:
    labels = HostLabels(1)
    labels.choose({})
    labels.choose({"a.test": 1})
    labels.choose({"b.test": 2})
    assert (labels.of("a.test"), labels.of("b.test")) == ("a.test", OTHER)


def test_a_configured_host_has_a_name_beside_those() -> None:
    labels = HostLabels(0)
    labels.always("plc.test")
    labels.choose({"a.test": 1})
    assert (labels.of("plc.test"), labels.of("a.test")) == ("plc.test", OTHER)


def test_a_host_that_is_an_accounts_own_is_not_named() -> None:
    directory = pl.DataFrame(
        [
            ("did:plc:1", "one.pds.test", "pds.test"),
            ("did:plc:2", None, "pds.test"),
            ("did:plc:3", "Three.example", "three.example"),
            ("did:plc:4", "four.example", "three.example"),
            ("did:web:five.example", "five", "five.example"),
            ("did:plc:6", "six.example", None),
        ],
        schema=["did", "handle", "pds_host"],
        orient="row",
    )
    assert accounts_by_host(directory.lazy()).collect().rows() == [("pds.test", 2)]
