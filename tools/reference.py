"""Write docs/reference.md, whose tables are made from the code: ``python tools/reference.py``.

Flags come from the server's Config and limits from ``Limits`` in face.proto. Statuses and reasons come from the tables
in ``facenet_server/errors.py``, request options from the SDK's TypedDicts, commands from click.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import Field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import click
import grpc
from facenet_client import _answers, _images, types
from facenet_client.cli.commands import facenet
from facenet_server.config import VARIABLE_PREFIX, Config, default_of, flag_of, range_of, settings
from facenet_server.errors import REASONS, STATUSES
from facenet_server.rpc import converters

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference.md"
CONTRACT = ROOT / "protos" / "facenet_proto" / "v1" / "face.proto"
MOST = 160  # characters of a cell

HEAD = """# Reference

`make reference` writes this page from the code, and a test compares them. [operations.md](operations.md) says what the
server does at its limits. [services.md](services.md) and [command-line.md](command-line.md) say how to call it.
"""
REASONS_TEXT = """The code is a `google.rpc.Code`. The error sits on its item's result. With code 3 or 5 the same item
fails again: the caller sends another one, or other options. With 4, 8 or 14 it may succeed later. For 13: `INTERNAL`.
[images.md](images.md) says which file gets which reason.
"""

Cells = Sequence[str]


# ---- Markdown ----


def table(head: Cells, rows: Iterable[Cells]) -> str:
    """A table. A last cell that is too long goes on in rows of its own."""
    lines = [head, ["---"] * len(head)]
    for *cells, text in rows:
        first, *others = cut(text) or [""]
        lines += [[*cells, first], *([*([""] * len(cells)), other] for other in others)]
    return "".join(_line(cells) for cells in lines)


def _line(cells: Cells) -> str:
    return re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")


def cut(text: str) -> list[str]:
    """A text in pieces that are short enough for a cell, each of whole sentences where they are short enough."""
    pieces = [""]
    for sentence in re.split(r"(?<=[.;]) ", text):
        for part in textwrap.wrap(sentence, MOST, break_long_words=False, break_on_hyphens=False) or [""]:
            joined = f"{pieces[-1]} {part}".strip()
            pieces = [*pieces[:-1], joined] if len(joined) <= MOST else [*pieces, part]
    return [piece for piece in pieces if piece]


def code(text: str) -> str:
    """A text as inline code; none where there is none."""
    return f"`{text}`" if text else ""


def plain(docstring: str) -> str:
    """A docstring in one line, with Markdown's inline code."""
    return " ".join(docstring.replace("``", "`").split())


# ---- flags ----


def flags(of: Iterable[Field[Any]]) -> Iterator[str]:
    """The server's flags, a table for each group; the advanced ones stand behind the others."""
    groups: dict[str, list[Field[Any]]] = {}
    for each in of:
        groups.setdefault(each.metadata["group"], []).append(each)
    for group, members in groups.items():
        yield f"### {group.capitalize()}\n"
        members = sorted(members, key=lambda each: bool(each.metadata["advanced"]))
        yield table(("flag", "variable", "default", "range", "what"), map(_flag, members))


def _flag(each: Field[Any]) -> Cells:
    flag = code(flag_of(each))
    if each.type is bool:
        flag += f", {code(flag_of(each).replace('--', '--no-'))}"
    advanced = "Advanced. " if each.metadata["advanced"] else ""
    variable, text = code(VARIABLE_PREFIX + each.name.upper()), advanced + plain(each.metadata["help"])
    choices = ", ".join(map(code, each.metadata.get("choices", ())))
    return flag, variable, default_of(each), choices or range_of(each), text


# ---- statuses, reasons, limits ----


def statuses() -> str:
    """What calls end with."""
    rows = ((code(name), _call_error(name, when), caller, operator, when) for name, when, caller, operator in STATUSES)
    return table(("status", "in the SDK", "the caller", "the operator", "when"), rows)


def _call_error(status: str, when: str) -> str:
    details = _answers.BROKEN_CALL if _answers.BROKEN_CALL in when else ""
    return code(type(_answers.call_error("", grpc.StatusCode[status], details)).__name__)


def reasons() -> str:
    """What items end with: reasons of the server, and of the SDK."""
    rows = [
        (code(reason), str(converters.CODES[kind]), code(_answers.ITEM_ERRORS[reason].__name__), operator, text)
        for reason, (kind, text, operator) in REASONS.items()
    ]
    own = _images.unusable("")
    rows.append((code(own.reason), str(own.code), code(type(own).__name__), "", plain(_images.unusable.__doc__ or "")))
    return table(("reason", "code", "in the SDK", "the operator", "what"), rows)


