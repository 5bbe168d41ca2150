"""The page at /-/, in a real browser."""

import contextlib
import shutil

import pytest
from playwright.async_api import async_playwright, expect

from tests.harness import TIMEOUT_SECONDS, until
from tests.origin import pattern_bytes

SIZE = 4_000_000
FRESH = {"cache_control": "max-age=600"}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update"]
chromium = shutil.which("chromium") or shutil.which("google-chrome")
expect.set_options(timeout=TIMEOUT_SECONDS * 1000)  # a busy machine takes more than the five that come with it
in_a_browser = pytest.mark.skipif(chromium is None, reason="Chromium is not installed")


@contextlib.asynccontextmanager
async def visited(proxy, path="/-/", *, tolerated="\0", **options):
    """The page in a new browser. It must ask nobody but the proxy, and have nothing else to complain about."""
    complaints = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = await browser.new_page(**options)
        page.on("console", lambda message: tolerated in message.text or complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(proxy.url("/")) or complaints.append(request.url))
        await page.goto(proxy.url(path))
        await expect(page.locator("#link")).to_have_text("live")
        yield page
        await browser.close()
    assert complaints == []


def row(page, name):
    return page.locator("#rows tr").filter(has_text=name)


@in_a_browser
async def test_a_fill_grows_on_the_page_and_moves_to_what_is_stored(origin, proxy):
    origin.pattern("/noble.img", SIZE, 1).headers(**FRESH).stall_at(SIZE // 2, times=1)
    async with visited(proxy, "/") as page:  # a browser is led to the page
        await expect(page.locator("#first")).to_be_visible()
        await expect(page.locator("#first-line")).to_contain_text(proxy.url("/cloud-images.ubuntu.com/"))
        stream = await proxy.stream("/u/noble.img")
        await expect(page.locator("#fills progress")).to_have_js_property("value", SIZE // 2)
        await expect(page.locator("#fills")).to_contain_text("2.0 MB of 4.0 MB (50 %)")
        await expect(page.locator("#fills")).to_contain_text("1 reader")
        await expect(page.locator("#stored-bytes")).to_have_text("2.0 MB")
        await expect(page.locator("#disk-more")).to_have_text("of 50.0 GB, 2.0 MB to come")
        await expect(page.locator("#none")).to_have_text("Nothing is stored whole yet.")
        assert "M" in await page.locator("#fills svg path").get_attribute("d")
        origin.release()
        assert await stream.rest() == pattern_bytes(SIZE, 1)
        await expect(page.locator("#fills li")).to_have_count(0)
        await expect(row(page, "noble.img")).to_contain_text("4.0 MB")
        await expect(page.locator("#news")).to_have_text("noble.img is in")
        await expect(page.locator("#first")).to_be_hidden()
        await expect(page.locator("#stored-bytes")).to_have_text("4.0 MB")
        await expect(page.locator("#disk-more")).to_have_text("of 50.0 GB")
        await expect(page.locator("#saved-more")).to_have_text("4.0 MB given out, 4.0 MB fetched")


@in_a_browser
async def test_all_of_it_works_from_the_keyboard(origin, proxy):
    for name in ("a.img", "b.img", "c.txt"):
        origin.body(f"/{name}", b"x" * 1000).headers(**FRESH)
        await proxy.get(f"/u/{name}")
    await until(lambda: len(proxy.entries()) == 3)
    async with visited(proxy) as page:
        await page.locator("#search").focus()
        await page.keyboard.type("*.img")
        await expect(page.locator("#rows tr")).to_have_count(2)
        await page.locator("[data-sort=url]").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#rows tr .name")).to_have_text(["a.img", "b.img"])
        await page.keyboard.press("Enter")
        await expect(page.locator("#rows tr .name")).to_have_text(["b.img", "a.img"])
        await expect(page.locator("th:has([data-sort=url])")).to_have_attribute("aria-sort", "descending")

        pin = row(page, "a.img").get_by_role("button", name="Pin a.img")
        await pin.focus()
        await page.keyboard.press("Space")
        await expect(pin).to_have_attribute("aria-pressed", "true")
        await expect(pin).to_be_focused()
        assert {each["url"].rpartition("/")[2]: each["pinned"] for each in proxy.entries()}["a.img"] is True

        await page.keyboard.press("Tab")  # verify
        await page.keyboard.press("Enter")
        await expect(page.locator("#news")).to_have_text("a.img is as it was stored")
        await expect(row(page, "a.img").get_by_role("button", name="Verify a.img")).to_be_focused()
        await page.keyboard.press("Tab")  # remove
        await page.keyboard.press("Enter")
        await expect(page.locator("dialog")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.locator("dialog")).to_be_hidden()
        await expect(row(page, "a.img")).to_have_count(1)
        await row(page, "a.img").get_by_role("button", name="Remove a.img").press("Enter")
        await page.keyboard.press("Tab")  # from Keep to Remove
        await page.keyboard.press("Enter")
        await expect(row(page, "a.img")).to_have_count(0)
        assert sorted(each["url"].rpartition("/")[2] for each in proxy.entries()) == ["b.img", "c.txt"]


@in_a_browser
async def test_a_failure_is_shown_with_its_cause_and_the_end_of_the_server(origin, proxy):
    origin.pattern("/slow.img", SIZE, 1).stall_at(1000)
    async with visited(proxy, tolerated="net::ERR_", viewport={"width": 400, "height": 800}) as page:
        await proxy.get("/u/none.img")
        await expect(page.locator("#failures")).to_contain_text("answered 404")
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= 400, "the page is wider than the window"
        said = await page.locator("#news").text_content()
        async with await proxy.stream("/u/slow.img") as stream:
            await stream.read(1000)
            await expect(page.locator("#fills li")).to_have_count(1)
            proxy.kill()
            await expect(page.locator("#link")).to_contain_text("does not answer")
            await expect(page.locator("#fills li")).to_have_count(0)
        assert await page.locator("#news").text_content() == said  # it is not said to be in


async def test_browsers_are_led_to_the_page_and_others_get_the_message(proxy):
    for accept in ("text/html,application/xhtml+xml,*/*;q=0.8",):
        answer = await proxy.get("/", {"Accept": accept})
        assert (answer.status, answer.headers["location"]) == (303, "/-/")
    answer = await proxy.get("/", {"Accept": "*/*"})
    assert "replace https:// by" in answer.json()["message"]
    assert (await proxy.get("/-")).status == 308
    assert (await proxy.get("/robots.txt")).body == b"User-agent: *\nDisallow: /\n"
    assert (await proxy.get("/favicon.ico")).headers["content-type"] == "image/svg+xml"


async def test_the_page_allows_nothing_but_its_own_files(proxy):
    page = await proxy.get("/-/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    again = await proxy.get("/-/", {"If-None-Match": page.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert (await proxy.get("/-/static/page.py")).status == 404
    assert (await proxy.get("/-/static/%2e%2e%2fpage.py")).status in (400, 404)
