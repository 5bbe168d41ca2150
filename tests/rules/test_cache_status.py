"""What a client and the log are told of each kind of answer (RFC 9211)."""

import pytest

from proxy.errors import NotInCache, ProxyError, RequestError, StoreError, UpstreamPage, UpstreamStatus, UpstreamTimeout
from proxy.rules.cache_status import CacheStatus


@pytest.mark.parametrize(
    ("cache_status", "header", "result"),
    [
        pytest.param(CacheStatus(hit=True), "hit", "HIT", id="rfc9211-2.1-hit"),
        pytest.param(CacheStatus(hit=True, ttl=-5), "hit; ttl=-5", "STALE", id="rfc9211-2.4-stale-hit"),
        pytest.param(CacheStatus(fwd="uri-miss", stored=True), "fwd=uri-miss; stored", "MISS", id="rfc9211-2.2-miss"),
        pytest.param(CacheStatus(fwd="vary-miss", fwd_status=200, stored=True),
                     "fwd=vary-miss; fwd-status=200; stored", "MISS", id="rfc9211-2.2-vary-miss"),
        pytest.param(CacheStatus(fwd="uri-miss", collapsed=True),
                     "fwd=uri-miss; collapsed", "FOLLOW", id="rfc9211-2.6-collapsed"),
        pytest.param(CacheStatus(fwd="stale", fwd_status=200, collapsed=True),
                     "fwd=stale; fwd-status=200; collapsed", "FOLLOW", id="rfc9211-2.6-collapsed-new-generation"),
        pytest.param(CacheStatus(fwd="request", fwd_status=304),
                     "fwd=request; fwd-status=304", "REVALIDATED", id="rfc9211-2.3-revalidated"),
        pytest.param(CacheStatus(fwd="stale", fwd_status=503),
                     "fwd=stale; fwd-status=503", "STALE", id="rfc9211-2.3-upstream-error"),
        pytest.param(CacheStatus(fwd="stale", detail="unreachable"),
                     "fwd=stale; detail=unreachable", "STALE", id="rfc9211-2.8-no-upstream"),
        pytest.param(CacheStatus(fwd="uri-miss"), "fwd=uri-miss", "BYPASS", id="head-passed-on"),
        pytest.param(CacheStatus(fwd="uri-miss", stored=False),
                     "fwd=uri-miss; stored=?0", "BYPASS", id="rfc9211-2.5-not-stored"),
        pytest.param(CacheStatus(fwd="stale", fwd_status=200, stored=False, detail="no-space"),
                     "fwd=stale; fwd-status=200; stored=?0; detail=no-space", "BYPASS", id="rfc9211-2.8-no-space"),
        pytest.param(CacheStatus(detail="refused"), "detail=refused", "ERROR", id="refused"),
    ],
)  # fmt: skip
def test_header_and_result_code(cache_status, header, result):
    assert cache_status.header() == f"fetchonce; {header}"
    assert cache_status.result == result


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (ProxyError("x"), "detail=failed"),
        (StoreError("x"), "detail=failed"),
        (RequestError("x"), "detail=refused"),
        (NotInCache("x"), "detail=not-in-cache"),
        (UpstreamTimeout("x"), "fwd=uri-miss; detail=unreachable"),
        (UpstreamPage("x"), "fwd=uri-miss; detail=web-page"),
        (UpstreamStatus("x", 404), "fwd=uri-miss; fwd-status=404"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_says_what_it_is(error, header):
    assert error.cache_status.header() == f"fetchonce; {header}"


def test_an_error_that_others_hold_too_is_not_changed():
    error = UpstreamStatus("x", 404, retry_after="5")
    other = error.with_cache_status(CacheStatus(fwd="stale", fwd_status=404))
    assert (type(other), str(other), other.upstream_status) == (UpstreamStatus, "x", 404)
    assert (other.headers, other.cache_status.fwd, error.cache_status.fwd) == (error.headers, "stale", "uri-miss")
