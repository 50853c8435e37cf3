"""Credentials inside URIs: refused in a config, and hidden wherever a URI is shown or kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
DATABASES = ("postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle")
"""Of these a URI's password ends at the last `@`, whatever is in it."""
_HOST_AND_PORT = re.compile(r"^(\[.*\]|[^:]*)(:\d*)?$")
_SETTING = re.compile(r"(?:^|(?<=[?&;#]))\s*([\w.%-]+)\s*=([^&;#]*)")
_PASSWORD_AT_END = re.compile(r"(pass(wor|w)?d|pwd)$", re.IGNORECASE)
_SECRET_NAMES = re.compile(
    r"(^|_)(sig|signature|secrets?|tokens?|credentials?|passphrase"
    r"|(access|account|api|secret|shared|private)_?key|(access|auth|client|sas|id)_?(token|secret))(_|$)"
)
"""Whole words of a setting's name, where `X-Amz-Signature` has become `x_amz_signature`, `accessKey` `access_key`."""
_REMEDIES = {"tracking.uri": "set MLFLOW_TRACKING_URI in the environment in its place"}


def holds_password(uri: str) -> bool:
    """Whether a URI holds a password: `user:password@`, a token as the user of http(s), or a secret in its query.

    Such are `?password=`, `?sig=`, `?X-Amz-Signature=`, `?access_token=`, `?accountKey=`; `?sigma=` is none.

    A user alone (`hdfs://me@host`, `abfs://container@account`) is none.
    """
    scheme, _, rest = _split(uri)
    user = _user_info(uri)
    return ":" in user or (bool(user) and scheme in ("http", "https")) or bool(_query_secrets(rest))


def redact_uri(uri: str) -> str:
    """A URI without its user, password and, where that holds a secret, its query."""
    _, start, rest = _split(uri)
    user = _user_info(uri)
    if user:
        rest = f"{HIDDEN}@{rest.rpartition('@')[2] if ':' in user else rest[len(user) + 1 :]}"
    if _query_secrets(rest):
        rest = f"{rest.partition('?')[0]}?{HIDDEN}"
    return f"{start}{rest}"


def shown_uri(uri: str) -> str:
    """A URI as errors show it: whole (the container of `abfs://container@account` too) unless it holds a secret."""
    return redact_uri(uri) if holds_password(uri) else uri


def redact_text(text: str, uri: str) -> str:
    """What somebody said about a URI, without the secrets of that URI."""
    text = text.replace(uri, redact_uri(uri))
    user = _user_info(uri)
    password = user.partition(":")[2]
    in_query = _query_secrets(_split(uri)[2])
    for secret in (user, unquote(user), password, unquote(password), *in_query):
        if len(secret) > 3:  # shorter ones are part of any word
            text = text.replace(secret, HIDDEN)
    return re.sub(r"(?<=://)[^\s/'\"]*@", f"{HIDDEN}@", text)


def refuse_passwords(value: Any, key: str = "") -> None:
    """Refuse a config, as it was read and before anything else may quote it, that holds a password.

    Raises:
        ValueError: names the dotted key, never the value.
    """
    if isinstance(value, Mapping):
        for name, below in value.items():
            refuse_passwords(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for one in value:
            refuse_passwords(one, key)
    elif isinstance(value, str) and holds_password(value):
        remedy = _REMEDIES.get(key, "credentials come from the environment")
        raise ValueError(f"{key} holds a user and a password or token, which a config must not; {remedy}")


def _split(uri: str) -> tuple[str, str, str]:
    """Scheme, everything up to what comes after `://`, and that; without a scheme, all is in the middle."""
    scheme, colon, rest = uri.partition("://")
    return scheme.strip().lower(), f"{scheme}{colon}", rest


def _user_info(uri: str) -> str:
    scheme, _, rest = _split(uri)
    if rest.startswith("/"):  # no host: a file
        return ""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return authority.rpartition("@")[0]
    is_host = _HOST_AND_PORT.match(authority) and not (scheme.partition("+")[0] in DATABASES and ":" in authority)
    return "" if is_host or "@" not in rest else rest.rpartition("@")[0]  # a password with / ? or # in it


def _query_secrets(rest: str) -> list[str]:
    """Values of the secret settings in a URI's query, as they stand there and without percent signs."""
    query = rest.partition("?")[2]
    settings = [match.groups() for text in (query, unquote(query)) for match in _SETTING.finditer(text)]
    values = [value for name, value in settings if _is_secret(unquote(name))]
    nested = [match for _, value in settings for match in _SETTING.findall(unquote(value))]  # odbc_connect=PWD%3D…
    return [*values, *(value for name, value in nested if _is_secret(name))]


def _is_secret(name: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+", "_", name).lower()
    return bool(_PASSWORD_AT_END.search(name) or _SECRET_NAMES.search(words))
