"""go-getter, which fetches for Packer and minikube: HEAD; then, where a part is there, `Range: bytes=N-` without
If-Range, whose answer it appends whatever it is. A checksum file that it cannot get ends it."""

import asyncio
import json

import pytest

from tests.clients.tools import SEED, SIZE, build_go, run, sha256, typed
from tests.harness import until
from tests.origin import pattern_bytes, pattern_sha256

PATH = "/images/noble.img"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="session")
def gogetter(tmp_path_factory):
    return build_go("gogetter", tmp_path_factory.mktemp("gogetter"))


@pytest.fixture
def url(origin, proxy, image):
    """The image's, with its checksum file's, as Packer's iso_urls and iso_checksum come to it."""
    origin.body("/SHA256SUMS", f"{pattern_sha256(SIZE, SEED)}  noble.img\n".encode())
    urls, checksum = (json.loads(line.partition(" = ")[2]) for line in typed("Packer", proxy, PATH=PATH[1:]))
    return f"{urls[0]}?checksum={checksum}"


async def test_two_at_once_are_one_fetch_and_a_whole_file_is_not_asked_for(origin, proxy, url, tmp_path, gogetter):
    files = [tmp_path / str(number) / "noble.img" for number in range(2)]
    await asyncio.gather(*(run(gogetter, url, file) for file in files))
    assert {sha256(file) for file in files} == {pattern_sha256(SIZE, SEED)}
    assert origin.count(PATH) == origin.count("/SHA256SUMS") == 1
    assert origin.bytes_sent(PATH) == SIZE
    await until(lambda: len(proxy.accesses("GET", PATH)) == 2)
    heads = len(proxy.accesses("HEAD", PATH))
    origin.stop()
    await run(gogetter, proxy.url(f"/u{PATH}"), files[0])  # HEAD says that it has it all
    await until(lambda: len(proxy.accesses("HEAD", PATH)) == heads + 1)
    assert len(proxy.accesses("GET", PATH)) == 2


@pytest.mark.parametrize("filled", [False, True], ids=["nothing cached", "from disk"])
async def test_it_goes_on_with_its_half(origin, proxy, url, tmp_path, gogetter, filled):
    if filled:
        await (await proxy.stream(f"/u{PATH}")).sha256()
        await proxy.wait_idle()
    file = tmp_path / "noble.img"
    file.write_bytes(pattern_bytes(SIZE, SEED, 0, SIZE // 2))
    await run(gogetter, url, file)
    assert sha256(file) == pattern_sha256(SIZE, SEED)
    await until(lambda: any("status=206" in line for line in proxy.accesses("GET", PATH)))


async def test_it_keeps_what_came_from_a_broken_mirror_and_goes_on_with_that(origin, proxy, url, tmp_path, gogetter):
    origin.pattern(PATH, SIZE, SEED).close_at(SIZE // 2)
    file = tmp_path / "noble.img"
    code, _ = await run(gogetter, url, file, check=False)
    assert code == 1  # a body that ends early is never taken for the image
    assert 0 < file.stat().st_size < SIZE
    origin.pattern(PATH, SIZE, SEED)  # the mirror is mended
    await run(gogetter, url, file)
    assert sha256(file) == pattern_sha256(SIZE, SEED)
    assert origin.bytes_sent(PATH) < SIZE * 1.5  # neither fetched it again from the beginning
