from pathlib import Path

import pytest

from backfill_dagster.dids.handle_syntax import HandleRejection, check_handle, is_handle, normal_handle


def vectors(shared_dir: Path, name: str) -> list[str]:
    lines = (shared_dir / "vectors/interop/syntax" / name).read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line and not line.startswith("#")]


def test_the_protocol_s_handles_are_handles(shared_dir: Path) -> None:
    valid = vectors(shared_dir, "handle_syntax_valid.txt")
    assert len(valid) > 50
    assert [handle for handle in valid if not is_handle(handle)] == []


def test_the_protocol_s_bad_handles_are_none(shared_dir: Path) -> None:
    invalid = vectors(shared_dir, "handle_syntax_invalid.txt")
    assert len(invalid) > 40
    assert [handle for handle in invalid if is_handle(handle)] == []


@pytest.mark.parametrize(
    "domain", ["alt", "arpa", "example", "internal", "invalid", "local", "localhost", "onion", "LOCAL"]
)
def test_reserved_domains_are_never_looked_up(domain: str) -> None:
    assert check_handle(f"alice.{domain}", in_sandbox=True) is HandleRejection.BAD_HANDLE
    assert check_handle(f"{domain}.alice.com", in_sandbox=False) is None


def test_the_domain_for_development_is_looked_up_in_a_sandbox_alone() -> None:
    assert check_handle("alice.test", in_sandbox=True) is None
    assert check_handle("alice.test", in_sandbox=False) is HandleRejection.BAD_HANDLE


@pytest.mark.parametrize("text", ["alice.bsky.social", " @Alice.BSKY.social\n", "@alice.bsky.social\u200b"])
def test_handles_are_compared_in_one_form(text: str) -> None:
    assert normal_handle(text) == "alice.bsky.social"
