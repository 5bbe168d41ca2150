"""Bodies on their way into the cache: the only place that holds both the store and the way upstream."""
