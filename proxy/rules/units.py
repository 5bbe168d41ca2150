"""Durations and sizes as people write them."""

import math
import re


class Duration(float):
    """Seconds. Written "10s", "5m", "2h", "30d", or a number of seconds."""


class Size(int):
    """Bytes. Written "64KB", "2GB" (powers of 1000), "1GiB" (powers of 1024), or a number of bytes."""


SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
BYTES = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4} | {
    "Ki": 1024,
    "Mi": 1024**2,
    "Gi": 1024**3,
    "Ti": 1024**4,
}


def parse_duration(value: object) -> Duration:
    """Raises ValueError, which says what was expected."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?", str(value).strip())
    if not match or isinstance(value, bool):
        raise ValueError(f'{value!r}: expected a duration such as "30s", "10m" or "1d"')
    return Duration(float(match[1]) * SECONDS[match[2] or "s"])


def parse_size(value: object) -> Size:
    """Raises ValueError, which says what was expected."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?|)B?", str(value).strip(), re.IGNORECASE)
    if not match or isinstance(value, bool):
        raise ValueError(f'{value!r}: expected a size such as "500MB", "50GB" or "1GiB"')
    return Size(math.floor(float(match[1]) * BYTES[match[2][:1].upper() + match[2][1:].lower()]))
