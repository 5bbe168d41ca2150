"""fetchonce: a local caching proxy in front of VM image mirrors.

Read gateway.py first: it takes one request through every room. Each folder's `__init__.py` says the law of that folder,
and tests/test_layers.py keeps the laws.
"""
