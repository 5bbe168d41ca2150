"""The way out: it knows no disk, blocks in the caller's thread, and is the only place that knows httpx.

local.py alone is asynchronous: it reaches only servers of ours on this machine.
"""
