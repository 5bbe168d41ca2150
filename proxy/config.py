"""Settings: the shipped configuration, the user's file, the environment and the command line, in that order.

A value is checked once, here; every other room gets frozen Settings and trusts them. An error message names the place
of a mistake (file and line, variable or option), the key and what was expected. A reload makes new Settings.
"""

import difflib
import functools
import importlib.util
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints
from urllib.parse import unquote

import msgspec
import platformdirs
from msgspec.structs import replace

from .errors import ConfigError
from .logins import credentials_of, netrc_logins, token_of
from .rules.access import Access
from .rules.fleet import Fleet, check_stores
from .rules.mirrors import Mirror, MirrorTable, allowed_host, is_valid_name
from .rules.units import Duration, Size, parse_duration, parse_size
from .toml_text import line_of, text_of

_here = Path(__file__).parent
SHIPPED = next((path for path in (_here / "shipped", _here.parent / "config") if path.is_dir()), Path("config"))
"""The configuration that comes with fetchonce: inside the installed package, or `config/` of a checkout."""

HTTPS = "https://"
"""In front of an address in `listen`: we speak TLS there."""

OURS = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "te", "upgrade", "accept-encoding", "via", "range"}
    | {"if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "proxy-authorization"}
)
"""Request fields that we set ourselves. A mirror's `headers` may not hold them."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file: its fields are the keys, with their defaults."""


class CacheSection(Section, frozen=True):
    dir: str = ""
    max_size: Size = Size(50 * 1000**3)
    min_free: Size = Size(2 * 1000**3)


class FillSection(Section, frozen=True):
    connections: Annotated[int, msgspec.Meta(ge=1, le=32)] = 4
    connect_timeout: Duration = Duration(10)
    read_timeout: Duration = Duration(30)
    checksum_timeout: Duration = Duration(5)
    stale_after: Duration = Duration(5)
    retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 8
    on_abandon: Literal["finish", "pause"] = "finish"


class UpstreamSection(Section, frozen=True):
    proxy: str = "env"
    ca_bundle: str = ""


class AccessSection(Section, frozen=True):
    allow_hosts: tuple[str, ...] = ()
    clients: tuple[str, ...] = ("127.0.0.0/8", "::1")
    token: str = ""
    token_file: str = ""
    hosts: tuple[str, ...] = ()


class ServerSection(Section, frozen=True):
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    header_size: Size = Size(64 * 1024)
    header_timeout: Duration = Duration(10)
    idle_timeout: Duration = Duration(75)
    connections: Annotated[int, msgspec.Meta(ge=1)] = 4096
    stop_timeout: Duration = Duration(10)
    tls_cert: str = ""
    tls_key: str = ""


class FleetSection(Section, frozen=True):
    advertise: str = ""
    parents: tuple[str, ...] = ()
    token: str = ""
    timeout: Duration = Duration(5)


class LeaseSection(Section, frozen=True):
    redis: str = ""
    timeout: Duration = Duration(0.5)


class S3Section(Section, frozen=True):
    url: str = ""
    endpoint: str = ""
    region: str = ""
    timeout: Duration = Duration(0.5)
    access_key_id: str = ""
    secret_access_key: str = ""


