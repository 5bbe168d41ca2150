"""A slow, big image for every client."""

import pytest

from tests.clients.tools import RATE, SEED, SIZE


@pytest.fixture
def image(origin):
    return origin.pattern("/images/noble.img", SIZE, SEED).throttle(RATE).headers(cache_control="max-age=600")
