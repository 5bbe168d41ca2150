"""Log lines on their way to standard error."""

import socket
import subprocess
import sys

SCRIPT = """
import asyncio, logging
from proxy import log as logs

def say(event):
    logs.log(logs.events, logging.INFO, event, n=1)

async def main():
    say("first")
    logging.getLogger("a library").warning("beware")
    logs.log_past(logs.access, logging.INFO, [(1_000, "again", 2)])
    await asyncio.sleep(0)
    say("next")
    await asyncio.sleep(0)
    await asyncio.to_thread(say, "thread")
    say("last")

logs.set_up("info")
asyncio.run(main())
say("after")
"""


def test_lines_of_one_turn_of_the_loop_are_written_with_one_call() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        subprocess.run([sys.executable, "-c", SCRIPT], stderr=theirs, check=True)
        ours.setblocking(False)
        calls = [ours.recv(65536).decode().splitlines() for _ in range(5)]
    said = [[line.split(" ", 2)[2] for line in lines] for lines in calls]
    assert said == [
        ["INFO first n=1", "WARNING beware", "INFO again", "INFO again"],
        ["INFO next n=1"],
        ["INFO thread n=1"],
        ["INFO last n=1"],
        ["INFO after n=1"],
    ]


def test_a_log_that_nobody_reads_ends_nothing() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        subprocess.run([sys.executable, "-c", SCRIPT], stderr=theirs, check=True)


def test_what_a_loop_left_unwritten_holds_up_nothing() -> None:
    script = SCRIPT.partition("async def main")[0] + """
async def main():
    say("next")
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGKILL)

import os, signal
logs.set_up("info")
loop = asyncio.new_event_loop()
loop.call_soon(loop.stop)
loop.call_soon(say, "first")
loop.run_forever()
asyncio.run(main())
"""
    told = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, check=False).stderr.decode()
    assert [line.split(" ", 2)[2] for line in told.splitlines()] == ["INFO first n=1", "INFO next n=1"]
