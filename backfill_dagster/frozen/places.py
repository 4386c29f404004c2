"""Where frozen builds lie, and what they may be called."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backfill_dagster.storage import StudyStorage

FROZEN_FOLDER = "frozen"
# A label is the name of a folder, and of nothing outside of it.
LABEL_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
# No label has a dot: no folder of another build is called so.
_UNFINISHED = ".unfinished"


def frozen_folder(label: str) -> str:
    """Return the folder of a frozen build."""
    return f"{FROZEN_FOLDER}/{label}"


def unfinished_key(label: str) -> str:
    """Return the mark that stands beside the folder for as long as the build is being frozen."""
    return f"{frozen_folder(label)}{_UNFINISHED}"


def frozen_labels(storage: StudyStorage) -> list[str]:
    """Return the sorted names of the folders of frozen builds, whole or not."""
    return storage.folders(FROZEN_FOLDER)


def unfinished_labels(storage: StudyStorage) -> list[str]:
    """Return the sorted labels under which a build was begun to be frozen and not finished, or is being frozen now."""
    marks = storage.keys(FROZEN_FOLDER, f"*{_UNFINISHED}")
    names = [key.removeprefix(f"{FROZEN_FOLDER}/").removesuffix(_UNFINISHED) for key in marks]
    return [name for name in names if LABEL_PATTERN.fullmatch(name)]
