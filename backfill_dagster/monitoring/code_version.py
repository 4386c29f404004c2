"""Which code it is that runs: the package's version, and the commit if it runs from a checkout."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_DISTRIBUTION = "backfill-dagster"
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_REFERENCE = "ref: "


@cache
def code_version() -> str:
    """Return `<version>`, or `<version>+git.<first 12 digits of the commit>` in a checkout."""
    try:
        released = version(_DISTRIBUTION)
    except PackageNotFoundError:
        released = "unknown"
    commit = commit_of(Path(__file__).resolve().parents[2])
    return released if commit is None else f"{released}+git.{commit[:12]}"


def commit_of(checkout: Path) -> str | None:
    """Return the commit that a folder is checked out at; None if it is no checkout.

    Reads what Git has written rather than asking Git, which need not be installed where a study runs.
    """
    try:
        folder = _git_folder(checkout / ".git")
        head = (folder / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith(_REFERENCE):
            return head if _COMMIT.fullmatch(head) else None
        name = head.removeprefix(_REFERENCE)
        return _reference(folder, name)
    except (OSError, UnicodeDecodeError):
        return None


def _git_folder(path: Path) -> Path:
    """Return the folder with Git's files, which a worktree names in a file."""
    if path.is_dir():
        return path
    named = path.read_text(encoding="utf-8").strip().removeprefix("gitdir: ")
    return path.parent / named


def _reference(folder: Path, name: str) -> str | None:
    common = folder / "commondir"
    folders = [folder, folder / common.read_text(encoding="utf-8").strip()] if common.is_file() else [folder]
    for place in folders:
        loose = place / name
        if loose.is_file():
            commit = loose.read_text(encoding="utf-8").strip()
            return commit if _COMMIT.fullmatch(commit) else None
        packed = place / "packed-refs"
        if packed.is_file():
            for line in packed.read_text(encoding="utf-8").splitlines():
                commit, _, reference = line.partition(" ")
                if reference == name and _COMMIT.fullmatch(commit):
                    return commit
    return None
