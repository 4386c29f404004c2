"""Every place in the project's source that changes the file system, found by reading the source."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import backfill_dagster

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Methods and functions that write, move or delete; by name, since the source does not tell types.
CHANGING = frozenset(
    {
        *("duplicate", "hardlink_to"),
        *(
            "write",
            "write_parts",
            "publish",
            "remove",
            "remove_empty_folders",
            "scratch",
            "sweep_scratch",
            "shared",
        ),
        *("write_parquet", "write_table", "ParquetWriter", "RowGroupWriter", "write_bytes", "write_text"),
        *("replace", "rename", "unlink", "rmtree", "rmdir", "mkdir", "mkdtemp"),
        *("fsync", "ftruncate", "truncate", "pwrite", "sink_parquet", "write_csv", "dump", "touch"),
        *("download_file", "TemporaryDirectory"),
    }
)
# What has such a name and changes no file itself, by what the call has in it.
OTHERWISE = (
    *("self._waiting.remove(", "self._watchers.remove(", "remove()", "texts.replace(", ".rename({"),
    *("dt.truncate(", "pl.col('outcome').replace("),
    # Of a lease and of the storage: what they call in turn is a place of its own.
    *("held.write(", "self._copy.write(", "self.write(", "self.scratch()", "self.publish("),
    "self._store.shared(",
    # An object of S3, into lent scratch and under no name that anything looks for: what is left of it is swept.
    *("client.download_file(", "TemporaryDirectory(dir=access.scratch)"),
    # Into lent scratch; and values of a column, not files.
    *("writers[bucket].write_table(", "local.open('wb')", "file.truncate(size)", "pl.element().replace("),
    # Of the terminal.
    *("os.write(kept_stderr(), line)", "sys.stderr.write("),
    # What finds out why a scratch file could not be written, and writes nothing that anybody reads.
    *("scratch.open('ab')", "file.write(bytes(_PROBE_BYTES))"),
    # To a consumer's folder on another disk; `handoff/test_hand_over.py` kills it at each step.
    *(
        "beside.folder.mkdir(",
        "self._beside.",
        "near.sweep_scratch()",
        "handoff/outbox.py: self._storage.remove(batch.key)",
    ),
    # The scratch of what is put into S3, where a put is one step.
    "stores/s3.py: made.mkdir(",
    # What a job does at its beginning; a collection and a purge do the same at theirs.
    "storage.sweep_scratch()",
)
PACKAGE = Path(backfill_dagster.__file__).parent


@dataclass(frozen=True, slots=True)
class CallSite:
    """A call in the source: its file below the package, and its first and last line."""

    file: str
    first: int
    last: int
    text: str

    def is_among(self, places: Iterable[tuple[str, int]]) -> bool:
        """Say whether one of these files and lines is in the call."""
        return any(file == self.file and self.first <= line <= self.last for file, line in places)

    def __str__(self) -> str:
        return f"{self.file}:{self.first}: {self.text}"


def changing_calls() -> list[CallSite]:
    """Return all calls of the product's source that change the file system.

    The sandbox is no part of it, nor is what writes the documentation, nor the API: it stores configs alone, and
    `api/test_killed_store.py` kills it at that.
    """
    return [
        site
        for path in sorted(PACKAGE.rglob("*.py"))
        if not {"sandbox", "reference", "api"} & set(path.relative_to(PACKAGE).parts)
        for site in _calls(path)
    ]


def _calls(path: Path) -> Iterator[CallSite]:
    file = path.relative_to(PACKAGE).as_posix()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        text = ast.unparse(node)
        named = f"{file}: {text}"
        if _changes_files(node, text) and not any(part in named for part in OTHERWISE):
            yield CallSite(file, node.lineno, node.end_lineno or node.lineno, text.partition("\n")[0][:100])


def _changes_files(node: ast.Call, text: str) -> bool:
    name = _name(node.func)
    if name == "open":
        modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        return "O_CREAT" in text or any(set(str(mode)) & set("wax+") for mode in modes)
    if name == "replace":
        # `str.replace` has two arguments, `datetime.replace` and `dataclasses.replace` have named ones.
        return len(node.args) == 1 and not node.keywords
    return name in CHANGING


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
