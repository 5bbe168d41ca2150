"""Which entries a bucket has already. A note beside their use (index.py), which may be lost: then the bucket is asked
again, and nothing is sent twice.
"""

from .blobs import Blobs
from .comparing import Comparing
from .hot import OpenEntry

PAGE_ENTRIES = 256
"""Looked at in one turn of the store's thread: about a millisecond, for which lookups wait."""


class Abroad:
    """Its methods raise StoreError. `bucket` is the name of one."""

    def __init__(self, blobs: Blobs, comparing: Comparing) -> None:
        self._blobs, self._do = blobs, comparing.do

    async def page(self, after: str, bucket: str, used_for: float) -> tuple[list[str], str | None]:
        """Of the next entries behind the key `after` those that the bucket is to be told of.

        It has not got them, or they have been used `used_for` seconds after it was told. And the last key that was
        looked at, behind which the next page begins; None if this was the last.
        """
        rows = await self._do(lambda: self._blobs.ground.current_index().shared(after, PAGE_ENTRIES))
        due = [
            key
            for key, generation, use in rows
            if use.shared != f"{bucket}:{generation}" or use.used_at - use.shared_at > used_for
        ]
        return due, rows[-1][0] if len(rows) == PAGE_ENTRIES else None

    async def note(self, key: str, bucket: str, generation: str, now: float) -> None:
        """The bucket has that generation of the entry, or is not to have it."""
        shared = f"{bucket}:{generation}"
        await self._do(lambda: self._blobs.ground.current_index().set_shared(key, shared, now))

    async def open(self, key: str) -> OpenEntry | None:
        """As Store.lookup, past what is at hand for clients. Close it."""
        return await self._do(self._blobs.find, key, unwanted=close)


def close(found: OpenEntry | None) -> None:
    if found:
        found.close()
