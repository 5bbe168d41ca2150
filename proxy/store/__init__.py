"""The cache directory: nothing else touches it, and nothing here knows the network."""
