"""Reads and writes what VM tools keep on this machine: their templates, settings and caches.

Knows no network, no server and not our cache directory; only cli/ and web/ import it. What is written here can be
taken back byte for byte.
"""
