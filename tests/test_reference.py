"""docs/reference.md is what the code says, and the code says all that it does: reasons, statuses, limits, ranges."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT
from facenet_client import _answers
from facenet_proto.v1 import face_pb2 as pb
from facenet_server import errors
from facenet_server.config import Config, flag_of, settings
from facenet_server.errors import REASONS, STATUSES
from facenet_server.rpc import converters

from tools import reference

SERVER = ROOT / "server" / "facenet_server"


def nodes(folder: Path) -> Iterator[ast.AST]:
    """All of the source files' syntax."""
    for path in sorted(folder.rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text("utf-8")))


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="facenet-convert needs TensorFlow (run `make install`)")
def test_the_page_is_what_the_code_says() -> None:
    assert reference.PAGE.read_text("utf-8") == reference.page(), "run `make reference`"


def test_every_reason_that_the_server_gives_is_described() -> None:
    raised = set[str]()
    for node in nodes(SERVER):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "InvalidInput":
            raised |= {str(each.value) for each in node.args[:1] if isinstance(each, ast.Constant)}
    of_kinds = {reason for reason, (kind, *_) in REASONS.items() if kind is not errors.InvalidInput}
    assert raised | of_kinds == set(REASONS)
    assert {each.kind for each in REASONS.values()} == set(converters.CODES)


@pytest.mark.parametrize(
    "error",
    [
        errors.UnknownModel("", []),
        errors.UnknownOperatingPoint("", []),
        errors.NoFace("a"),
        errors.Overloaded(""),
        errors.InternalError(""),
        errors.TimedOut(),
        errors.DeviceLost(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_its_own_kind_is_described_as_such(error: errors.ItemError) -> None:
    assert REASONS[error.reason].kind is type(error)


def test_the_sdk_has_an_error_for_every_reason_and_for_no_other() -> None:
    assert set(_answers.ITEM_ERRORS) == set(REASONS)


def test_every_status_that_the_server_ends_calls_with_is_described() -> None:
    given = {
        node.attr
        for node in nodes(SERVER / "rpc")
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "grpc.StatusCode"
    }
    assert given <= {status for status, *_ in STATUSES}


def test_every_limit_of_the_contract_has_its_flag_and_its_comment() -> None:
    found = dict(reference.messages_fields("Limits"))
    assert list(found) == [each.name for each in pb.Limits.DESCRIPTOR.fields]
    assert all(found.values())
    told = [line.split(" | ")[1] for line in reference.limits().splitlines()[2:]]
    flags = {flag for text in told for flag in re.findall(r"--[a-z-]+", text)}
    assert flags <= set(map(flag_of, settings()))
    assert "`--max-streams`" in reference.limits()


def test_a_limit_that_follows_from_a_flag_is_what_the_page_says() -> None:
    config = Config(
        max_message_mib=11, max_pyramid_megapixels=7, max_images_in_flight=40, max_items_in_flight=90,
        max_items_per_message=5,
    )  # fmt: skip
    told = converters.server_info(converters.About("", (), (), ""), config.with_streams_for(None)).limits
    expected = {
        "max_image_mib": ("--max-message-mib, less 1 MiB", told.max_image_bytes >> 20, 10),
        "max_candidates": ("800 × --max-pyramid-megapixels", told.max_candidates, 5600),
        "max_images_per_stream": ("half of --max-images-in-flight", told.max_images_per_stream, 20),
        "max_items_per_caller": ("half of --max-items-in-flight", told.max_items_per_caller, 45),
        "max_items_per_stream": ("4 × --max-items-per-message", told.max_items_per_stream, 20),
    }
    assert {each.name: each.metadata["follows"] for each in fields(Config) if "follows" in each.metadata} == {
        name: text for name, (text, *_) in expected.items()
    }
    assert [it for _, it, _ in expected.values()] == [value for *_, value in expected.values()]


def test_texts_of_statuses_and_reasons_name_flags_that_are_there() -> None:
    texts = [text for row in (*STATUSES, *REASONS.values()) for text in row if isinstance(text, str)]
    named = {flag for text in texts for flag in re.findall(r"--[a-z][a-z-]+", text)}
    assert named <= set(map(flag_of, settings()))


@dataclass
class Settings:
    """Settings with groups, as Config has them."""

    port: int = field(
        default=1,
        metadata={"help": "Where.", "group": "listening", "advanced": False, "flag": True, "least": 0, "most": 9},
    )
    max_wait_s: float = field(
        default=0.5,
        metadata={"help": "How ``long``.", "group": "limits", "advanced": True, "flag": True, "unit": "s"},
    )
    near: bool = field(default=False, metadata={"help": "How far.", "group": "limits", "advanced": False, "flag": True})


def test_settings_stand_in_their_groups_and_advanced_ones_behind() -> None:
    head = "| flag | variable | default | range | what |\n| --- | --- | --- | --- | --- |\n"
    assert list(reference.flags(fields(Settings))) == [
        "### Listening\n",
        head + "| `--port` | `FACENET_PORT` | 1 | 0 to 9 | Where. |\n",
        "### Limits\n",
        head
        + "| `--near`, `--no-near` | `FACENET_NEAR` | off | | How far. |\n"
        + "| `--max-wait-s` | `FACENET_MAX_WAIT_S` | 0.5 s | | Advanced. How `long`. |\n",
    ]


def test_a_text_that_is_too_long_for_a_cell_goes_on_in_the_next_row() -> None:
    first, second = "This is one sentence. " * 7, "Here is another one, as long as they come."
    lines = reference.table(("flag", "what"), [("`--a`", first + second)]).splitlines()
    assert lines[2:] == [f"| `--a` | {first.strip()} |", f"| | {second} |"]
