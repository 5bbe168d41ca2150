"""Vagrant: a hook in the Vagrantfile of its home directory, by which boxes come through fetchonce.

The hook changes the address of a download just before it begins. So all that Vagrant keeps of a box is upstream's: its
name, version, checksum, and the URL to ask for updates. A download that broke off goes on, with or without fetchonce.
"""

import json
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import Template

from ..rules.mirrors import Mirror, normal_host
from . import blocks

ABOUT, UNDO = "boxes come through it", "fetchonce vagrant remove"
DIRECTORY = "# (there was no directory)"
_END = re.compile(r"^__END__\r?$", re.MULTILINE)
"""Where a Ruby file ends, whatever follows."""
_ADDRESS = re.compile(r'^    def address\n      "(.*)"$', re.MULTILINE)
_PLACE = re.compile(r'^        ("[^\n]*"),$', re.MULTILINE)

_HOOK = Template(r"""# made by: $command
class Fetchonce < Vagrant.plugin("2")
  name "fetchonce"
  description "boxes come through fetchonce"

  class Through
    def initialize(app, env)
      @app = app
    end

    def call(env)
      download = env[:downloader]
      scheme, host, path = download.source.to_s.match(%r{\A(https?)://([^/]+)(/.*)\z}i)&.captures
      if host && known?(host.downcase, path)
        ours = "#{address}/#{scheme.downcase}/#{host.downcase}#{path}"
        lead(download, ours) if gives?(download, ours)
      end
      @app.call(env)
    end

    private

    def address
      "$address"
    end

    # Whether Vagrant asks by itself for what fetchonce does not give.
    def falls_back?
      $falls_back
    end

    def places
      [
$places
      ]
    end

    def known?(host, path)
      places.any? { |each| each.start_with?("*") ? host.end_with?(each[1..-1]) : (host + path).start_with?(each) }
    end

    # A login is upstream's. What fetchonce gets without it is for everybody, and the rest Vagrant asks for by itself.
    def gives?(download, ours)
      return true unless falls_back?
      return false if %i[@auth @client_cert].any? { |each| download.instance_variable_get(each) }
      login?(download) ? answers?(ours, 30) : answers?("#{address}/-/healthz", 2)
    end

    def login?(download)
      Array(download.headers).any? { |each| each =~ /\Aauthorization:/i }
    end

    def answers?(url, seconds)
      require "net/http"
      uri = URI.parse(url)
      request = Net::HTTP::Head.new(uri)
      request["Cache-Control"] = "no-transform"
      unescaped = [uri.user, uri.password].map { |each| URI::RFC2396_Parser.new.unescape(each.to_s) }
      request.basic_auth(*unescaped) if uri.user
      http = Net::HTTP.new(uri.hostname, uri.port, nil)
      http.use_ssl = uri.scheme == "https"
      http.open_timeout = 0.5
      http.read_timeout = seconds
      http.request(request).is_a?(Net::HTTPSuccess)
    rescue StandardError # it does not run, or is none
      false
    end

    def lead(download, ours)
      options = download.instance_variable_get(:@extra_download_options).to_a
      download.instance_variable_set(:@extra_download_options, options + ["--noproxy", URI.parse(address).hostname])
      download.headers = Array(download.headers).reject { |each| each =~ /\Aauthorization:/i }
      download.headers << "Cache-Control: no-transform" # metadata with upstream's URLs: they come here too, one by one
      download.source = ours
    end
  end

  action_hook("fetchonce", :authenticate_box_downloader) { |hook| hook.append(Through) }
end
""")


@dataclass(frozen=True, slots=True)
class Hook:
    """What a block says."""

    address: str
    """http(s)://[USER:TOKEN@]HOST[:PORT]"""
    places: tuple[str, ...]
    """HOST/PATH/ of which each download comes through us, or *.DOMAIN."""
    falls_back: bool = True
    """Whether Vagrant asks by itself where fetchonce does not run."""
    is_given: bool = False
    """Whether the address was given by --proxy: it may be another machine's."""

    @property
    def command(self) -> str:
        """What makes this hook."""
        proxy = f" --proxy {shlex.quote(self.address)}" if self.is_given else ""
        return f"fetchonce vagrant install{proxy}{'' if self.falls_back else ' --no-fallback'}"

    def text(self) -> str:
        places = "\n".join(f"        {json.dumps(each)}," for each in self.places)
        falls_back = "true" if self.falls_back else "false"
        return _HOOK.substitute(command=self.command, address=self.address, falls_back=falls_back, places=places)


def home(directory: str | None) -> Path:
    """Vagrant's home directory; `directory` is what the user says."""
    return Path(directory or os.environ.get("VAGRANT_HOME") or "~/.vagrant.d").expanduser().absolute()


def vagrantfile(directory: Path) -> Path:
    """The file in its home that Vagrant reads: of two, the first."""
    names = ("Vagrantfile", "vagrantfile")
    return next((directory / name for name in names if (directory / name).is_file()), directory / names[0])


def places(mirrors: Iterable[Mirror], allow_hosts: Iterable[str]) -> tuple[str, ...]:
    """Where each URL of `Hook.places` may be: below these, and nowhere else, fetchonce has what upstream has."""
    found = set()
    for url in (url for mirror in mirrors for url in mirror.upstreams):
        scheme, _, rest = url.partition("://")
        authority, slash, path = rest.partition("/")
        found.add(normal_host(authority, scheme) + slash + path)
    for host in allow_hosts:
        found.add(host if host.startswith("*") else f"{host}/")
    return tuple(sorted(each for each in found if not any(each != other and each.startswith(other) for other in found)))


def installed(text: str | None) -> Hook | None:
    """The hook in a Vagrantfile; None if there is none, or none that this version wrote."""
    body = blocks.body_of(text or "")
    if body is None or not (address := _ADDRESS.search(body)):
        return None
    command = next(iter(body.splitlines()), "")
    try:
        found = tuple(json.loads(each) for each in _PLACE.findall(body))
    except ValueError:  # somebody has edited it
        return None
    return Hook(address[1], found, "--no-fallback" not in command, "--proxy" in command)


def with_hook(text: str | None, hook: Hook, *, is_new_directory: bool) -> str:
    """The Vagrantfile with the hook; `text` is None if there is none yet."""
    is_new_directory = is_new_directory or DIRECTORY in (blocks.body_of(text or "") or "")
    body = hook.text() + (f"{DIRECTORY}\n" if is_new_directory else "")
    if text is None or not (end := _END.search(text)):
        return blocks.with_block(text, body, ABOUT, UNDO)
    return blocks.with_block(text[: end.start()], body, ABOUT, UNDO) + text[end.start() :]


def write(path: Path, text: str) -> None:
    """Write the Vagrantfile, in a directory that may not be there yet. Raises OSError."""
    path.parent.mkdir(exist_ok=True)
    hook = installed(text)
    blocks.write(path, text, 0o600 if hook and "@" in hook.address else 0o644)  # a token is nobody else's


def remove(path: Path, text: str) -> None:
    """Write the Vagrantfile as it was before; file and directory go if they were made for the hook. Raises OSError."""
    before = blocks.without(text)
    if before or not blocks.was_absent(text):
        blocks.write(path, before)
        return
    path.resolve().unlink()
    if DIRECTORY in (blocks.body_of(text) or "") and not any(path.parent.iterdir()):
        path.parent.rmdir()
