"""What a study's storage needs of the place where its files are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A file as a listing tells of it: its key, its size in bytes, and what is another whenever it is written."""

    key: str
    bytes: int
    version: str


class Store(Protocol):
    """Files by key, relative paths with `/` between their parts: each is there whole or not at all.

    All raise StorageError, which names the file and says what to do.
    """

    def where(self, key: str) -> str:
        """Return the file's address, for people and for Polars."""

    @property
    def polars_options(self) -> dict[str, str] | None:
        """What Polars must be told to reach the files; None for local ones."""

    def find(self, key: str) -> StoredObject | None:
        """Return what is known of one file; None if it is not there."""

    def files(self, prefix: str) -> list[StoredObject]:
        """Return all files below a prefix, sorted by key; by a call for a thousand files, not for each."""

    def everything(self, leaving_out: Container[str]) -> list[StoredObject]:
        """Return all that there is, sorted by key, also what is no file of ours; but for these names at the top."""

    def folders(self, prefix: str) -> list[str]:
        """Return the sorted names of what stands right below a prefix and has files below it."""

    def stamp(self, keys: Sequence[str], folders: Sequence[str]) -> list[tuple[str, str | None]]:
        """Return what is another whenever one of these files is written, or a file is put into one of these folders.

        Folders are given as globs of one level each.
        """

    def open(self, key: str) -> BinaryIO:
        """Open a file for reading at any place; raises FileNotFoundError."""

    def local(self, key: str, scratch: Path) -> Path:
        """Return a local file with the content: the file itself, or a copy in a scratch folder."""

    def put(self, local: Path, key: str) -> None:
        """Publish a finished local file in one step, replacing what was there; the local file may be gone then."""

    def duplicate(self, key: str, as_key: str, scratch: Path) -> None:
        """Store a file under a second key too, in one step: without reading it here, where the place can do so.

        What is written under either key later leaves the other as it is. Raises FileNotFoundError.
        """

    def remove(self, key: str) -> None:
        """Delete one file, if it is there."""

    def forget_removed(self) -> None:
        """Delete what the place keeps by itself of files that were removed, replaced, or never finished."""

    def remove_empty_folders(self, prefix: str) -> None:
        """Delete folders below a prefix that hold nothing, where there is such a thing."""

    @property
    def scratch_parent(self) -> Path:
        """The local folder in which files are made before they are published."""

    def make_scratch_parent(self) -> Path:
        """Make that folder, if there is none."""

    @property
    def keeps_on_disk(self) -> bool:
        """Whether what is stored lies on the same disk as what is being made."""

    def free_bytes(self) -> int | None:
        """Return how much may be written before the disk of the scratch counts as full; None if it does not say."""

    def shared(self, prefix: str) -> AbstractContextManager[None]:
        """Hold a prefix while files are published below it that belong together; others may do the same."""

    def sweeping(self, prefix: str) -> AbstractContextManager[None]:
        """Hold a prefix while what was left below it is deleted."""

    def settled(self, files: Iterable[StoredObject]) -> Iterator[StoredObject]:
        """Of files found while `sweeping`, yield those of which nobody can be about to make use."""

    def alone(self, prefix: str) -> AbstractContextManager[None]:
        """Hold a prefix while files below it are read and written again, and nobody else does so."""

    def attempt(self, prefix: str, patience: float) -> AbstractContextManager[bool]:
        """Hold a prefix alone, if nobody else does so for longer than `patience` seconds; gives whether it is held."""
