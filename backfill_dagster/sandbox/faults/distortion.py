"""The steps in which a repository is written, each open to what is to be wrong with it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backfill_dagster.sandbox.repo import record_block

if TYPE_CHECKING:
    from backfill_dagster.sandbox.mst_writer import Tree
    from backfill_dagster.sandbox.repo import Draft, RepoFile
    from backfill_dagster.sandbox.written import Written


class Distortion:
    """What all faults of an export have in common, and exports that are merely unusual.

    Each method is one step of the writing and by itself changes nothing. What comes after a step is made from
    what the step returns: hashes are right and the commit is signed, unless that is what is wrong.
    """

    __slots__ = ()

    def written(self) -> list[Written]:
        """List the records that the export has besides those of its account."""
        return []

    def draft(self, draft: Draft) -> Draft:
        """Change what the repository is written from."""
        records = {
            f"{found.collection}/{found.rkey}".encode(): record_block(found) for found in self.written()
        }
        return replace(draft, records={**draft.records, **records}) if records else draft

    def tree(self, tree: Tree, draft: Draft) -> Tree:
        """Change the tree's nodes."""
        del draft
        return tree

    def commit(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Change the commit before it is signed."""
        return fields

    def signature(self, signature: bytes, draft: Draft) -> bytes:
        """Change the commit's signature."""
        del draft
        return signature

    def file(self, file: RepoFile, draft: Draft) -> RepoFile:
        """Change which blocks stand in the file, and how."""
        del draft
        return file
