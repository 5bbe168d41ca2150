"""JSON in which upstream's URLs become ours."""

import json

from hypothesis import example, given
from hypothesis import strategies as st

from proxy.rules.entry import Head, field
from proxy.rules.links import Links
from proxy.rules.mirrors import Mirror, MirrorTable
from proxy.rules.rewriting import head_of, may_be_json, rewrite

MIRRORS = [Mirror("images", ("https://images.example/pub/",)), Mirror("plain", ("http://plain.example:8080/",))]
LINKS = Links(MirrorTable(MIRRORS, ["*.allowed.example"]), "http://cache:8642")
URLS = {
    "https://images.example/pub/a.img": "http://cache:8642/images.example/pub/a.img",
    "HTTPS://Images.Example/pub/?q=1": "http://cache:8642/images.example/pub/?q=1",
    "http://images.example/pub/%7Ea": "http://cache:8642/http/images.example/pub/%7Ea",
    "http://plain.example:8080/b": "http://cache:8642/http/plain.example:8080/b",
    "https://a.allowed.example": "http://cache:8642/a.allowed.example/",
}
STAY = [
    "https://images.example/",
    "https://images.example.evil/pub/a",
    "https://other.example/pub/a",
    "https://images.example/pub/a b",
    "https://images.example/pub/../a",
    "https://me:you@images.example/pub/a",
    "images.example/pub/a",
    " https://images.example/pub/a",
    "https://images.example/pub/é",
]
STRINGS = st.sampled_from([*URLS, *STAY]) | st.text(st.sampled_from('a"\\/:,{}[] \n\u2028é😀\ud800'), max_size=6)
DOCUMENTS = st.recursive(
    STRINGS | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=12,
)


def mapped(value):
    match value:
        case str():
            return URLS.get(value, value)
        case list():
            return [mapped(each) for each in value]
        case dict():
            return {name: mapped(each) for name, each in value.items()}
        case _:
            return value


def escaped(text, every):
    """Slashes as PHP writes them, or each character of the strings' first word as an escape."""
    return text.replace("/", "\\/") if every == "slash" else text.replace("http", "\\u0068\\u0074tp")


@given(
    DOCUMENTS,
    st.sampled_from([None, 1, "\t"]),
    st.sampled_from([(",", ":"), (" ,\n", "\t : ")]),
    st.sampled_from(["", "slash", "u"]),
)
@example({"https://images.example/pub/a.img": ["https://images.example/pub/a.img"]}, None, (",", ":"), "slash")
def test_just_the_values_that_are_urls_of_configured_hosts_change(document, indent, separators, escapes):
    text = json.dumps(document, indent=indent, separators=separators)
    body = (escaped(text, escapes) if escapes else text).encode()
    changed = rewrite(body, LINKS)
    assert json.loads(changed) == mapped(document)
    if mapped(document) == document:
        assert changed == body
    assert rewrite(changed, LINKS) == changed
    assert may_be_json(body) == (body.lstrip()[:1] in (b"[", b"{", b'"'))


def test_a_url_is_replaced_where_it_stands():
    for theirs, ours in URLS.items():
        body = b"\xc3\xa9".join([b'{ "a" :1.50e-0,"', b'":"\\u00e9\\/",\r\n"b":"%s" , "%s":[]}'])
        assert rewrite(body % (theirs.encode(), theirs.encode()), LINKS) == body % (ours.encode(), theirs.encode())
    for url in STAY:
        body = json.dumps({"a": url}, ensure_ascii=False).encode()
        assert rewrite(body, LINKS) == body


def test_what_is_no_json_stays():
    url = b'"https://images.example/pub/a.img"'
    for body in (
        b"",
        b"[" + url,
        url + b",",
        b"\xff" + url,
        b"\xef\xbb\xbf" + url,
        b"[" + url + b",\n'']",
        b"[" * 100_000,
    ):
        assert rewrite(body, LINKS) == body


def test_the_fields_are_those_of_the_rewritten_body():
    kept = (("content-type", "application/json"), ("vary", "Accept"), ("cache-control", "max-age=9"))
    stale = (
        ("etag", '"theirs"'),
        ("last-modified", "x"),
        ("content-digest", "x"),
        ("repr-digest", "x"),
        ("digest", "x"),
    )
    head = head_of(Head(kept + stale, 1, "g"), b"[]", is_secret=False)
    assert head.headers[:3] == kept
    assert (head.length, field(head.headers, "vary")) == (2, "Accept, Host, Authorization")
    assert head.validator.etag == field(head.headers, "etag") != '"theirs"'
    assert {name for name, _ in head.headers} == {"content-type", "vary", "cache-control", "etag"}
    assert head_of(head, b"[ ]", is_secret=False).validator != head.validator
