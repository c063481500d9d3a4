"""The main job, end to end: start a server on the converted models and call it through the SDK.

Two public-domain portraits, the astronaut Eileen Collins (NASA) and Grace Hopper (US Navy), are detected,
embedded and compared with variations of themselves and with each other. Run it with ``make demo``.
"""

import argparse
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.cbook
import numpy as np
import skimage.data
from facenet_client import Client, Comparison, raise_for_errors
from facenet_client.cli.drawing import draw
from PIL import Image
from rich.console import Console
from rich.table import Table


def main() -> None:
    """Exit 0 where every verdict is the expected one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--out", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    console = Console()
    with running_server(arguments.models) as target, Client(target) as client:
        info = client.server_info()
        console.print(f"server on {target}: {info.default_embedder} on {', '.join(info.providers)}")
        verdicts = compare_portraits(client, console)
        draw_faces(client, console, arguments.out)
    sys.exit(0 if all(verdicts) else "a verdict is not the expected one")


@contextmanager
def running_server(models: Path) -> Iterator[str]:
    """A server of its own process on a free port of this machine; yields its address."""
    command = [sys.executable, "-m", "facenet_server", "--models", str(models), "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            print(f"  {line}", end="")
            if found := re.search(r"listening on (\S+)", line):
                threading.Thread(target=server.stderr.read, daemon=True).start()  # its log must not fill the pipe
                yield found[1]
                return
        sys.exit("the server did not start; its lines above say why")
    finally:
        server.terminate()
        server.wait()


def portraits() -> tuple[np.ndarray, np.ndarray]:
    """The two portraits, (H, W, 3) uint8 RGB."""
    hopper = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    return skimage.data.astronaut(), np.asarray(hopper.convert("RGB"))


def compare_portraits(client: Client, console: Console) -> list[bool]:
    """Print the comparisons; True for each whose verdict and distance are as they should be."""
    astronaut, hopper = portraits()
    smaller = Image.fromarray(astronaut).resize((astronaut.shape[1] * 3 // 4, astronaut.shape[0] * 3 // 4))
    others = {
        "itself, mirrored": np.ascontiguousarray(astronaut[:, ::-1]),
        "itself, at half brightness": astronaut // 2,
        "itself, shrunk to 3/4": np.asarray(smaller),
        "Grace Hopper": hopper,
    }
    results = raise_for_errors(client.compare([(astronaut, other) for other in others.values()]))
    table = Table("the astronaut against", "box x1 y1 x2 y2, px", "distance", "threshold", "verdict")
    for name, result in zip(others, results, strict=True):
        assert result.face_b is not None
        box = " ".join(f"{edge:.0f}" for edge in result.face_b.box)
        verdict = "same" if result.same else "different"
        table.add_row(name, box, f"{result.distance:.3f}", f"{result.threshold:.3f}", verdict)
    console.print(table)
    return [as_expected(name, result) for name, result in zip(others, results, strict=True)]


def as_expected(name: str, result: Comparison) -> bool:
    """Far under the threshold for the same person, over it for another."""
    itself = name.startswith("itself")
    return result.same is itself and (result.distance < 0.6 if itself else result.distance > 1.1)


def draw_faces(client: Client, console: Console, out: Path) -> None:
    """Write both portraits with their boxes and landmarks; embed their crops."""
    out.mkdir(parents=True, exist_ok=True)
    found = raise_for_errors(client.detect(portraits(), return_crops=True, max_faces=1))
    crops = [face.crop for detection in found for face in detection.faces if face.crop is not None]
    vectors = raise_for_errors(client.embed_crops(crops))
    names = ("astronaut", "grace_hopper")
    for name, pixels, detection, vector in zip(names, portraits(), found, vectors, strict=True):
        target = out / f"{name}.faces.png"
        draw(Image.fromarray(pixels), detection).save(target)
        about = f"{len(vector.vector)}-D embedding of length {np.linalg.norm(vector):.6f}"
        console.print(f"{target}: score {detection.faces[0].score:.4f}, {about}")


if __name__ == "__main__":
    main()
