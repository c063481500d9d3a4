"""The FaceNet releases of davidsandberg/facenet, and how a file on disk is told to be one of them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from facenet_convert.errors import SourceError
from facenet_convert.weights import FACENET_20180408

PREPROCESSINGS = ("fixed", "prewhiten")


@dataclass(frozen=True, slots=True)
class Release:
    """A published model: its name, the dimension of its embeddings, how it wants pixels scaled, and its published
    id on Google Drive."""

    name: str
    dimension: int
    preprocessing: str
    drive_id: str = ""


MS_CELEB_20170512 = Release(
    name="20170512-110547",
    dimension=128,
    preprocessing="prewhiten",
    drive_id="0B5MzpY9kBtDVZ2RpVDYwWmxoSUk",
)
CASIA_20180408 = Release(
    name="20180408-102900",
    dimension=512,
    preprocessing="fixed",
    drive_id="1R77HmFADxe87GmoLwzfgMu_HY0IhcyBz",
)
RELEASES = {
    release.name: release
    for release in (
        Release("20170511-185253", 128, "prewhiten", drive_id="0B5MzpY9kBtDVOTVnU3NIaUdySFE"),
        MS_CELEB_20170512,
        CASIA_20180408,
        Release("20180402-114759", 512, "fixed", drive_id="1EXPBSXwTaqrSC0OhUdXNmKSh9qJUQ55-"),
    )
}

_CONTENTS = {FACENET_20180408.sha256: CASIA_20180408.name}
"""Known files under whatever name."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def identify(file_names: Iterable[str], sha256: str, name: str | None, preprocessing: str | None) -> Release:
    """The release that a source is, by the names and the content of its files and by what its owner says.

    A model that is none of RELEASES gets the given name, or the first file's, the given preprocessing, and
    dimension 0: not known yet. Raises SourceError for contradictions, and where the preprocessing of such a model
    is not given: the wrong one still gives embeddings, only worse ones, so it is never guessed.
    """
    stems = [_stem(file_name) for file_name in file_names]
    known = RELEASES.keys() & {*stems, _CONTENTS.get(sha256, "")}
    if name is not None:
        known = known | {name} if name in RELEASES else set()
    if len(known) > 1:
        raise SourceError(f"which release is it? Names and content say {' and '.join(sorted(known))}")
    if known:
        return _known(RELEASES[known.pop()], preprocessing)
    name = name or stems[0]
    if not _NAME.fullmatch(name):
        raise SourceError(f"{name!r} cannot be a model's name; pass another one with --name")
    if preprocessing is None:
        raise SourceError(
            f"{name} is no known release ({', '.join(RELEASES)}; --name tells which one it is). For another model "
            "pass the preprocessing that it was trained with: --preprocess fixed, which is (x − 127.5)/128, or "
            "--preprocess prewhiten, which is by each image's mean and standard deviation"
        )
    return Release(name, 0, preprocessing)


def _known(release: Release, preprocessing: str | None) -> Release:
    if preprocessing not in (None, release.preprocessing):
        raise SourceError(
            f"{release.name} was trained with --preprocess {release.preprocessing}, not {preprocessing}. "
            "If this is another model, give it another --name"
        )
    return release


def _stem(file_name: str) -> str:
    """``20180402-114759`` of ``20180402-114759.pb``, ``….zip`` and ``model-20180402-114759.meta``."""
    return re.sub(r"\.(pb|zip|meta)$", "", file_name).removeprefix("model-")
