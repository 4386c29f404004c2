"""A paragraph for a paper: how the data were collected, what was lost, and what is proven of them and what is not.

It names no account and no host, and says nothing that the study's files do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.attrition.steps import Step, Unit, totals
from backfill_dagster.report.wording import instant, percent, spaced_name
from backfill_dagster.repos.outcomes import Obtained
from backfill_dagster.survivorship.ages import CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backfill_dagster.attrition.period import Decay
    from backfill_dagster.config.study import Study
    from backfill_dagster.survivorship.rates import Lost
    from backfill_dagster.tables.account_sums import AccountSums

_Totals = dict[Step, tuple[int, int, int, dict[str, int]]]
_DAYS_OF_RATE = 30
_RATE_COLUMNS = ("collection", "rate", "rate_low", "rate_high")
_RECORDS_OF_RATE = 1000
_WHAT = {
    "repos": ("the whole repository", "whole repositories", "repository", "repositories"),
    "records": ("all of the listed records", "all of the listed records", "account", "accounts"),
    "list_records": (
        "a listing of the wanted records",
        "listings of the wanted records",
        "listing",
        "listings",
    ),
}


def methods_text(study: Study, accounts: AccountSums, table: pl.DataFrame, decay: Decay) -> str:
    """Return the paragraph as Markdown: a title, and paragraphs without any markup.

    `accounts` are those of the source, `table` is of their attrition (ATTRITION_SCHEMA).
    """
    of_accounts, of_records = totals(table, Unit.ACCOUNTS), totals(table, Unit.RECORDS)
    paragraphs = (
        [*_source(of_accounts), *_accounts(study, accounts, of_accounts)],
        _proof(accounts),
        _records(study, of_accounts, of_records),
        survivorship_sentences(decay),
    )
    body = "\n\n".join(" ".join(sentences) for sentences in paragraphs if sentences)
    return f"# Methods: data collection of study {study.name}\n\n{body}\n"


def number_of(number: int, one: str, many: str | None = None) -> str:
    """Write a number of things: none as `no`, and one and many by their names."""
    name = one if number == 1 else (many or f"{one}s")
    return f"no {name}" if number == 0 else f"{number:,} {name}"


def was(number: int) -> str:
    """Return the verb for so many."""
    return "was" if number == 1 else "were"


def reasons_in_words(reasons: Mapping[str, int]) -> str:
    """List reasons with their numbers, the most frequent first: `3 timed out, 1 server error`."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{spaced_name(reason)} {number:,}" for reason, number in ordered)


