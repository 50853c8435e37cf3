"""How object stores are reached. It says where data is, so it decides no result."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from beeray.config.section import Section


class StorageConfig(Section):
    """How `s3://` paths are reached, wherever they stand in the config.

    Credentials never stand here. They come from the environment (`AWS_ACCESS_KEY_ID` …), from `profile`,
    or from the role of the machine. Workers of a Ray that is started here have the environment of the
    command; those of a cluster that is joined have their node's own.
    """

    endpoint_url: str | None = None
    """Any S3-compatible server, e.g. `http://minio.local:9000`; AWS unless set."""
    profile: str | None = Field(None, min_length=1)
    """Profile of the AWS config files; every node needs it."""
    anonymous: bool = False
    """Send no credentials: public buckets."""
    region: str | None = Field(None, min_length=1)
    """Region of the buckets; what the environment or the AWS config files say unless set."""

    @field_validator("endpoint_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        rule = "storage.endpoint_url must be http://host[:port] or https://host[:port]"
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError(f"{rule}; it cannot be read as an address") from None
        if "@" in parts.netloc or parts.query or parts.fragment:  # may be a secret: the value is not shown
            raise ValueError(
                f"{rule}: it holds a user, a password or a query; credentials come from the environment, "
                "storage.profile or the machine's role"
            )
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError(f"{rule}: it is {value!r}")
        return value

    @model_validator(mode="after")
    def _has_one_identity(self) -> StorageConfig:
        if self.anonymous and self.profile:
            raise ValueError("storage.anonymous and storage.profile exclude each other; leave one out")
        return self
