"""fetchonce: a local caching proxy in front of VM image mirrors.

Read gateway.py first: it takes one request through every room. Imports go down only, and a test keeps it so:
cli > app, server > web > gateway > flights, delivery > fill > store > index, partial, upstream > config > rules
> errors, stats, log, version.
"""
