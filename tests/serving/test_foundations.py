"""What connection.py and response.py rely on in uvicorn and httptools."""

import inspect

import httptools
import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState


def test_uvicorn_has_the_shape_we_rely_on():
    """connection.py and response.py rely on these. If this fails, read uvicorn's changes first."""
    assert list(inspect.signature(RequestResponseCycle.__init__).parameters)[1:] == [
        "scope",
        "transport",
        "flow",
        "logger",
        "access_logger",
        "access_log",
        "default_headers",
        "message_event",
        "expect_100_continue",
        "keep_alive",
        "on_response",
    ]
    assert list(inspect.signature(HttpToolsProtocol.__init__).parameters)[1:] == [
        "config",
        "server_state",
        "app_state",
        "_loop",
    ]
    for name in [
        *("connection_made", "connection_lost", "eof_received", "data_received", "pause_writing", "resume_writing"),
        *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
        *("on_response_complete", "_start_asgi_task", "shutdown"),
    ]:
        assert inspect.isfunction(vars(HttpToolsProtocol)[name]), name
    assert inspect.iscoroutinefunction(RequestResponseCycle.run_asgi)
    source = inspect.getsource(RequestResponseCycle)
    for name in ("disconnected", "response_started", "response_complete", "waiting_for_100_continue", "more_body"):
        assert f"self.{name} = " in source, name
    assert "cycle.run_asgi(app)" in inspect.getsource(HttpToolsProtocol._start_asgi_task)
    assert set(vars(ServerState())) >= {"connections", "tasks", "total_requests", "default_headers"}
    assert {"drain", "pause_reading", "resume_reading", "pause_writing", "resume_writing"} <= set(vars(FlowControl))
    assert uvicorn.__version__.startswith("0.54.")


def test_httptools_says_what_we_rely_on():
    calls = []

    class Calls:
        def on_message_begin(self):
            calls.append("begin")

        def on_headers_complete(self):
            calls.append("headers")

        def on_message_complete(self):
            calls.append("complete")
            raise ValueError("ours")

    parser = httptools.HttpRequestParser(Calls())
    parser.feed_data(b"\r\n\r\n")  # empty lines before a request begin nothing (RFC 9112 §2.2)
    with pytest.raises(httptools.HttpParserCallbackError) as caught:
        parser.feed_data(memoryview(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n"))
    assert isinstance(caught.value.__context__, ValueError)
    assert calls == ["begin", "headers", "complete"]
