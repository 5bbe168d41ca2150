"""Under which name we stand in Via, so that a request of ours which comes back is known.

The name is one for all servers on a cache directory, since they share fills, and no other cache has it: one fetchonce
may ask another. It is drawn once and kept in the file `id`.
"""

import contextlib
import functools
import os
import secrets
import tempfile
from pathlib import Path


@functools.cache
def pseudonym(cache_dir: Path) -> str:
    """RFC 9110 §7.6.3. Where the directory cannot be written, one for this process alone."""
    path, drawn = cache_dir / "id", secrets.token_hex(4)
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache_dir, prefix=".id-") as file:
            file.write(drawn)
            file.flush()
            # Whole from the start, and the first one stays: others may be drawing one too.
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
        return f"fetchonce-{path.read_text('ascii')}"
    except (OSError, UnicodeDecodeError):
        return f"fetchonce-{drawn}"
