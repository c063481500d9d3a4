"""The files of a FaceNet release on disk: a frozen ``.pb`` or a checkpoint with its ``.meta``; alone, in a folder or
in the release's zip."""

import hashlib
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from facenet_convert.errors import SourceError

FORMS = ("pb", "checkpoint")

_WANTED = re.compile(r"\.(pb|meta|index|data-\d+-of-\d+)$")


@dataclass(frozen=True, slots=True)
class ReleaseFiles:
    """What a release was found to consist of. ``origin`` is the name of what holds it; ``paths`` are the ``.pb``, or
    the ``.meta``, the ``.index`` and the ``.data`` files; ``sha256`` is the digest of their contents in this order."""

    origin: str
    form: str
    paths: tuple[Path, ...]
    sha256: str

    @property
    def graph(self) -> Path:
        """The file with the graph: the ``.pb`` or the ``.meta``."""
        return self.paths[0]

    @property
    def prefix(self) -> Path:
        """The name by which TensorFlow knows a checkpoint."""
        return self.paths[1].with_suffix("")

    @property
    def names(self) -> tuple[str, str]:
        """What the release may be recognised by."""
        return self.origin, self.graph.name

    def __str__(self) -> str:
        return self.origin if self.origin == self.graph.name else f"{self.origin}: {self.graph.name}"


@contextmanager
def opened(source: Path, form: str | None) -> Iterator[ReleaseFiles]:
    """The release in a ``.pb``, a folder or a zip, in the asked form, or else frozen rather than as a checkpoint.

    A zip is unpacked for as long as the context lasts. Raises SourceError where there is no such release, or more
    than one.
    """
    if source.is_dir():
        yield _found(source.resolve().name, sorted(source.iterdir()), form)
    elif source.suffix == ".zip" or zipfile.is_zipfile(source):
        with tempfile.TemporaryDirectory() as folder:
            yield _found(source.name, _unpacked(source, Path(folder)), form)
    elif form == "checkpoint":
        raise SourceError(f"{source} is one file; a checkpoint is a folder or a zip with .meta, .index and .data")
    else:
        yield _hashed(source.name, "pb", [source])


def _unpacked(archive: Path, folder: Path) -> list[Path]:
    """The model files of a zip, without the folders they are in there."""
    try:
        with zipfile.ZipFile(archive) as files:
            for member in files.infolist():
                name = Path(member.filename).name
                if _WANTED.search(name) and not name.startswith("._"):  # macOS puts such shadows into zips
                    (folder / name).write_bytes(files.read(member))
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{archive} is no whole zip: {error}") from error
    return sorted(folder.iterdir())


def _found(origin: str, files: Sequence[Path], form: str | None) -> ReleaseFiles:
    frozen = [file for file in files if file.suffix == ".pb"]
    if form == "checkpoint" or (form is None and not frozen):
        return _hashed(origin, "checkpoint", _checkpoint(origin, files))
    if len(frozen) != 1:
        raise SourceError(f"{origin} holds {_listed(frozen)}; expected one .pb file: name it, or the form 'checkpoint'")
    return _hashed(origin, "pb", frozen)


def _checkpoint(origin: str, files: Sequence[Path]) -> list[Path]:
    """The ``.meta``, the ``.index`` and the ``.data`` files of the last checkpoint."""
    indexes = sorted((file for file in files if file.suffix == ".index"), key=_step)
    if not indexes:
        raise SourceError(f"{origin} holds neither a .pb file nor a checkpoint (.meta, .index and .data)")
    prefix = indexes[-1].with_suffix("").name
    data = [file for file in files if file.name.startswith(f"{prefix}.data-")]
    metas = [file for file in files if file.suffix == ".meta"]
    own = [file for file in metas if file.stem == prefix]
    if not data or len(own or metas) != 1:
        raise SourceError(
            f"{origin} holds the checkpoint {prefix} with {_listed(data)} of data and {_listed(metas)} of graph; "
            "expected .data and one .meta"
        )
    return [*(own or metas), indexes[-1], *data]


def _step(index: Path) -> int:
    found = re.search(r"-(\d+)\.index$", index.name)
    return int(found[1]) if found else 0


def _listed(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files) or "no file"


def _hashed(origin: str, form: str, paths: Sequence[Path]) -> ReleaseFiles:
    digest = hashlib.sha256()
    try:
        for path in paths:
            digest.update(path.read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    return ReleaseFiles(origin, form, tuple(paths), digest.hexdigest())
