"""Which device the networks get, and what an operator is told who does not get a GPU. No test needs one."""

import logging
from pathlib import Path

import onnxruntime
import pytest
from facenet_server.errors import StartError
from facenet_server.models.loader import open_models
from facenet_server.models.runtime import (
    Cuda,
    Engine,
    clash_of,
    execution_providers,
    find_cuda,
    installed_runtimes,
    missing_for,
    needed_libraries,
    unloadable,
)

NO_DRIVER = Cuda(driver=None, has_provider=True)
HIDDEN = Cuda(driver=100, has_provider=True)
BROKEN = Cuda(driver=803, has_provider=True)
CPU_BUILD = Cuda(driver=0, has_provider=False)
NO_LIBRARIES = Cuda(driver=0, has_provider=True, unloadable=("libcublasLt.so.13", "libcudnn.so.9"))
WHOLE = Cuda(driver=0, has_provider=True)
BOTH = ("onnxruntime", "onnxruntime-gpu")


def names(engine: Engine, cuda: Cuda, runtimes: tuple[str, ...] = ()) -> list[str]:
    return [name for name, _ in execution_providers(engine, cuda, runtimes)]


def test_auto_takes_a_gpu_that_can_be_had_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert names(Engine("auto", 1), WHOLE) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert not caplog.records


@pytest.mark.parametrize("cuda", [CPU_BUILD, NO_LIBRARIES], ids=["CPU build", "no libraries"])
def test_auto_warns_of_a_gpu_that_it_cannot_use_and_names_the_extra(
    cuda: Cuda, caplog: pytest.LogCaptureFixture
) -> None:
    assert names(Engine("auto", 1), cuda) == ["CPUExecutionProvider"]
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert 'pip install "facenet-serve[cuda]"' in told.getMessage()


def test_libraries_that_cannot_be_loaded_are_named() -> None:
    assert "libcublasLt.so.13, libcudnn.so.9" in str(missing_for(NO_LIBRARIES))


def test_a_driver_that_does_not_work_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    names(Engine("auto", 1), BROKEN)
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert "803" in told.getMessage()


@pytest.mark.parametrize("cuda", [NO_DRIVER, HIDDEN], ids=["no driver", "hidden"])
def test_a_machine_without_a_gpu_is_no_warning(cuda: Cuda, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert names(Engine("auto", 1), cuda) == ["CPUExecutionProvider"]
    assert [told.levelno for told in caplog.records] == [logging.INFO]


@pytest.mark.parametrize("cuda", [NO_DRIVER, HIDDEN, BROKEN, CPU_BUILD, NO_LIBRARIES])
def test_device_cuda_is_refused_for_the_same_cause(cuda: Cuda) -> None:
    with pytest.raises(StartError) as refused:
        names(Engine("cuda", 1), cuda)
    assert f"device cuda cannot be had: {missing_for(cuda)}" in str(refused.value)


def test_device_cpu_looks_for_no_gpu(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert names(Engine("cpu", 1), NO_LIBRARIES) == ["CPUExecutionProvider"]
    assert not caplog.records


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_two_distributions_of_onnx_runtime_are_a_warning_that_says_how_to_repair_them(
    device: str, caplog: pytest.LogCaptureFixture
) -> None:
    names(Engine(device, 1), WHOLE, BOTH)
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert "pip uninstall onnxruntime onnxruntime-gpu, then pip install" in told.getMessage()


def test_device_cuda_is_refused_where_the_cpus_distribution_has_overwritten_its_provider() -> None:
    with pytest.raises(StartError, match="pip uninstall onnxruntime onnxruntime-gpu"):
        names(Engine("cuda", 1), CPU_BUILD, BOTH)


@pytest.mark.parametrize("runtime", BOTH)
def test_one_distribution_alone_is_in_nobodys_way(runtime: str) -> None:
    assert clash_of([runtime]) is None


def test_this_installation_has_one_distribution() -> None:
    assert len(installed_runtimes()) == 1


def test_the_libraries_that_a_provider_needs_are_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "provider.so"
    file.write_bytes(b"\x7fELF\0libcublasLt.so.13\0libcudart.so.13\0libm.so.6\0libcudart.so.13\0_text libcufft.so.12")
    assert needed_libraries(file) == ["libcublasLt.so.13", "libcudart.so.13", "libcudnn.so.9"]
    assert needed_libraries(tmp_path / "none") == []


def test_a_library_that_is_not_there_is_found_out() -> None:
    assert unloadable(["libfacenet-nowhere.so.1"]) == ("libfacenet-nowhere.so.1",)


def test_looking_for_cuda_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    find_cuda()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(find_cuda().driver == 0, reason="this machine has a GPU")
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="this onnxruntime is for CPUs alone"
)
def test_a_provider_that_fails_though_all_seemed_there_is_told(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_models(tiny, Engine("auto", 1), WHOLE)
    assert "run on the CPU" in caplog.text
    with pytest.raises(StartError, match=r"device cuda cannot be had: .* runs on the CPU"):
        open_models(tiny, Engine("cuda", 1), WHOLE)
