"""`python -m backfill_dagster.reference`: write the reference into docs/reference, or check that it is as written."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from backfill_dagster.reference.pages import pages

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages; with `--check`, change nothing and return 1 if one is not what the code says."""
    parser = argparse.ArgumentParser(prog="python -m backfill_dagster.reference", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a page is out of date"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the folder of the pages")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    made = pages()
    stale = [name for name, text in made.items() if not _is_there(folder / name, text)]
    stale += [path.name for path in sorted(folder.glob("*.md")) if path.name not in made]
    if options.check:
        for name in stale:
            sys.stderr.write(f"{folder / name} is out of date: run python -m backfill_dagster.reference\n")
        return 1 if stale else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in made:
            (folder / name).write_text(made[name], encoding="utf-8")
        else:
            (folder / name).unlink()
    return 0


def _is_there(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
