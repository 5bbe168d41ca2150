import pytest

from proxy.rules.units import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("5m", 300), ("2h", 7200), ("30d", 2592000), ("1.5s", 1.5), ("250ms", 0.25), (7, 7)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("64KB", 64_000),
        ("64KiB", 65_536),
        ("50GB", 50_000_000_000),
        ("1.5MB", 1_500_000),
        ("2g", 2_000_000_000),
        (7, 7),
    ],
)
def test_sizes(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["soon", "", "-1s", "10 parsecs", True, None])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match='a duration such as "30s"'):
        parse_duration(text)


@pytest.mark.parametrize("text", ["big", "", "-1", "1XB", True])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match='a size such as "500MB"'):
        parse_size(text)
