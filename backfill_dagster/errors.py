"""The closed set of errors that this package raises on purpose.

Each says what to do next in its message. Anything else that escapes is a defect.
"""


class BackfillError(Exception):
    """Base of every error below: catch it to catch them all."""


class ConfigError(BackfillError):
    """A backfill's YAML says something that cannot be right; the message names file, field and value."""


class SourceError(BackfillError):
    """The source of DIDs cannot be read, or holds nothing to collect."""


class DirectoryUnreachableError(BackfillError):
    """The PLC directory answers nobody, so that nothing can be said about any account."""


class StorageError(BackfillError):
    """Stored files cannot be read or written, or do not hold what they must."""


class ReconciliationError(BackfillError):
    """Counts that must agree do not: a defect of this package, never of the data."""
