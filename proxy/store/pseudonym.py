"""The name under which we appear in Via, so that a request of ours that comes back to us is recognised.

All servers on one cache directory share the name, since they share fills. Another cache has another name: one fetchonce
may ask another. The name is drawn once and kept in the file `id`.
"""

import functools
import secrets
from pathlib import Path

from .files import publishing


@functools.cache
def pseudonym(cache_dir: Path) -> str:
    """RFC 9110 §7.6.3. If the directory cannot be written, a name for this process alone."""
    drawn = f"fetchonce-{secrets.token_hex(4)}"
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        keep(cache_dir, drawn)
        return f"fetchonce-{(cache_dir / 'id').read_text('ascii')}"
    except (OSError, UnicodeDecodeError):
        return drawn


def keep(cache_dir: Path, name: str) -> None:
    """Write the name, unless the file has one: another process may be drawing one too."""
    path = cache_dir / "id"
    if not path.exists():
        with publishing(path, is_durable=False, keep_first=True) as file:
            file.write(name.removeprefix("fetchonce-").encode())
