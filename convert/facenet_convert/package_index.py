"""Archives from the Python package index, by the user's own settings of pip or uv. Nothing in an archive is run.

``pip download`` of a source distribution runs its ``setup.py``, whatever the options. So the archive is found and
downloaded by unearth, which knows none of these settings.
"""

import logging
import os
import re
import ssl
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import click
import httpx2
from unearth import Link, PackageFinder
from unearth.auth import MultiDomainBasicAuth
from unearth.fetchers.sync import PyPIClient

from facenet_convert import index_settings
from facenet_convert.errors import FetchError, SourceError

T = TypeVar("T")

_TIMEOUT_S = 30.0
_ATTEMPTS = 3


class _Sources(TypedDict, total=False):
    """What unearth's PackageFinder is given of where to look; nothing stands for its default, PyPI, as pip's."""

    index_urls: list[str]
    find_links: list[str]


def fetch(requirement: str, read: Callable[[Path], T], folder: Path) -> T:
    """What ``read`` makes of the archive of ``requirement`` (``name==version``), which is not kept in ``folder``.

    Every place in the settings is asked in turn, local folders first, until one has an archive that ``read`` raises
    no ConversionError for. Raises the SourceError of ``read``, where there was one, else FetchError.
    """
    settings, reasons = index_settings.read(), []
    not_pinned: SourceError | None = None
    with _warnings() as warnings:
        for place, sources in _places(settings):
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    with tempfile.TemporaryDirectory(dir=folder) as fresh:  # unearth would go by what a try has left
                        archive = _download_from(sources, requirement, Path(fresh), settings)
                        if archive is not None:
                            return read(archive)
                    break
                except SourceError as error:
                    not_pinned = error
                    break
                except Exception as error:  # noqa: BLE001 (unearth, its HTTP client and its files have no common base)
                    if attempt == _ATTEMPTS:
                        reasons.append(f"{place}: {str(error) or type(error).__name__}")
    if not_pinned is not None:
        raise not_pinned
    told = "; ".join([*reasons, *warnings]) or "no index that pip or uv is set to has it"
    raise FetchError(
        f"cannot download {requirement}: {_redacted(told)}. Check the network and the index settings of pip "
        "(PIP_INDEX_URL) or uv (UV_DEFAULT_INDEX), or get the archive with a browser and pass its path with --source "
        "(with `all`: --mtcnn-source, --facenet-source)"
    )


def _places(settings: Mapping[str, str]) -> Iterator[tuple[str, _Sources]]:
    """Where to look, by name and as unearth has it."""
    for place in settings.get("find-links", "").split():
        yield place, {"find_links": [place if "://" in place else str(Path(place).expanduser())]}
    if settings.get("no-index", "").lower() not in ("1", "true", "yes", "on", "t", "y"):
        if "index-url" not in settings:
            yield "PyPI", {}
        for place in f"{settings.get('index-url', '')} {settings.get('extra-index-url', '')}".split():
            yield place, {"index_urls": [place]}


def _download_from(sources: _Sources, requirement: str, folder: Path, settings: Mapping[str, str]) -> Path | None:
    """The archive from this one place; None where it has none. Raises whatever keeps the place from answering."""
    with _client(settings, sources.get("index_urls", [])) as client:
        finder = PackageFinder(client, ignore_compatibility=True, **sources)
        best = finder.find_best_match(requirement).best
        if best is None:
            return None
        with _Progress(requirement) as progress:
            return finder.download(best.link, folder, download_reporter=progress)


def _client(settings: Mapping[str, str], index_urls: list[str]) -> Any:
    """An HTTP client with the user's certificates, proxy and trusted hosts, and the credentials of the indexes."""
    cert = settings.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE")
    verify: Any = True
    if cert:
        is_folder = Path(cert).is_dir()
        verify = ssl.create_default_context(cafile=None if is_folder else cert, capath=cert if is_folder else None)
    trusted, proxy = settings.get("trusted-host", "").split(), _with_scheme(settings.get("proxy"))
    mounts = {
        f"all://{host}": httpx2.HTTPTransport(verify=False, proxy=proxy or _environments_proxy(host))
        for host in trusted
    }  # unearth's own would leave the proxy out
    client = PyPIClient(
        trusted_hosts=trusted,
        verify=verify,
        proxy=proxy,
        mounts=mounts,
        follow_redirects=True,
        timeout=_TIMEOUT_S,
    )
    client.auth = MultiDomainBasicAuth(index_urls=index_urls, prompting=False)
    return client


def _environments_proxy(host: str) -> str | None:
    proxies = urllib.request.getproxies()
    return None if urllib.request.proxy_bypass(host) else _with_scheme(proxies.get("https") or proxies.get("http"))


def _with_scheme(proxy: str | None) -> str | None:
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What unearth logs of places that do not answer, in a list instead of on standard error."""
    told: list[str] = []
    handler, logger = logging.Handler(logging.WARNING), logging.getLogger("unearth")
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)


def _redacted(text: str) -> str:
    """The text on one line, without the credentials of its URLs."""
    return re.sub(r"(?<=://)[^/\s]+@", "***@", " ".join(text.split()))


class _Progress:
    """A progress bar on standard error, once the length of the download is known."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None
        self._done = 0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.render_finish()

    def __call__(self, link: Link, completed: int, total: int | None) -> None:
        """unearth's report of how many bytes are there."""
        if total is None:
            return
        if self._bar is None:
            self._bar = click.progressbar(length=total, label=self._label, file=sys.stderr, update_min_steps=1 << 20)
        self._bar.update(completed - self._done)
        self._done = completed
