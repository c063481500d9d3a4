"""What must be installed for a conversion. Checked before any of it is imported."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

_PACKAGES = (
    "click", "h5py", "joblib", "lz4", "onnx", "onnxruntime", "platformdirs", "skimage", "tensorflow", "tf2onnx",
    "unearth",
)  # fmt: skip
_ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


def fault() -> str | None:
    """What to say where a package of the extra ``convert`` cannot be imported; None where all can be."""
    if not _is_there("onnxruntime") and (versions := _onnx_runtimes()):
        return f"facenet-convert cannot use {' and '.join(versions)}: its files are incomplete. {_repair(versions)}"
    absent = [package for package in _PACKAGES if not _is_there(package)]
    if not absent:
        return None
    return f'facenet-convert needs its extra packages ({absent[0]}): {_pip()} install "facenet-serve[convert]"'


def conflict() -> str | None:
    """What to say where both distributions of ONNX Runtime are installed; None where at most one is.

    They write the same files, so removing one of them breaks the other one.
    """
    versions = _onnx_runtimes()
    if len(versions) < 2:
        return None
    return (
        f"{' and '.join(versions)} are both installed and overwrite each other's files. Keep onnxruntime-gpu, which "
        f"also runs on CPUs, and remove onnxruntime. {_repair(versions)}"
    )


def _is_there(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # without an origin it is a folder that an uninstall left


def _onnx_runtimes() -> list[str]:
    """The installed distributions of ONNX Runtime, by name and version."""
    found = []
    for name in _ONNX_RUNTIMES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return found


def _repair(versions: list[str]) -> str:
    kept = versions[-1].split()[0]
    uninstall = f"{_pip()} uninstall {' '.join(_ONNX_RUNTIMES)}"
    return f"Uninstall both, then install one: {uninstall}, then {_pip()} install {kept}"


def _pip() -> str:
    """The command that installs into this environment. Without a pip in it, ``pip`` would be another environment's."""
    return "pip" if find_spec("pip") else "uv pip"
