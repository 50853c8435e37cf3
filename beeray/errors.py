"""Errors that a user can act on: one clear line, exit code 2.

Every message names the field or file, the value found, the rule and the remedy. Anything else that
escapes a verb is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class BeerayError(ValueError):
    """Something the user can put right; its text is the one line that they read.

    Names of columns, files and ids come from anywhere: line breaks and all else that cannot be printed is shown as
    Python's `repr` shows it.
    """

    def __init__(self, message: object = "", *more: object) -> None:
        said = str(message)
        if not said.isprintable():
            said = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in said)
        super().__init__(said, *more)


class ConfigError(BeerayError):
    """A configuration key or value that is not valid."""


class DataError(BeerayError):
    """An input table that breaks the data contract (missing column, empty text, nothing left …)."""


class UnansweredError(DataError):
    """A store that does not answer: nothing is wrong with what it holds, and it may answer later."""


class RowError(DataError):
    """A row of a table that breaks the data contract.

    Attributes:
        row: its number, as the table gives it; whoever has the table can say where that is (`Table.place_of`).
    """

    def __init__(self, message: object = "", row: int = 0) -> None:
        super().__init__(message)
        self.row = row


class StoreError(BeerayError):
    """A prepared store that is missing, half-written, from another version, or leaks held-out data."""


class OlderStoreError(StoreError):
    """A store that an earlier version wrote: whoever has its sources prepares it anew."""


class EmbeddingsError(BeerayError):
    """Published embeddings that are missing, damaged, or from another version."""


class EncoderError(BeerayError):
    """A folder or name that holds no sentence transformer."""


class NotFiniteError(EncoderError):
    """Embeddings that are no finite numbers; every rank raises it, since all have the same ones.

    Attributes:
        what: whose, how many and which items, without a remedy.
    """

    def __init__(self, what: object = "", remedy: str = "") -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what = str(what)


class ClusterError(BeerayError):
    """The cluster cannot place what the config asks for."""


class RunError(BeerayError):
    """A run folder that does not fit the command (changed config under the same name, no model …)."""


class LostWorkersError(RunError):
    """Nodes or processes that worked for a command are gone; what they had finished is kept."""


class DealtOtherwiseError(RunError):
    """What was dealt of a catalog is not what was counted, so it must be dealt again."""


class DivergedError(RunError):
    """Training whose loss is no longer finite; every rank raises it at the same step."""
