"""What a redirect and the answer behind it say together."""

import pytest

from proxy.rules.chain import combined
from proxy.rules.entry import Head, field
from proxy.rules.freshness import is_storable, lifetime

LOGIN = (("authorization", "Basic x"),)
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


def said(cache_control=None, **fields):
    fields |= {"cache_control": cache_control} if cache_control else {}
    return (("date", DATE), *((name.replace("_", "-"), value) for name, value in fields.items()))


def head(*answers, asked=()):
    return Head(combined(answers[:-1], answers[-1], asked), 1, "g")


def test_an_answer_that_no_redirect_led_to_is_as_it_is():
    last = said('max-age=9, private="x"', vary="A,  b")
    assert combined((), last, LOGIN) == last
    assert combined((said(), said(age="3")), last, ()) == last


@pytest.mark.parametrize("redirect", ["private", "no-store", "PRIVATE, max-age=9", 'private, x="a"'])
@pytest.mark.parametrize("last", [said("public, max-age=9"), said(cdn_cache_control="max-age=9"), said()])
def test_nothing_is_kept_that_a_redirect_forbids(redirect, last):
    for chain in ((said(redirect), last), (said(), said(redirect), last)):
        assert not is_storable(head(*chain))
        # Whoever stands before us reads Cache-Control alone.
        without = tuple(line for line in head(*chain).headers if line[0] != "cdn-cache-control")
        assert not is_storable(Head(without, 1, "g"))


@pytest.mark.parametrize("redirect", ["no-store, must-understand", 'private="set-cookie"', "max-age=0", None])
def test_and_what_it_does_not_forbid_is_kept(redirect):
    assert is_storable(head(said(redirect), said("max-age=9")))


@pytest.mark.parametrize(
    ("redirect", "last", "is_kept"),
    [
        ("public", "public", True),
        ("s-maxage=9", "must-revalidate", True),
        (None, "public", False),
        ("public", None, False),
        ("must-revalidate", "max-age=9", False),
    ],
)
def test_after_a_login_every_answer_must_be_for_everybody(redirect, last, is_kept):
    """RFC 9111 §3.5."""
    assert is_storable(head(said(redirect), said(last), asked=LOGIN), LOGIN) is is_kept
    assert is_storable(head(said(redirect), said(last)))


def test_vary_is_that_of_all_and_a_login_that_selects_is_never_kept():
    both = head(said(vary="Accept"), said(vary="X-a"))
    assert field(both.headers, "vary") == "accept, x-a"
    assert not is_storable(head(said(vary="*"), said()))
    chain = said("public", vary="authorization"), said("public")
    assert is_storable(head(*chain))
    assert not is_storable(head(*chain, asked=LOGIN), LOGIN)


@pytest.mark.parametrize(
    ("redirect", "last", "seconds"),
    [
        (said("max-age=60"), said("max-age=600"), 60),
        (said("max-age=60", age="20"), said("max-age=600", age="100"), 140),
        (said("max-age=600"), said("max-age=60"), 60),
        (said("max-age=60"), said("s-maxage=600, max-age=5"), 60),
        (said("no-cache"), said("max-age=600"), 0),
        (said("max-age=60"), said(cdn_cache_control="max-age=600"), 60),
        (said(), said("max-age=600"), 600),
        (said("max-age=60"), said(expires="Sun, 06 Nov 1994 09:49:37 GMT"), 60),
        (said("max-age=60"), said(last_modified="Sun, 06 Nov 1993 08:49:37 GMT"), 60),
        (said("max-age=99999999"), said(last_modified="Sun, 06 Nov 1993 08:49:37 GMT"), None),
        (said("max-age=60"), said(), None),
    ],
)
def test_it_is_fresh_no_longer_than_the_first_that_is_not(redirect, last, seconds):
    assert lifetime(head(redirect, last)) == seconds
