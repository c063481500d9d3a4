"""Find long sentences and long table cells: ``python tools/sentences.py [--words 35] [--cell 160]``.

Pages (README.md, docs/, CHANGELOG.md, CONTRIBUTING.md): prose and list items, and the cells of tables. Headings and
code do not count. Python files outside tests/: docstrings, and texts of nine words or more that a call is given, as
help texts and messages are. The contract, face.proto: its comments.

Inline code counts as one word, and the address of a link as none. Exits with 1 where anything is too long.
"""

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md")
CONTRACT = "protos/facenet_proto/v1/face.proto"
N_TEXT_WORDS = 9  # a shorter string in a call is a name or a label

ITEM = re.compile(r"\s*(?:[-*+]|\d+\.)\s+")
CODE = re.compile(r"(`+)[^`]+\1")
LINK = re.compile(r"(?<=\])\([^)\s]*\)|https?://\S+")
END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<! cf)(?<! vs)(?<! al)[.!?][\"'”’)\]*_]*\s+|[:;]\s+(?=[A-Z])")
WORD = re.compile(r"[^\W\d_][\w'’-]*")

Line = tuple[int, str]  # its number in the file, and its text
Text = list[Line]  # the lines of a paragraph, a list item or a string


def files(*patterns: str) -> list[str]:
    """The tracked files that match, as paths from the root."""
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def texts(lines: Iterable[Line]) -> Iterator[Text]:
    """Paragraphs and list items, without headings, tables and code (fenced, or indented by four columns)."""
    block: Text = []
    fenced = False
    for number, line in [*lines, (0, "")]:
        fence = line.lstrip().startswith(("```", "~~~"))
        fenced ^= fence
        item = ITEM.match(line)
        skipped = fenced or fence or line.lstrip().startswith(("#", "|")) or not line.strip()
        if (skipped or item) and block:
            yield block
            block = []
        if not skipped and (item or block or not line.startswith("    ")):
            block.append((number, line[item.end() :] if item else line.strip()))


def without_code(text: str) -> str:
    """The text, as long as before: inline code is one word of x, the address of a link is blank."""
    text = CODE.sub(lambda found: "x" * len(found.group()), text)
    return LINK.sub(lambda found: " " * len(found.group()), text)


def long_sentences(text: Text, most: int) -> Iterator[tuple[int, str]]:
    """The sentences of more than ``most`` words, each with its line number and what to print."""
    whole = "\n".join(line for _, line in text)
    counted = without_code(whole)
    start = 0
    for end in [*(found.end() for found in END.finditer(counted)), len(whole)]:
        n_words = len(WORD.findall(counted, start, end))
        if n_words > most:
            sentence = " ".join(whole[start:end].split())
            yield text[whole.count("\n", 0, start)][0], f"{n_words} words: {sentence[:100]}…"
        start = end


def long_cells(lines: Iterable[Line], most: int) -> Iterator[tuple[int, str]]:
    """The cells of tables of more than ``most`` characters, addresses of links apart."""
    for number, line in lines:
        if line.lstrip().startswith("|"):
            for cell in re.split(r"(?<!\\)\|", LINK.sub("", line)):
                if len(cell.strip()) > most:
                    yield number, f"{len(cell.strip())} characters in a cell: {cell.strip()[:100]}…"


def strings(call: ast.Call) -> Iterator[Line]:
    """The texts that a call is given, f-strings with an x for each value."""
    for given in [*call.args, *(keyword.value for keyword in call.keywords)]:
        parts = given.values if isinstance(given, ast.JoinedStr) else [given]
        if isinstance(given, ast.JoinedStr) or (isinstance(given, ast.Constant) and isinstance(given.value, str)):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in parts)
            if len(text.split()) >= N_TEXT_WORDS:
                yield given.lineno, text


def python_texts(source: str) -> Iterator[Text]:
    """Paragraphs of the docstrings, and of the texts in calls."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node, clean=False):
                first, indent = node.body[0].lineno, " " * node.body[0].col_offset
                lines = [line.removeprefix(indent) for line in docstring.splitlines()]
                yield from texts(enumerate(lines, first))
        elif isinstance(node, ast.Call):
            for number, text in strings(node):
                yield from texts((number, line) for line in text.splitlines())


def comments(source: str) -> Iterator[Line]:
    """The lines of a .proto file, each without its code."""
    for number, line in enumerate(source.splitlines(), 1):
        yield number, line.partition("//")[2].removeprefix(" ")


def offenders(name: str, n_words: int, n_characters: int) -> list[tuple[int, str]]:
    """What is too long in a file, in the order of its lines."""
    source = (ROOT / name).read_text(encoding="utf-8")
    lines = list(enumerate(source.splitlines(), 1))
    found: list[tuple[int, str]] = []
    if name.endswith(".py"):
        blocks = python_texts(source)
    elif name.endswith(".proto"):
        blocks = texts(comments(source))
    else:
        blocks = texts(lines)
        found += long_cells(lines, n_characters)
    for block in blocks:
        found += long_sentences(block, n_words)
    return sorted(found)


def main() -> int:
    """Print what is too long, a line each; 1 where there is any."""
    parser = argparse.ArgumentParser(description="Find long sentences and long table cells.")
    parser.add_argument("--words", type=int, default=35, help="the most words of a sentence (default: %(default)s)")
    parser.add_argument("--cell", type=int, default=160, help="the most characters of a cell (default: %(default)s)")
    options = parser.parse_args()
    code = [name for name in files("*.py") if not name.startswith("tests/") and "_pb2" not in name]
    n_found = 0
    for name in [*files(*PAGES), CONTRACT, *code]:
        for number, what in offenders(name, options.words, options.cell):
            sys.stdout.write(f"{name}:{number}: {what}\n")
            n_found += 1
    return 1 if n_found else 0


if __name__ == "__main__":
    sys.exit(main())
