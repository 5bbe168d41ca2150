"""The way out: everything here blocks in the caller's thread, knows no disk, and is the only place that knows httpx."""
