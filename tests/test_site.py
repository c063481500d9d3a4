"""The site of the pages: links lead where they do in the repository, and it builds without a warning."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import facenet_client
import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(
    find_spec("mkdocs") is None, reason="MkDocs is not installed (run `make install-light`)"
)

_FETCHED = re.compile(r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//|<link[^>]* href=\"?(?:https?:)?//")


@pytest.mark.parametrize(
    ("source", "link", "on_the_site"),
    [
        ("README.md", "[callers](docs/operations.md#callers)", "[callers](operations.md#callers)"),
        ("docs/from-facenet.md", "[README](../README.md#weights)", "[README](index.md#weights)"),
        ("docs/images.md", "[limits](#limits)", "[limits](#limits)"),
        ("docs/images.md", "[promises](promises.md)", "[promises](promises.md)"),
        ("docs/services.md", "[examples/](../examples)", "`examples`"),
        ("docs/services.md", "[celery_tasks.py](../examples/celery_tasks.py)", "`examples/celery_tasks.py`"),
        ("README.md", "[CHANGELOG](CHANGELOG.md)", "[CHANGELOG](changelog.md)"),
        ("README.md", "[this](https://example.org/a.md)", "[this](https://example.org/a.md)"),
        ("README.md", "`[code](docs/a.md)` [a](docs/images.md)", "`[code](docs/a.md)` [a](images.md)"),
        ("docs/performance.md", "![area](performance/area.svg)", "![area](performance/area.svg)"),
    ],
)
def test_a_link_leads_to_a_page_of_the_site_or_tells_a_path(source: str, link: str, on_the_site: str) -> None:
    from tools.pages import linked

    assert linked(f"See {link}.", source) == f"See {on_the_site}."


def test_the_page_of_the_sdk_has_each_public_name_once() -> None:
    named = re.findall(r"^::: facenet_client\.(\w+)$", (ROOT / "docs" / "sdk.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(facenet_client.__all__)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_site_builds_without_a_warning_and_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (built.returncode, "WARNING" in built.stderr) == (0, False), built.stderr
    sdk = (tmp_path / "sdk.html").read_text("utf-8")
    for name in ("Client.detect", "AsyncClient.embed_stream", "ItemError", "DetectOptions.min_face_px"):
        assert f'id="facenet_client.{name}"' in sdk
    assert not [page.name for page in tmp_path.rglob("*.html") if _FETCHED.search(page.read_text("utf-8"))]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("link", ["[a](nowhere.md)", "[a](images.md#nowhere)"])
def test_a_broken_link_ends_the_build(tmp_path: Path, link: str) -> None:
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text(f"# Home\n\n{link} [b](images.md#images)\n")
    (pages / "images.md").write_text("# Images\n")
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    nav, hooks = re.compile(r"^nav:.*?^(?=validation)", re.DOTALL | re.MULTILINE), "hooks: [tools/pages.py]\n"
    (tmp_path / "mkdocs.yml").write_text(nav.sub("", settings).replace(hooks, ""), "utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 1
    assert "nowhere" in built.stderr
