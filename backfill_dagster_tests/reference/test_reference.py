import re
from pathlib import Path

from backfill_dagster import __file__ as package
from backfill_dagster.config.sources import SOURCES
from backfill_dagster.config.study import Study
from backfill_dagster.dictionary.resources import every_resource
from backfill_dagster.reference.__main__ import main
from backfill_dagster.reference.config_fields import SOURCE_TYPE, source_sections, study_sections
from backfill_dagster.reference.pages import closed_sets

PACKAGE = Path(package).parent


def test_the_pages_are_what_the_code_says() -> None:
    assert main(["--check"]) == 0


def test_the_check_finds_what_has_changed_is_missing_or_too_many(tmp_path: Path) -> None:
    folder = ["--folder", str(tmp_path)]
    assert main(["--check", *folder]) == 1
    assert main(folder) == 0
    assert main(["--check", *folder]) == 0
    page = tmp_path / "config.md"
    page.write_text(page.read_text() + "more\n")
    (tmp_path / "old.md").write_text("old\n")
    assert main(["--check", *folder]) == 1
    assert main(folder) == 0
    assert main(["--check", *folder]) == 0
    assert not (tmp_path / "old.md").exists()


def test_no_field_of_the_yaml_is_without_a_description() -> None:
    for section in (*study_sections(), *source_sections()):
        assert section.description.endswith("."), section.path
        for field in section.fields:
            assert re.fullmatch(r"[A-Z`].*\.", field.description), (section.path, field.name)


def test_fields_are_told_in_terms_of_yaml() -> None:
    told = {
        f"{section.path}.{field.name}": (field.type, field.default)
        for section in study_sections()
        for field in section.fields
    }
    assert told["backfill.processing.batch_size"] == ("whole number, from 1 to 1000", "`100`")
    assert told["backfill.network.allow_private_addresses"] == ("`true` or `false`", "`false`")
    assert told["backfill.source"] == (SOURCE_TYPE, None)
    assert told["backfill.time_range.outside"] == ("`drop` or `normalize`", "`normalize`")
    assert told["backfill.filters.<record type>.languages"] == ("list of text, at least 1", "none")
    assert told["backfill.derived.posts_used_in_feeds.feeds"] == (SOURCE_TYPE, None)
    assert told["backfill.network.sandbox.seed"] == ("whole number, from 0", "`1`")
    # A field is told by itself, or as a mapping that has its own fields.
    paths = [section.path.split(".<")[0] for section in study_sections()]
    for name in Study.model_fields:
        assert f"backfill.{name}" in told or f"backfill.{name}" in paths
    types = [section.path for section in source_sections() if "." not in section.path]
    assert types == list(SOURCES)


def test_every_closed_set_is_in_the_reference_under_a_name_of_its_own() -> None:
    named = [words.__name__ for sets in closed_sets().values() for words in sets]
    in_code = [
        name
        for path in PACKAGE.rglob("*.py")
        for name in re.findall(r"^class (\w+)\(ClosedSet\)", path.read_text(), re.MULTILINE)
    ]
    assert sorted(named) == sorted(set(in_code)) == sorted(in_code)


def test_every_table_has_a_name_of_its_own() -> None:
    names = [resource.name for resource in every_resource()]
    assert len(names) == len(set(names))


def test_every_word_says_what_it_means() -> None:
    for sets in closed_sets().values():
        for words in sets:
            for word in words:
                assert re.fullmatch(r"[A-Z`].*\.", word.meaning), word
                assert word.advice is None or re.fullmatch(r"[A-Z`].*\.", word.advice), word
