"""Decisions without side effects: no I/O, no clock (`now` is an argument), no asyncio."""
