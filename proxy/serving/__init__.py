"""HTTP to clients, for any ASGI app: it knows no cache, and imports nothing of the house but errors, log, config, rules."""
