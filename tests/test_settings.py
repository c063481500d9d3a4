"""The server's settings: how its help shows them, and which values it takes."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from facenet_server.config import (
    GROUPS,
    Config,
    default_of,
    fault_of,
    flag_of,
    range_of,
    settings,
    unknown_variables,
)
from facenet_server.errors import StartError

from chaos.children import environment

PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = ("reference.md", "CHANGELOG.md")  # flags of `facenet`, and flags that are no more
_MOST_FIRST = 15  # options that a user sets first: what is read at once
_HEADING = re.compile(r"^(\S[^\n]*):$", re.MULTILINE)
_FLAG = re.compile(r"^  (--[a-z0-9-]+)", re.MULTILINE)
_PARSED = """
import json, sys
import click
from facenet_server.__main__ import main

def refusal(*words):
    try:
        main.make_context("facenet-server", list(words))
    except click.UsageError as error:
        return error.format_message()
    return ""

print(json.dumps([refusal(*words) for words in json.loads(sys.argv[1])]))
"""
_RANGED = [setting for setting in settings() if "least" in setting.metadata]


def run(*arguments: str) -> str:
    """What the server's interpreter prints."""
    command = [sys.executable, *arguments]
    env = {**environment(), "COLUMNS": "100"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=20).stdout


@pytest.fixture(scope="module")
def help_text() -> str:
    """The help, as a terminal of 100 columns shows it."""
    return run("-m", "facenet_server", "--help")


@pytest.fixture(scope="module")
def sections(help_text: str) -> Mapping[str, str]:
    """The help's options, by heading, in order."""
    _, *parts = _HEADING.split(help_text)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def values_about(setting: Field[Any]) -> tuple[list[str], list[str]]:
    """The ends of a setting's range; values just beyond, and such as are no number."""
    least, most = setting.metadata["least"], setting.metadata["most"]
    step = 0.001 if setting.type is float else 1
    beyond = [least - step, most + step, *(["nan", "inf"] if setting.type is float else [])]
    return [str(least), str(most)], list(map(str, beyond))


def test_the_help_shows_each_setting_once_and_in_its_group(sections: Mapping[str, str]) -> None:
    shown = {heading: _FLAG.findall(text) for heading, text in sections.items() if heading != "Help"}
    expected: dict[str, list[str]] = {}
    for setting in settings():
        group = setting.metadata["group"]
        heading = f"Advanced: {group}" if setting.metadata["advanced"] else group.capitalize()
        expected.setdefault(heading, []).append(flag_of(setting))
    assert shown == expected
    assert _FLAG.findall(sections["Help"]) == ["--version"]


def test_the_groups_come_in_order_and_what_is_advanced_after_them(sections: Mapping[str, str]) -> None:
    first = [group.capitalize() for group in GROUPS]
    assert list(sections) == [*first, *(f"Advanced: {group}" for group in GROUPS), "Help"]


def test_about_a_dozen_settings_are_not_advanced() -> None:
    assert 10 <= sum(not setting.metadata["advanced"] for setting in settings()) <= _MOST_FIRST


@pytest.mark.parametrize("setting", settings(), ids=flag_of)
def test_a_help_text_names_flags_as_they_are_typed(setting: Field[Any]) -> None:
    text, flags = setting.metadata["help"], {flag_of(each) for each in settings()}
    assert not re.search(r"[a-z0-9]_[a-z]", text), "a field's name"
    assert set(re.findall(r"--[a-z0-9-]+[a-z0-9]", text)) <= flags


@pytest.mark.parametrize("setting", settings(), ids=flag_of)
def test_the_help_shows_a_settings_default_and_range(setting: Field[Any], sections: Mapping[str, str]) -> None:
    (entry,) = [
        entry
        for text in sections.values()
        for entry in re.split(r"\n(?=  -)", text)
        if re.match(rf"\n*  {flag_of(setting)}\b(?!-)", entry)
    ]
    default = f"default: {default_of(setting)}" if default_of(setting) else ""
    told = "; ".join(filter(None, (default, range_of(setting))))
    assert (f"[{told}]" in " ".join(entry.split()).replace("- ", "-")) is bool(told)


@pytest.mark.parametrize(
    ("name", "default"),
    [("max_message_mib", "26 MiB"), ("grace_s", "30 s"), ("max_wait_s", "0.01 s"), ("max_items_per_message", "64"),
     ("threads", "0, one per usable core"), ("tokens", ""), ("tf32", "off"), ("models", "models")],
)  # fmt: skip
def test_a_default_is_told_in_words_and_with_its_unit(name: str, default: str) -> None:
    assert default_of(Config.__dataclass_fields__[name]) == default