class LogSection(Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    access: bool = True


class MirrorSection(Section, frozen=True):
    name: str
    upstreams: tuple[str, ...]
    immutable: tuple[str, ...] = ()
    moving: tuple[str, ...] = ()
    ttl: Duration = Duration(300)
    negative_ttl: Duration = Duration(10)
    stale_if_error: Duration = Duration(30 * 86400)
    checksums: tuple[str, ...] = ()
    verify: Literal["strict", "warn", "off"] = "strict"
    ignore_query: bool = False
    rewrite: tuple[str, ...] = ()
    connections: Annotated[int, msgspec.Meta(ge=0, le=32)] = 0
    forward_authorization: bool = True
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    netrc: bool | str = False


class File(Section, frozen=True):
    """Every key there is. In Settings it holds the values in force, and `mirror` the mirrors of all files."""

    listen: tuple[str, ...] = ("127.0.0.1:8642",)
    shipped_mirrors: bool = True
    cache: CacheSection = CacheSection()
    fill: FillSection = FillSection()
    upstream: UpstreamSection = UpstreamSection()
    access: AccessSection = AccessSection()
    server: ServerSection = ServerSection()
    s3: S3Section = S3Section()
    log: LogSection = LogSection()
    fleet: FleetSection = FleetSection()
    lease: LeaseSection = LeaseSection()
    mirror: tuple[MirrorSection, ...] = ()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the other rooms get."""

    file: File
    mirrors: tuple[Mirror, ...]
    access: Access
    fleet: Fleet
    sources: tuple[str, ...]
    """The files that were read, the main one first."""

    def mirror_table(self) -> MirrorTable:
        """A new table of the mirrors and allowed hosts. Raises ConfigError."""
        return MirrorTable(self.mirrors, self.file.access.allow_hosts)

    @property
    def cache_dir(self) -> Path:
        configured = self.file.cache.dir
        return Path(configured).expanduser() if configured else Path(platformdirs.user_cache_dir("fetchonce"))

    @property
    def listens_for_https(self) -> bool:
        return any(address.startswith(HTTPS) for address in self.file.listen)

    @property
    def tls_files(self) -> tuple[Path, Path]:
        """The PEM files with the server's certificate and its key. They may be the same file."""
        section = self.file.server
        cert = Path(section.tls_cert).expanduser() if section.tls_cert else tls_dir() / TLS_SERVER
        return cert, Path(section.tls_key).expanduser() if section.tls_key else cert


TLS_SERVER = "server.pem"
"""Certificate and key in one file, so that one rename replaces both."""


def tls_dir() -> Path:
    """Where `tls init` writes its files by default."""
    return Path(platformdirs.user_config_dir("fetchonce")) / "tls"


def load(path: str | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from file `path` (else $FETCHONCE_CONFIG, the user's own, the shipped one), environment and `overrides`.

    `overrides` has the shape of the file. Its mirrors and allowed hosts come on top of the file's. Raises ConfigError.
    """
    main = find(path)
    document = _read(main)
    file = _check(main, document)
    for origin, layer in (("environment", _environment(os.environ)), ("command line", overrides or {})):
        if layer:
            document = _merged(document, layer)
            file = _convert(document, functools.partial(_place, origin))

    try:
        for host in file.access.allow_hosts:
            allowed_host(host)
        fleet = Fleet.of(file.fleet.advertise, file.fleet.parents, file.fleet.token)
        token = token_of(file.access.token, file.access.token_file)
        access = Access.of(file.access.clients, (*file.access.hosts, *fleet.names), token)
        check_stores(fleet, file.lease.redis, file.s3.url, file.s3.endpoint)
        for key, is_used, package in (("s3.url", file.s3.url, "obstore"), ("lease.redis", file.lease.redis, "redis")):
            if is_used and not importlib.util.find_spec(package):
                raise ConfigError(f"{key}: needs the package {package}: pip install 'fetchonce[fleet]'")
    except ConfigError as error:
        table, _, key = error.message.partition(":")[0].rpartition(".")
        raise ConfigError(f"{main}:{line_of(main, [table or 'access', key])}: {error.message}") from error
    for key, wrong in (
        ("ca_bundle", file.upstream.ca_bundle and not Path(file.upstream.ca_bundle).is_file() and "no such file"),
        ("proxy", not re.fullmatch(r"(env|https?://[^/\s]+/?|)", file.upstream.proxy) and "expected http://HOST:PORT"),
    ):
        if wrong:
            place = f"{main}:{line_of(main, ['upstream', key])}"
            raise ConfigError(f'{place}: upstream.{key}: "{getattr(file.upstream, key)}": {wrong}')
    sources = [main]
    tables: dict[str, tuple[Path, MirrorSection]] = {}
    directories = [SHIPPED / "mirrors"] if file.shipped_mirrors else []
    if main.parent != SHIPPED:
        directories.append(main.parent / "mirrors")
    for extra in (path for directory in directories for path in sorted(directory.glob("*.toml"))):
        sources.append(extra)
        tables.update({section.name: (extra, section) for section in _check(extra, _read(extra), only="mirror").mirror})
    given = len(overrides.get("mirror", ())) if overrides else 0
    for index, section in enumerate(file.mirror):
        tables[section.name] = (main if index < len(file.mirror) - given else Path("command line"), section)
    return Settings(
        file=replace(file, mirror=tuple(section for _, section in tables.values())),
        access=access,
        fleet=fleet,
        mirrors=tuple(_as_mirror(section, where) for where, section in tables.values()),
        sources=tuple(map(str, sources)),
    )


def find(path: str | None) -> Path:
    """The configuration file to read. Raises ConfigError if it was named and does not exist."""
    named = path or os.environ.get("FETCHONCE_CONFIG")
    if named and not Path(named).exists():
        raise ConfigError(f"{named}: no such configuration file")
    own = Path(platformdirs.user_config_dir("fetchonce")) / "fetchonce.toml"
    return Path(named) if named else own if own.is_file() else SHIPPED / "fetchonce.toml"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text_of(path))
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise ConfigError(f"{path}:{line[1] if line else 1}: not TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _check(path: Path, document: dict[str, Any], only: str | None = None) -> File:
    if only and (extra := sorted(set(document) - {only})):
        line = line_of(path, extra[:1])
        raise ConfigError(f"{path}:{line}: {extra[0]}: only [[{only}]] tables belong in this file")
    return _convert(document, lambda keys, text: f"{path}:{line_of(path, keys)}: {text}")


def _convert(document: dict[str, Any], place: Callable[[list[str | int], str], str]) -> File:
    units = {Duration: parse_duration, Size: parse_size}
    try:
        return msgspec.convert(document, File, strict=False, dec_hook=lambda kind, value: units[kind](value))
    except msgspec.ValidationError as error:
        keys, text = _explain(str(error))
        raise ConfigError(place(keys, f"{_dotted(keys)}: {text}")) from error


def _explain(message: str) -> tuple[list[str | int], str]:
    """The path of keys in msgspec's message, and what was expected."""
    text, _, at = message.partition(" - at `")
    keys: list[str | int] = [int(index) if index else key for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", at)]
    if unknown := re.match(r"Object contains unknown field `(.*)`", text):
        known = _section(keys).__struct_fields__
        close = difflib.get_close_matches(unknown[1], known, 1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return [*keys, unknown[1]], f"unknown key; {hint}"
    if invalid := re.match(r"Invalid enum value '(.*)'", text):
        allowed = get_args(get_type_hints(_section(keys[:-1]))[str(keys[-1])])
        return keys, f"'{invalid[1]}': expected {' or '.join(map(repr, allowed))}"
    if keys == ["mirror"]:
        return keys, "expected tables, each begun by [[mirror]]"
    text = text.replace("Object missing required field", "missing key")
    text = text.replace("`array`, got `str`", 'a list such as ["..."], got `str`').replace("`array`", "a list")
    return keys, text[:1].lower() + text[1:]


def _section(keys: list[str | int]) -> type[Section]:
    """What holds the key at the end of the path `keys`."""
    if keys[:1] == ["mirror"]:
        return MirrorSection
    return type(getattr(File(), str(keys[0]))) if keys else File


def _dotted(keys: list[str | int]) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".") or "configuration"


def _variables() -> Iterator[tuple[str, str, str | None, bool]]:
    """Each variable that sets a key: its name, the section (or key outside of one), the key, whether it is a list."""
    for name, default in ((field, getattr(File(), field)) for field in File.__struct_fields__ if field != "mirror"):
        for key in default.__struct_fields__ if isinstance(default, Section) else (None,):
            variable = "_".join(filter(None, ("FETCHONCE", name, key))).upper()
            yield variable, name, key, isinstance(getattr(default, key) if key else default, tuple)


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The values that FETCHONCE_<SECTION>_<KEY> set. Commas separate the items of a list."""
    values: dict[str, Any] = {}
    for variable, name, key, is_list in _variables():
        if (text := environ.get(variable)) is not None:
            value = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
            if key:
                values.setdefault(name, {})[key] = value
            else:
                values[name] = value
    return values


def misspelt(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that set nothing and look like one that does, each with a hint. Others may be Kubernetes'."""
    known = [variable for variable, *_ in _variables()]
    found = {}
    for name in sorted(name for name in environ if name.startswith("FETCHONCE_") and name not in known):
        same_end = [each for each in known if each.endswith(name.removeprefix("FETCHONCE"))]
        if meant := same_end or difflib.get_close_matches(name, known, 1, 0.85):
            found[name] = f"did you mean {' or '.join(meant)}?"
    return found


def _place(origin: str, keys: list[str | int], text: str) -> str:
    where = "_".join(["FETCHONCE", *map(str, keys)]).upper() if origin == "environment" else origin
    return f"{where}: {text}"


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping):
            result[key] = _merged(result.get(key, {}), value)
        elif key in ("mirror", "allow_hosts"):  # added to the list, not in place of it
            result[key] = [*result.get(key, ()), *value]
        else:
            result[key] = value
    return result


def _as_mirror(section: MirrorSection, where: Path) -> Mirror:
    def wrong(key: str, text: str) -> ConfigError:
        line = ""
        if where.exists():
            names = [table.get("name") for table in _read(where).get("mirror", ())]
            line = f":{line_of(where, ['mirror', names.index(section.name), key])}"
        return ConfigError(f"{where}{line}: mirror[{section.name}].{key}: {text}")

    if not is_valid_name(section.name):
        expected = 'expected letters, digits, "-" and "_", no reserved word'
        raise wrong("name", f'"{section.name}" cannot be a name: {expected}')
    if not section.upstreams:
        raise wrong("upstreams", "expected at least one URL")
    parts = [re.fullmatch(r"(https?://)(?:([^/?#\s]*)@)?([^/?#\s@]+(?:/[^?#\s]*)?)", url) for url in section.upstreams]
    for url, found in zip(section.upstreams, parts, strict=True):
        if not found:
            shown = re.sub(r"//[^/]*@", "//***@", url)
            raise wrong("upstreams", f'"{shown}": expected http(s)://[USER:PASSWORD@]HOST[:PORT]/[PATH/]')
    for key in ("immutable", "moving", "rewrite"):
        for pattern in getattr(section, key):
            try:
                re.compile(pattern)
            except re.error as error:
                raise wrong(key, f'"{pattern}": expected a regular expression: {error}') from error
    for name, value in section.headers.items():
        if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII) or name.lower() in OURS:
            raise wrong("headers", f'"{name}": expected the name of a header that is not for fetchonce to set')
        if not re.fullmatch(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?", value):
            raise wrong("headers", f"{name}: expected printable ASCII characters")
    try:
        login = netrc_logins(None if section.netrc is True else section.netrc) if section.netrc else None
    except ValueError as error:
        raise wrong("netrc", str(error)) from error
    urls, credentials = [], []
    for found in filter(None, parts):
        scheme, userinfo, rest = found.groups()
        urls.append(f"{scheme}{rest}" if rest.endswith("/") else f"{scheme}{rest}/")
        by_url = userinfo and unquote(userinfo if ":" in userinfo else f"{userinfo}:")
        by_netrc = login(re.split("[:/]", rest)[0]) if login else None
        credentials.append(credentials_of(section.headers, by_url or by_netrc))
    of_mirror = {key: getattr(section, key) for key in section.__struct_fields__ if key in Mirror.__dataclass_fields__}
    logins = tuple(credentials) if any(credentials) else ()
    return Mirror(**(of_mirror | {"upstreams": tuple(urls), "credentials": logins}))
