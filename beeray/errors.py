"""Errors that a user can act on: one clear line, exit code 2.

Every message names the field or file, the value found, the rule and the remedy. Anything else that
escapes a verb is a bug of ours and keeps its traceback.
"""


class BeerayError(ValueError):
    """Something the user can put right; its text is the one line that they read."""


class ConfigError(BeerayError):
    """A configuration key or value that is not valid."""


class DataError(BeerayError):
    """An input table that breaks the data contract (missing column, empty text, nothing left …)."""


class StoreError(BeerayError):
    """A prepared store that is missing, half-written, from another version, or leaks held-out data."""


class EmbeddingsError(BeerayError):
    """Published embeddings that are missing, damaged, or from another version."""


class EncoderError(BeerayError):
    """A folder or name that holds no sentence transformer."""


class ClusterError(BeerayError):
    """The cluster cannot place what the config asks for."""


class RunError(BeerayError):
    """A run folder that does not fit the command (changed config under the same name, no model …)."""


class DealtOtherwiseError(RunError):
    """What was dealt of a catalog is not what was counted, so it must be dealt again."""


class DivergedError(RunError):
    """Training whose loss is no longer finite; every rank raises it at the same step."""
