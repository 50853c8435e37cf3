"""The manifest of a publication: what is in it, what made it, and what proves that it is whole.

Schema version 1. `_manifest.json` is written when every file of its folder is whole, so a folder without
one is not a publication.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any

from beeray.data.embedding_format import EmbeddingFormat
from beeray.errors import EmbeddingsError

MANIFEST = "_manifest.json"
INSIDE = r"([\w-][\w.-]*/)*[\w-][\w.-]*"
SCHEMA_VERSION = 1


def part_name(number: int) -> str:
    """Name of the file of a range of id hashes."""
    return f"part-{number:05d}.parquet"


@dataclass(frozen=True)
class PublishedFile:
    """One parquet file of a publication.

    Attributes:
        path: relative to the manifest.
        rows: its items.
        bytes: its size.
        sha256: hex digest of its bytes.
    """

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `_manifest.json` says.

    Attributes:
        version: name of the publication; later ones sort after earlier ones.
        created: when, ISO 8601, UTC.
        rows: items, over all files.
        item_id_type: Arrow type of `item_id`.
        format: dtype, dimensions, normalisation and calibration of the vectors.
        files: one a range of id hashes, in order; ranges without items have a file of no rows.
        model: name and fingerprint of the encoder.
        encoding: everything that decides an item's vector; vectors are reused only while it stays the same.
        encoding_digest: digest of `encoding` and the model's fingerprint.
        config_digest: digest of the whole config.
        catalog: where the catalog was read, and a fingerprint of it.
        counts: rows of the catalog by what became of them (`read`, `encoded`, `reused`, `new`, `changed`,
            `repeated`, `errors`), and `deleted`, rows of the previous publication that are gone.
        errors: refused rows by reason.
        error_files: where they are, relative to the manifest.
        previous: version of the publication before; None for the first.
        full_run: why nothing was reused; empty when reuse was possible.
        drift: how far vectors moved since the previous publication.
        packages: versions of the libraries that computed the vectors.
        layout: what decides which rows are refused, what their ids are and how files are cut, not vectors.
    """

    version: str
    created: str
    rows: int
    item_id_type: str
    format: EmbeddingFormat
    files: list[PublishedFile]
    model: dict[str, str]
    encoding: dict[str, Any]
    encoding_digest: str
    config_digest: str
    catalog: dict[str, str]
    counts: dict[str, int]
    errors: dict[str, int] = field(default_factory=dict)
    error_files: list[PublishedFile] = field(default_factory=list)
    previous: str | None = None
    full_run: list[str] = field(default_factory=list)
    drift: dict[str, Any] | None = None
    packages: dict[str, str] = field(default_factory=dict)
    layout: dict[str, int] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> bytes:
        """The manifest as its file holds it."""
        return json.dumps(dataclasses.asdict(self), indent=2).encode()

    @classmethod
    def from_json(cls, data: bytes, path: str) -> Manifest:
        """Read a manifest.

        Args:
            path: named in errors.

        Raises:
            EmbeddingsError: damaged, or written by a newer beeray.
        """
        try:
            record = json.loads(data)
            version = int(record["schema_version"])
            if version > SCHEMA_VERSION:
                raise EmbeddingsError(
                    f"{path}: schema_version is {version}, this beeray reads up to {SCHEMA_VERSION}; update beeray"
                )
            values = _known_fields(cls, record)
            values["format"] = EmbeddingFormat(**_known_fields(EmbeddingFormat, values["format"]))
            for name, files in (("files", values["files"]), ("error_files", values.get("error_files", []))):
                values[name] = [PublishedFile(**_known_fields(PublishedFile, one)) for one in files]
                outside = [one.path for one in values[name] if not re.fullmatch(INSIDE, one.path)]
                if outside:
                    raise ValueError(f"it lists {outside[0]!r}, which is no file of its folder")
            return cls(**values)
        except EmbeddingsError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EmbeddingsError(
                f"{path}: the manifest is damaged ({error}); publish again, or open an earlier version"
            ) from error


def _known_fields(of: type, record: dict[str, Any]) -> dict[str, Any]:
    """What this beeray knows of a record: a later one of the same schema version may have added fields."""
    names = {one.name for one in dataclasses.fields(of)}
    return {key: value for key, value in record.items() if key in names}
