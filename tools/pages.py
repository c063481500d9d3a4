"""Pages of the site that lie outside docs/, and links between files of the repository: mkdocs.yml's hooks."""

import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}

_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's own pages to those of docs/."""
    root = posixpath.dirname(config.config_file_path)
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=posixpath.join(root, source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to pages of the site; of other files of the repository tell the path."""
    name = page.file.src_uri
    source = next((source for source, its in OUTSIDE.items() if its == name), f"docs/{name}")
    return linked(markdown, source)


def linked(markdown: str, source: str) -> str:
    """The text of a file of the repository, with the links that it has on the site. Code stays as it is."""
    code = [*_CODE.finditer(markdown)]
    starts, ends = [0, *(each.end() for each in code)], [*(each.start() for each in code), len(markdown)]
    text = [_LINK.sub(lambda link: _link(link, source), markdown[a:b]) for a, b in zip(starts, ends, strict=True)]
    return "".join(part for pair in zip(text, [*(each.group() for each in code), ""], strict=True) for part in pair)


def _link(link: re.Match[str], source: str) -> str:
    words, target, anchor = link.group(1), link.group(2), link.group(3) or ""
    if "://" in target:
        return link.group()
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    page = OUTSIDE.get(path, path.removeprefix("docs/"))
    if page != path:
        return f"[{words}]({page}{anchor})"
    return f"`{path}`" if posixpath.basename(path) in words else f"{words} (`{path}`)"
