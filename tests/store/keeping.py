"""A process of its own that stores a group of small bodies once it is told to, and says which threads touch the disk.

It is forked from a template, so that all of them make the same calls in the same order (sets have the order of hashes).
"""

import asyncio
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from proxy.store.store import Store

from .test_store import entry_of, key, put

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])

SAME = b"a body that is stored already"
BEFORE = {"renewed": b"old", "pinned": b"old and pinned", "alone": SAME}
"""What is stored before the group, by name."""
GROUP = {
    "renewed": b"new",
    "pinned": b"new and pinned",
    "shared": SAME,
    "a": b"0",  # in one directory with the next
    "b": b"26",
    "c": b"a body of two URLs",
    "d": b"a body of two URLs",
}


async def stock(root: Path) -> None:
    store = Store(root)
    await store.start()
    for name, body in BEFORE.items():
        await put(store, name, body)
    await store.pin(key("pinned"))
    await store.close()


def begin(root: Path) -> tuple[BaseProcess, Connection]:
    """The process; it sends its threads, begins once it is sent anything, and sends the names that were kept."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_run, args=(root, theirs))
    process.start()
    theirs.close()
    return process, ours


def _run(root: Path, test: Connection) -> None:
    asyncio.run(_keep(root, test))


async def _keep(root: Path, test: Connection) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # each step in the same thread each time
    store = Store(root)
    await store.start()
    await store.count()  # once it is in order
    test.send([await asyncio.to_thread(threading.get_native_id), await store._do_now(threading.get_native_id)])
    test.recv()
    test.send(await keep(store))
    test.recv()  # until it is killed: of what closing does nothing is of interest


async def keep(store: Store) -> list[str]:
    """The names that were kept."""
    kept = (store.keep(replace(entry_of(name, body, "g2"), stored_at=2.0), body) for name, body in GROUP.items())
    outcomes = await asyncio.gather(*kept, return_exceptions=True)
    return [name for name, outcome in zip(GROUP, outcomes, strict=True) if not isinstance(outcome, Exception)]
