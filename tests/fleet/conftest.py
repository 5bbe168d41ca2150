"""A bucket for each test, on one server for all."""

import itertools

import pytest

from tests.fleet.s3 import PROGRAM, Bucket, Versitygw, Wire

_numbers = itertools.count()


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    if not PROGRAM.exists():
        pytest.skip(f"there is no {PROGRAM}: .ci/run says how it is made")
    engine = Versitygw(tmp_path_factory.mktemp("s3") / "buckets")
    try:
        yield engine.start()
    finally:
        engine.close()


@pytest.fixture
def bucket(engine):
    with Wire(engine.port) as wire:
        yield Bucket(engine, f"bucket-{next(_numbers)}", wire)
