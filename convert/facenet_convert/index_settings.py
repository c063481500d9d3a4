"""Where pip and uv are set to look for packages: their environment variables, and pip's configuration files.

The files are read here and not by pip, because an environment made by uv has no pip in it.
"""

import configparser
import os
import re
import sys
from pathlib import Path

from platformdirs import PlatformDirs

from facenet_convert.errors import FetchError

SETTINGS = ("index-url", "extra-index-url", "find-links", "no-index", "cert", "proxy", "trusted-host")
"""pip's settings that hold here."""

_SECTIONS = ("global", "download")  # of pip's files: a later one wins
_UV_VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "extra-index-url": ("UV_INDEX", "UV_EXTRA_INDEX_URL"),
    "find-links": ("UV_FIND_LINKS",),
    "trusted-host": ("UV_INSECURE_HOST",),
}


def read() -> dict[str, str]:
    """The settings of a download, by pip's names for them. Empty settings count as none.

    The variables PIP_* win over the variables UV_*, and both win over pip's files. Raises FetchError for a file that
    cannot be parsed.
    """
    found = {**_of_pip_files(), **_of_uv_variables(), **_of_pip_variables()}
    return {name: value for name, value in found.items() if name in SETTINGS}


def pip_files() -> list[Path]:
    """pip's configuration files, whether or not they exist. A later one wins."""
    own = os.environ.get("PIP_CONFIG_FILE", "")
    if own == os.devnull:  # pip's way to say: no file at all
        return []
    folders = [*_system_folders(), *([] if os.path.exists(own) else _user_folders()), Path(sys.prefix)]
    name = "pip.ini" if sys.platform == "win32" else "pip.conf"
    return [folder / name for folder in folders] + ([Path(own)] if own else [])


def _system_folders() -> list[Path]:
    folders = PlatformDirs("pip", appauthor=False, multipath=True)
    if sys.platform == "win32":
        return [Path(folders.site_config_dir)]
    if sys.platform == "darwin":
        return [Path(folder) for folder in folders.site_data_dir.split(os.pathsep)]
    return [Path(folder) for folder in (*folders.site_config_dir.split(os.pathsep), "/etc")]


def _user_folders() -> list[Path]:
    folders, home = PlatformDirs("pip", appauthor=False, roaming=True), Path(os.path.expanduser("~"))
    legacy = home / ("pip" if sys.platform == "win32" else ".pip")
    if sys.platform == "darwin" and not os.path.isdir(folders.user_data_dir):
        return [legacy, home / ".config" / "pip"]
    return [legacy, Path(folders.user_config_dir)]


def _of_pip_files() -> dict[str, str]:
    parser = configparser.RawConfigParser()
    parser.optionxform = _pip_name  # type: ignore[method-assign,assignment]  # the documented way to set it
    for file in pip_files():
        try:
            parser.read(file)
        except (configparser.Error, UnicodeDecodeError) as error:  # its text may hold the credentials of an index
            problem = f"cannot read pip's configuration file {file}: {type(error).__name__}"
            raise FetchError(f"{problem}. Correct it, or name another one in PIP_CONFIG_FILE") from None
    found: dict[str, str] = {}
    for section in filter(parser.has_section, _SECTIONS):
        found |= {name: value for name, value in parser.items(section) if value}
    return found


def _of_uv_variables() -> dict[str, str]:
    found = {}
    for name, variables in _UV_VARIABLES.items():
        values = [value for variable in variables if (value := os.environ.get(variable))]
        places = " ".join(values[:1] if name == "index-url" else values)
        if places:
            found[name] = _without_names(places.replace(",", " ") if name == "find-links" else places)
    return found


def _of_pip_variables() -> dict[str, str]:
    values = {name: os.environ.get(f"PIP_{name.upper().replace('-', '_')}") for name in SETTINGS}
    return {name: value for name, value in values.items() if value}


def _pip_name(name: str) -> str:
    """pip's name for a setting in a file: ``index-url`` also for ``INDEX_URL`` and ``--index-url``."""
    return name.lower().replace("_", "-").removeprefix("--")


def _without_names(places: str) -> str:
    """The places without the names that uv lets one give them: ``URL`` for ``name=URL``."""
    return " ".join(re.sub(r"^[\w.-]+=(?=\w+://)", "", place) for place in places.split())
