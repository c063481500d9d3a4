"""The models folder's list of files: each with its SHA-256, and which embedder is the default one."""

import json
from pathlib import Path
from typing import Any

from facenet_server.errors import StartError

NAME = "manifest.json"
MAKE_ANEW = "make it anew with `facenet-convert all --force --out {}`"


def stated_default(folder: Path) -> str:
    """The embedder that the folder's manifest states as the default one; empty where it states none.

    Raises StartError where the manifest cannot be read.
    """
    return str(_read(folder).get("default_embedder") or "")


def files(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file, by its name. Raises StartError."""
    try:
        listed = _read(folder)["files"]
        return {name: str(listed[name]["sha256"]) for name in sorted(listed)}
    except (KeyError, TypeError) as error:
        raise _unreadable(folder, error) from error


def _read(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / NAME).read_text()))
    except FileNotFoundError:
        raise StartError(f"no {folder / NAME}: make the models with `facenet-convert all --out {folder}`") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> StartError:
    return StartError(f"cannot read {folder / NAME}: {error}; {MAKE_ANEW.format(folder)}")
