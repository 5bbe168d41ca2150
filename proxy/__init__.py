"""fetchonce: a local caching proxy in front of VM image mirrors.

Read gateway.py first: it takes one request through every room. Imports go down only, and a test keeps it so:
cli > app, server > web, connection > gateway > flights, delivery, cycle > fill, outlet > janitor > store, transfer
> index, partial, upstream > config > rules > errors, stats, log, version.
"""
