import subprocess
from importlib.metadata import version
from pathlib import Path

from backfill_dagster.monitoring.code_version import code_version, commit_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def checkout(folder: Path, head: str) -> Path:
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text(f"{head}\n")
    return folder


def test_it_is_the_release_and_the_commit() -> None:
    assert code_version().startswith(version("backfill-dagster"))


def test_the_commit_is_found_wherever_git_keeps_it(tmp_path: Path) -> None:
    loose = checkout(tmp_path / "loose", "ref: refs/heads/a/b")
    (loose / ".git/refs/heads/a").mkdir(parents=True)
    (loose / ".git/refs/heads/a/b").write_text(f"{COMMIT}\n")
    packed = checkout(tmp_path / "packed", "ref: refs/heads/main")
    (packed / ".git/packed-refs").write_text(
        f"# pack-refs\n{'f' * 40} refs/heads/other\n{COMMIT} refs/heads/main\n"
    )
    detached = checkout(tmp_path / "detached", COMMIT)
    assert commit_of(loose) == commit_of(packed) == commit_of(detached) == COMMIT


def test_a_worktree_has_its_own(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "-b", "main", str(tmp_path / "repo")], check=True)
    git = ["git", "-C", str(tmp_path / "repo"), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    subprocess.run([*git, "worktree", "add", "-q", "-b", "other", str(tmp_path / "tree")], check=True)
    told = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert commit_of(tmp_path / "tree") == commit_of(tmp_path / "repo") == told


def test_what_is_no_checkout_has_none(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    assert commit_of(checkout(tmp_path / "unborn", "ref: refs/heads/main")) is None
    assert commit_of(checkout(tmp_path / "odd", "nonsense")) is None
