"""HTTP to clients, for any ASGI app: it knows no cache, and imports errors, log, config and rules only."""
