"""fetchonce: a local caching proxy in front of VM image mirrors.

Read gateway.py first: it takes one request through every room. Imports go down only, and a test keeps it so:
cli > app, server, workers > web, connection, tls > gateway > flights, delivery, cycle, missing > checksums, outlet >
fill > passage, ingest > asking, following > janitor > store > blobs, transfer, verify > index, hashing, upstream >
partial, guard, loops > config > rules > errors, stats, log, version, presence.
"""
