"""Logins of the configuration: those that mirrors want, and the token that clients show us."""

import netrc
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path

from .errors import ConfigError
from .rules.entry import Headers


def token_of(token: str, path: str) -> str:
    """The token that clients must show: what the file at `path` holds, or `token` where no file is named.

    Raises ConfigError.
    """
    if not path:
        return token
    try:
        token = Path(path).expanduser().read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"access.token_file: cannot be read: {error}") from error
    if not token:
        raise ConfigError(f"access.token_file: expected a token in {path}, and it is empty")
    return token


def netrc_logins(path: str | None) -> Callable[[str], str | None]:
    """A function from host to USER:PASSWORD, by the netrc file at `path` (None: ~/.netrc). Raises ValueError."""
    shown = path or "~/.netrc"
    try:
        known = netrc.netrc(Path(path).expanduser() if path else None)
    except netrc.NetrcParseError as error:
        # The text of the error may hold the password.
        raise ValueError(f"{shown}:{error.lineno or 1}: expected a netrc file that only you can read") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{shown}: cannot be read: {error}") from error

    def login(host: str) -> str | None:
        found = known.authenticators(host)
        return f"{found[0]}:{found[2]}" if found else None

    return login


def credentials_of(headers: Mapping[str, str], login: str | None) -> Headers:
    """The fields to send to an upstream: `headers`, and `login` (USER:PASSWORD) unless they hold a login already."""
    fields = tuple(headers.items())
    if login is None or any(name.lower() == "authorization" for name in headers):
        return fields
    return (*fields, ("Authorization", f"Basic {b64encode(login.encode()).decode()}"))