def test_every_number_has_a_range() -> None:
    assert {setting.name for setting in settings() if setting.type in (int, float)} | {"workers"} == {
        setting.name for setting in _RANGED
    }


@pytest.mark.parametrize("setting", _RANGED, ids=flag_of)
def test_a_server_built_by_argument_takes_a_range_with_its_ends_and_nothing_beyond(setting: Field[Any]) -> None:
    taken, refused = values_about(setting)
    kind: Any = setting.type
    for value in taken:
        Config(**{setting.name: kind(value)}).check()
    for value in refused:
        with pytest.raises(StartError, match=rf"^{flag_of(setting)} must be {range_of(setting)}\b.*, not "):
            Config(**{setting.name: kind(value)}).check()


def test_the_command_line_takes_the_same_ranges() -> None:
    taken = [(flag_of(setting), value) for setting in _RANGED for value in values_about(setting)[0]]
    refused = [(flag_of(setting), value) for setting in _RANGED for value in values_about(setting)[1]]
    told = json.loads(run("-c", _PARSED, json.dumps([*taken, *refused])))
    assert told[: len(taken)] == [""] * len(taken)
    by_flag = {flag_of(setting): range_of(setting) for setting in _RANGED}
    for (flag, _), line in zip(refused, told[len(taken) :], strict=True):
        assert f"'{flag}'" in line
        assert f"must be {by_flag[flag]}" in line


@pytest.mark.parametrize("workers", ["auto", "0", "12"])
def test_workers_are_a_number_or_chosen_by_the_server(workers: str) -> None:
    assert not fault_of(Config.__dataclass_fields__["workers"], workers)


@pytest.mark.parametrize("workers", ["many", "", "1.5", "-1", "1e2"])
def test_workers_that_are_no_number_are_refused(workers: str) -> None:
    with pytest.raises(StartError, match="--workers must be auto, or 0 to 1,024, not"):
        Config(workers=workers).check()


@pytest.mark.parametrize(
    "name", [name for name in Config.__dataclass_fields__ if name not in {s.name for s in settings()}]
)
def test_what_is_set_by_argument_alone_is_no_variable(name: str) -> None:
    (line,) = unknown_variables([f"FACENET_{name.upper()}"])
    follows = Config.__dataclass_fields__[name].metadata.get("follows")
    assert line.endswith(f"is no setting: it follows {follows}" if follows else "is no setting: the server chooses it")


@pytest.mark.parametrize("name", ["device", "share_levels", "share_windows", "log_level"])
def test_what_is_none_of_the_choices_is_refused(name: str) -> None:
    with pytest.raises(StartError, match="must be one of"):
        Config(**{name: "bogus"}).check()  # type: ignore[arg-type]


def test_the_error_of_a_wrong_variable_names_it() -> None:
    env = {**environment(), "FACENET_MAX_BATCH_ROWS": "abc"}
    told = subprocess.run([sys.executable, "-m", "facenet_server"], env=env, capture_output=True, text=True, timeout=20)
    assert (told.returncode, "FACENET_MAX_BATCH_ROWS" in told.stderr) == (2, True)


def test_by_default_the_derived_limits_are_those_of_the_documents() -> None:
    config = Config()
    assert (config.image_mib, config.candidates) == (25, 20_000)
    assert (config.images_per_stream, config.items_per_stream, config.items_per_caller) == (16, 256, 1024)


def test_limits_follow_those_that_they_are_derived_from() -> None:
    config = Config(
        max_message_mib=101,
        max_pyramid_megapixels=50,
        max_images_in_flight=64,
        max_items_per_message=100,
        max_items_in_flight=1,
    )
    assert (config.image_mib, config.candidates) == (100, 40_000)
    assert (config.images_per_stream, config.items_per_stream, config.items_per_caller) == (32, 400, 1)


def test_a_derived_limit_can_be_given_by_argument() -> None:
    assert Config(max_items_per_caller=7).items_per_caller == 7


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ELSEWHERE], ids=lambda page: page.name)
def test_the_pages_name_limits_that_are_there(page: Path) -> None:
    flags = {flag_of(setting) for setting in settings()}
    assert set(re.findall(r"--(?:max|share)-[a-z-]*[a-z]", page.read_text())) <= flags