def limits() -> str:
    """The limits that GetServerInfo tells."""
    config, rows, by_name = Config().with_streams_for(None), list[Cells](), {each.name: each for each in fields(Config)}
    told = converters.server_info(converters.About("", (), (), ""), config).limits
    for name, text in messages_fields("Limits"):
        setting = by_name.get(name) or by_name[name.replace("bytes", "mib").replace("pixels", "megapixels")]
        follows = re.sub(r"--[a-z-]+", r"`\g<0>`", setting.metadata.get("follows", "fixed"))
        flag = code(flag_of(setting)) if setting.metadata["flag"] else follows
        fewer = ", or fewer" if name == "max_streams" else ""
        rows.append((code(name), flag, f"{getattr(told, name):,}{fewer}", text))
    return table(("field", "flag", "default", "what"), rows)


def messages_fields(message: str) -> Iterator[tuple[str, str]]:
    """Each field of a message of the contract, with its comment."""
    body = CONTRACT.read_text("utf-8").partition(f"\nmessage {message} {{\n")[2].partition("\n}")[0]
    comment = list[str]()
    for line in body.splitlines():
        if line.strip().startswith("//"):
            comment.append(line.strip().removeprefix("//").strip())
        elif found := re.match(r"\s*(?:optional |repeated )?[\w.]+ (\w+) = \d+;", line):
            yield found[1], " ".join(comment)
            comment = []


# ---- options ----


def options() -> Iterator[str]:
    """The SDK's request options, a table for each TypedDict."""
    for node in ast.parse(inspect.getsource(types)).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Options"):
            bases = [ast.unparse(base) for base in node.bases if ast.unparse(base) != "TypedDict"]
            also = "".join(f" It has those of `{base}`, too." for base in bases)
            yield f"### {node.name}\n\n{plain(ast.get_docstring(node) or '')}{also}\n"
            yield table(("option", "type", "what"), _documented(node.body))


def _documented(body: Sequence[ast.stmt]) -> Iterator[Cells]:
    for given, text in pairwise(body):
        if isinstance(given, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            kind = ast.unparse(given.annotation)
            names = ", ".join(code(f'"{name}"') for name in get_args(getattr(types, kind, None)))
            yield (
                code(ast.unparse(given.target)),
                names or code(kind.replace(" | ", " or ")),
                plain(str(text.value.value)),
            )


# ---- commands ----


def commands(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[str]:
    """A command, or a group and each of its commands: how it is called, what it does, its options."""
    context = click.Context(command, info_name=name, parent=parent)
    shown = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    arguments = [each.make_metavar(context) for each in command.params if isinstance(each, click.Argument)]
    usage = " ".join([context.command_path, *arguments])
    what = plain((command.help or "").split("\n\n")[0])
    yield f"### {context.command_path}\n\n`{usage}`{': ' if what else ''}{what}\n"
    if rows := [_option(each) for each in shown if each.name != "version"]:
        yield table(("option", "value", "what"), rows)
    if isinstance(command, click.Group):
        for its in command.list_commands(context):
            if (found := command.get_command(context, its)) is not None:
                yield from commands(found, its, context)


def _convert() -> click.Command:
    """The command of models, which ends the process where TensorFlow is not installed."""
    from facenet_convert.__main__ import main

    return main


def _option(option: click.Option) -> Cells:
    said = (option.help or "") + "  [required]" * option.required
    if option.show_default and option.default is not None and "[default:" not in said:
        said = f"{said}  [default: {option.default}]"
    names = ", ".join(map(code, [*option.opts, *option.secondary_opts]))
    return names, "" if option.is_flag else values(option.type), plain(said)


def values(kind: Any) -> str:
    """What values a click type takes."""
    match kind:
        case click.Choice():
            return ", ".join(map(code, map(str, kind.choices)))
        case click.Tuple():
            return f"{len(kind.types)} numbers, each {values(kind.types[0])}"
        case click.IntRange() | click.FloatRange():
            whole = "whole number" if isinstance(kind, click.IntRange) else "number"
            least = "" if kind.min is None else f" {'>' if kind.min_open else '≥'} {kind.min:g}"
            most = "" if kind.max is None else f", {'<' if kind.max_open else '≤'} {kind.max:g}"
            return whole + least + most
        case click.Path():
            return "folder" if not kind.file_okay else "file" if not kind.dir_okay else "path"
    return {"integer": "whole number", "float": "number"}.get(str(kind.name), str(kind.name))


# ---- the page ----


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    parts += [
        "## Server flags\n",
        "`facenet-server --help` has them, too. A flag wins over its variable.\n",
        *flags(settings()),
    ]
    parts += [
        "## Statuses of calls\n",
        statuses(),
    ]
    parts += ["## Reasons of items\n", REASONS_TEXT, reasons()]
    parts += [
        "## Limits\n",
        "`GetServerInfo` and `facenet info` give them. A limit that is fixed has no flag.\n",
        limits(),
    ]
    parts += ["## Request options\n", "An option that is not given takes the default, in round brackets.\n", *options()]
    parts += ["## Commands\n", "Options of `facenet` may stand behind its commands, too.\n"]
    parts += [*commands(facenet, "facenet"), *commands(_convert(), "facenet-convert")]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