def listed(parts: Sequence[str]) -> str:
    """Join parts as a sentence does."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _source(steps: _Totals) -> list[str]:
    given, wanted = steps[Step.VALID][0], steps[Step.WANTED][2]
    said = [f"The list of accounts had {number_of(given, 'entry', 'entries')}."]
    left_out = {
        "that could not be read as an account's identifier": steps[Step.VALID],
        "that repeated another": steps[Step.DISTINCT],
        "of accounts that were excluded or had been withdrawn": steps[Step.WANTED],
    }
    parts = [
        f"{number_of(lost, 'entry', 'entries')} {what}" for what, (_, lost, _, _) in left_out.items() if lost
    ]
    if parts:
        total = sum(steps[step][1] for step in (Step.VALID, Step.DISTINCT, Step.WANTED))
        said.append(f"{listed(parts)} {was(total)} left out, which left {number_of(wanted, 'account')}.")
    return said


def _accounts(study: Study, accounts: AccountSums, steps: _Totals) -> list[str]:
    wanted = steps[Step.WANTED][2]
    if not wanted:
        return ["Nothing was collected."]
    resolved, unresolved = steps[Step.RESOLVED][2], steps[Step.RESOLVED]
    said = [
        f"Each account's identifier (DID) was looked up in the PLC directory, or at the web host that it names; "
        f"{_of(resolved, wanted)} led to a personal data server (PDS)"
        + (f", the others did not ({reasons_in_words(unresolved[3])})." if unresolved[1] else ".")
    ]
    if asked_nothing := steps[Step.ASKED][1]:
        said.append(
            f"Of {number_of(asked_nothing, 'account')} no record was on the list, so that nothing was asked of "
            f"{'it' if asked_nothing == 1 else 'them'}."
        )
    asked = steps[Step.ASKED][2]
    if not asked:
        return said
    unreached, incomplete, complete = steps[Step.REACHED], steps[Step.COMPLETE], steps[Step.COMPLETE][2]
    singular, plural, _, _ = _WHAT[study.fetch]
    said.append(
        f"From {'its PDS' if asked == 1 else 'the PDSs'} we obtained {singular if complete == 1 else plural} of "
        f"{_of(complete, asked)}{_when(accounts)}."
    )
    if unreached[1]:
        said.append(
            f"{_capital(number_of(unreached[1], 'account'))} could not be reached or {was(unreached[1])} not "
            f"attempted ({reasons_in_words(unreached[3])})."
        )
    if incomplete[1]:
        said.append(
            f"Of {number_of(incomplete[1], 'account')} no {_WHAT[study.fetch][2]} was to be had, or none that held "
            f"({reasons_in_words(incomplete[3])})."
        )
    if inactive := steps[Step.ACTIVE][1]:
        said.append(
            f"{_capital(number_of(inactive, 'account'))} had been collected and {was(inactive)} no longer active at "
            f"the last look ({reasons_in_words(steps[Step.ACTIVE][3])}); "
            f"{'its' if inactive == 1 else 'their'} records are not in the tables."
        )
    return said


def _proof(accounts: AccountSums) -> list[str]:
    """Say what is proven of what the tables hold, and what is not."""
    shown = accounts.kinds.filter(pl.col("shown") & pl.col("obtained").is_not_null())
    if shown.is_empty():
        return []
    said = []
    number = pl.col("accounts").sum()
    obtained = dict(shown.group_by("obtained").agg(number).iter_rows())
    if whole := obtained.get(Obtained.REPO.value, 0):
        said.append(
            f"{_capital(number_of(whole, 'repository', 'repositories'))} {was(whole)} verified block by block: each "
            "record's bytes have the hash that its key in the signed tree names, and the tree has no gap, so that "
            f"{'it holds' if whole == 1 else 'they hold'} all records, and no others, that the account had at the "
            "revision that was fetched."
        )
    if some := obtained.get(Obtained.RECORD_PROOF.value, 0):
        said.append(
            f"Of {number_of(some, 'account')} single records were asked for, each with a proof that it stands in the "
            "account's signed tree, or that none does; of other records of "
            f"{'this account' if some == 1 else 'these accounts'} nothing is known. Where a server only says that a "
            "record does not exist, that is not proven."
        )
    if unproven := obtained.get(Obtained.LIST_RECORDS.value, 0):
        said.append(
            f"The records of {number_of(unproven, 'account')} come from {'its' if unproven == 1 else 'their'} servers' "
            "listings: their bytes have the hashes that were listed, but neither that a listing is whole, nor that the "
            "records are the account's, is proven."
        )
    signable = shown.filter("has_rev", pl.col("obtained") != Obtained.LIST_RECORDS.value)
    signed = dict(signable.group_by("signed_by").agg(number).iter_rows())
    if signed:
        parts = [
            *(
                [f"of {number_of(signed['current'], 'account')} by the current key"]
                if "current" in signed
                else []
            ),
            *(
                [f"of {number_of(signed['previous'], 'account')} by an earlier one"]
                if "previous" in signed
                else []
            ),
        ]
        if parts:
            said.append(
                f"Signatures were checked against the account's own keys, as the directory has them: {listed(parts)}."
            )
        if unchecked := signed.get(None, 0):
            said.append(f"Of {number_of(unchecked, 'account')} the signature was not checked.")
    said.append(
        "Not verified are dates, which clients write, handles, and what had been deleted before the collection."
    )
    return said


def _records(study: Study, of_accounts: _Totals, steps: _Totals) -> list[str]:
    found, absent = steps[Step.FOUND][2], steps[Step.FOUND][1]
    if not of_accounts[Step.COMPLETE][2]:
        return []
    source = {"repos": "The repositories held", "records": "There were", "list_records": "The listings held"}[
        study.fetch
    ]
    said = [f"{source} {number_of(found, 'record')}."]
    if absent:
        said.append(
            f"{_capital(number_of(absent, 'more record'))} that {was(absent)} asked for did not exist any more."
        )
    if not found:
        return said
    parts = [
        f"{number_of(lost, 'record')} {was(lost)} {what} ({reasons_in_words(reasons)})"
        for what, (_, lost, _, reasons) in (
            ("left out by the study's design", steps[Step.CHOSEN]),
            ("unusable", steps[Step.USABLE]),
            ("left out with accounts that are not shown", steps[Step.SHOWN]),
        )
        if lost
    ]
    if parts:
        said.append(f"{_capital('; '.join(parts))}.")
    kept, authors = steps[Step.SHOWN][2], of_accounts[Step.IN_TABLES][2]
    if kept:
        said.append(
            f"The data set has {number_of(kept, 'record')} of {number_of(authors, 'account')} "
            f"({percent(kept, found)} of what was found)."
        )
    else:
        said.append("The data set has no record.")
    if undated := steps[Step.DATED][1]:
        said.append(
            f"Of these, {number_of(undated, 'record')} {'has' if undated == 1 else 'have'} no date that can be "
            f"believed ({reasons_in_words(steps[Step.DATED][3])}) and {'is' if undated == 1 else 'are'} kept apart."
        )
    if kept:
        said.append(_period(study))
    return said


def _period(study: Study) -> str:
    start, end = study.time_range.start_date, study.time_range.end_date
    if start is None and end is None:
        return "Records of all times were kept."
    span = (
        f"from {'the beginning' if start is None else instant(start)} to "
        f"{'the time of the fetch' if end is None else instant(end)}"
    )
    if study.time_range.outside == "drop":
        return f"The study period is {span}; records that were dated outside it were left out."
    return f"The study period is {span}; records that are dated outside it are kept as well, and marked."


def survivorship_sentences(decay: Decay) -> list[str]:
    """Say how fast what was collected goes, and how much had gone before; or that it cannot be told."""
    records = decay.records
    said = ["Records that their authors had deleted before the collection are not in the data."]
    if records.is_empty():
        said.append(
            "How many these are cannot be told from a single collection: it takes at least one refresh, which shows "
            "what goes meanwhile."
        )
        return said
    deleted, days = int(records["deleted"].sum()), float(records["days"].sum())
    said.append(
        f"By repeated collection, records were watched for {_duration(days)} in all, during which "
        f"{number_of(deleted, 'record')} {was(deleted)} deleted."
    )
    told = records.filter(pl.col("rate_high") * _DAYS_OF_RATE <= 1)
    rates = [
        f"{collection} {_rate(rate)} ({_rate(low)} to {_rate(high)})"
        for collection, rate, low, high in told.select(*_RATE_COLUMNS).iter_rows()
    ]
    if rates:
        said.append(
            f"Deletions per {_RECORDS_OF_RATE:,} records and {_DAYS_OF_RATE} days (95 % interval: exact Poisson, "
            f"widened by how much deletions come in bursts of single accounts): {'; '.join(rates)}."
        )
    lost = [each for each in decay.lost if each.is_told]
    unsure = {*records.join(told, on="collection", how="anti")["collection"]}
    unsure |= {each.collection for each in decay.lost if not each.is_told}
    if unsure:
        said.append(f"The time watched is too short to tell of {listed(sorted(unsure))}.")
    if lost:
        said += _lost_before(lost)
    said.append("Records that were made and deleted between two collections were never seen.")
    for _, _, _, watched, gone, _, _, rate, low, high in decay.accounts.iter_rows():
        if high * _DAYS_OF_RATE > 1:
            continue
        said.append(
            f"Of the accounts themselves, in {_duration(watched, 'account')}, {number_of(gone, 'account')} that "
            f"had been complete {was(gone)} found deleted, deactivated or otherwise inactive: {_rate(rate)} per "
            f"{_RECORDS_OF_RATE:,} accounts and {_DAYS_OF_RATE} days ({_rate(low)} to {_rate(high)})."
        )
    return said


def _lost_before(lost: Sequence[Lost]) -> list[str]:
    shares = [
        f"{each.collection} {_share(each.share)} ({_share(each.low)} to {_share(each.high)})" for each in lost
    ]
    said = [
        "If deletion depends on a record's age alone, and was in the study period what it was when it was watched, "
        "these shares of the records that were made in the study period had been deleted before the collection: "
        f"{'; '.join(shares)}.",
        "In brackets is what the lower, and the upper, bounds of the rates of all ages come to together, which is "
        "wider than a 95 % interval.",
    ]
    from_older = [age for age in CLASSES if any(age in each.from_older for each in lost)]
    from_younger = [age for age in CLASSES if any(age in each.from_younger for each in lost)]
    for ages, taken, slant in (
        (from_older, "next older", "too low if younger records are deleted faster"),
        (from_younger, "next younger", "too high if older records are deleted more slowly"),
    ):
        if ages:
            said.append(
                f"Of some types the looks tell nothing of records of {'this age' if len(ages) == 1 else 'these ages'}, "
                f"for which the {taken} rate was taken: {', '.join(ages)}. This makes the shares {slant}."
            )
    return said


def _duration(days: float, what: str = "record") -> str:
    return f"{days:,.1f} {what}-days" if days < 1000 else f"{round(days):,} {what}-days"


def _rate(per_day: float) -> str:
    value = per_day * _DAYS_OF_RATE * _RECORDS_OF_RATE
    return "0" if value == 0 else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _share(share: float) -> str:
    return percent(share, 1)


def _when(accounts: AccountSums) -> str:
    first, last = accounts.first_fetch, accounts.last_fetch
    if first is None or last is None:
        return ""
    return (
        f" ({instant(first)})"
        if instant(first) == instant(last)
        else f" ({instant(first)} to {instant(last)})"
    )


def _of(part: int, whole: int) -> str:
    """Write so many of all: `all 12 accounts`, `3 of 12 accounts (25.0 %)`, `the one account`."""
    if whole == 1:
        return "the one account" if part else "none of the one account"
    if part == whole:
        return f"all {whole:,} accounts"
    if not part:
        return f"none of the {whole:,} accounts"
    return f"{part:,} of {whole:,} accounts ({percent(part, whole)})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
