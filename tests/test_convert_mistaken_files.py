"""Files that are given to ``facenet-convert facenet --source`` by mistake: each is named for what it is."""

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from facenet_convert import mistaken_files, weights
from PIL import Image
from tiny_models import tiny_model

DRIVE_PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"


def a_zip(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"{}")
    return content.getvalue()


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    content = io.BytesIO()
    save(content)
    return content.getvalue()


def a_photo(form: str) -> bytes:
    return saved(lambda file: Image.new("RGB", (8, 8)).save(file, form))


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize(
    ("content", "what", "advice"),
    [
        pytest.param(b"", "an empty file", "get it again", id="empty"),
        pytest.param(DRIVE_PAGE, "a web page (HTML)", "Open the link in a browser", id="page of Google Drive"),
        pytest.param(b"\xef\xbb\xbf\n <HTML>", "a web page (HTML)", "browser", id="page in capitals"),
        pytest.param(b"\x89HDF\r\n\x1a\n" + bytes(99), "not facenet_keras.h5", "damaged copy", id="Keras .h5"),
        pytest.param(
            a_zip("metadata.json", "config.json", "model.weights.h5"), "a Keras 3 model", "--download", id="Keras 3"
        ),
        pytest.param(b"\x08\x01\x12\xff\xff\x03", "a TensorFlow SavedModel", "one .pb", id="saved_model.pb"),
        pytest.param(a_zip("x/saved_model.pb", "x/variables/"), "a TensorFlow SavedModel", "one .pb", id="its zip"),
        pytest.param(tiny_model("rnet"), "an ONNX model", "no conversion", id="ONNX"),
        pytest.param(b"\x08\x06\x12\x07pytorch\x1a\x031.7", "an ONNX model", "no conversion", id="ONNX of PyTorch"),
        pytest.param(a_zip("archive/data.pkl", "archive/data/0"), "a PyTorch file", "20180402-114759", id="PyTorch"),
        pytest.param(pickle.dumps(0x1950A86A20F9469CFC6C, 2), "a PyTorch file", "20180402-114759", id="old PyTorch"),
        pytest.param(pickle.dumps({"a": 1}), "a Python pickle", "--download", id="pickle"),
        pytest.param(b"\x1c\x00\x00\x00TFL3\x14\x00", "a TensorFlow Lite model", "--download", id="TensorFlow Lite"),
        pytest.param(saved(lambda file: np.save(file, np.ones(3))), "NumPy arrays", "convert mtcnn", id="npy"),
        pytest.param(saved(lambda file: np.savez(file, a=np.ones(3))), "NumPy arrays", "convert mtcnn", id="npz"),
        *(
            pytest.param(a_photo(form), "an image", "facenet detect", id=form)
            for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
        ),
        pytest.param(b"\x00\x00\x00\x18ftypheic", "an image", "facenet detect", id="HEIC"),
    ],
)
@pytest.mark.parametrize("name", ["20180402-114759.pb", "20180402-114759.zip"])
def test_a_mistaken_file_is_named_whatever_its_name_says(
    content: bytes, what: str, advice: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    told = mistaken_files.explain(tmp_path / name)
    assert told is not None
    (line,) = told.splitlines()
    assert f"{tmp_path / name} is " in line
    assert what in line
    assert "--source takes a frozen graph (.pb), a checkpoint" in line
    assert advice in line


def test_the_folder_of_a_saved_model_is_named(tmp_path: Path) -> None:
    for name in ("saved_model.pb", "keras_metadata.pb", "fingerprint.pb"):
        (tmp_path / name).write_bytes(b"\x08\x01\x12\x00")
    assert "is a TensorFlow SavedModel" in str(mistaken_files.explain(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x0a\x1e\x0a\x05input\x12\x0bPlaceholder", id="frozen graph"),
        pytest.param(a_zip("x/x.pb", "x/model-x.meta"), id="zip of a release"),
        pytest.param(a_zip("x/x.pb")[:-30], id="truncated zip"),
        pytest.param(b"\x1f\x8b\x08\x00", id="source distribution"),
        pytest.param(b"something else", id="unknown"),
    ],
)
def test_what_may_be_a_source_is_left_to_its_reader(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(content)
    assert mistaken_files.explain(tmp_path / "source") is None


def test_the_folder_of_a_checkpoint_is_left_to_its_reader(tmp_path: Path) -> None:
    for name in ("model-x.meta", "model-x.ckpt-9.index", "model-x.ckpt-9.data-00000-of-00001", "saved_model.pb"):
        (tmp_path / name).touch()
    assert mistaken_files.explain(tmp_path) is None


def test_a_keras_file_is_known_by_its_content_and_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "renamed.bin").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "page.h5").write_bytes(DRIVE_PAGE)
    assert weights.is_at(tmp_path / "renamed.bin", weights.FACENET_20170512)
    assert not weights.is_at(tmp_path / "renamed.bin", weights.FACENET_20180408)
    assert not weights.is_at(tmp_path / "page.h5", weights.FACENET_20170512)


# ---- the command ----


def convert(source: Path, out: Path) -> str:
    """Run the command, which must fail; all that it prints."""
    pytest.importorskip("tensorflow", reason="the command needs TensorFlow: `make install`")
    from facenet_convert.__main__ import main

    ended = CliRunner().invoke(main, ["facenet", "--source", str(source), "--out", str(out)])
    assert ended.exit_code == 1
    assert not out.exists()
    return str(ended.output)


def test_the_command_names_a_mistaken_file_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "20180402-114759.zip").write_bytes(DRIVE_PAGE)
    (line,) = convert(tmp_path / "20180402-114759.zip", tmp_path / "out").splitlines()
    assert line.startswith(f"Error: {tmp_path / '20180402-114759.zip'} is a web page (HTML). ")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    assert "is a Python pickle" in convert(tmp_path / "net.pth", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.h5", "a Keras (HDF5) file, but not facenet_keras.h5"),
        ("model.keras", "a Keras 3 model"),
        ("folder", "a TensorFlow SavedModel"),
        ("folder/saved_model.pb", "a TensorFlow SavedModel"),
        ("model.tflite", "a TensorFlow Lite model"),
    ],
)
def test_what_tensorflow_itself_writes_is_named(name: str, what: str, tensorflows_files: Path) -> None:
    assert f"is {what}" in convert(tensorflows_files / name, tensorflows_files / "out")


@pytest.fixture(scope="module")
def tensorflows_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small network in all forms that TensorFlow writes today."""
    tf = pytest.importorskip("tensorflow", reason="TensorFlow writes these files: `make install`")
    folder = tmp_path_factory.mktemp("tensorflow")
    with warnings.catch_warnings(action="ignore"):  # of what TensorFlow and Keras use of each other
        model = tf.keras.Sequential([tf.keras.Input((2,)), tf.keras.layers.Dense(1)])
        model.save(folder / "model.keras")
        model.save(folder / "model.h5")
        tf.saved_model.save(tf.Module(), str(folder / "folder"))
        lite = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    (folder / "model.tflite").write_bytes(lite)
    return folder
