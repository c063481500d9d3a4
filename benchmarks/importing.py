"""(e) What the SDK costs whoever imports it."""

import os
import subprocess
from statistics import median

from benchmarks.environments import ROOT, SDK, python_of
from benchmarks.figures import Figure, Section
from benchmarks.plan import Plan

RUNS = 5
BOUND_S = 0.3
ROOMS = ("protos", "client")
IMPORT = """
import time
start = time.process_time()
import facenet_client
print(time.process_time() - start)
"""


def measure(plan: Plan) -> Section:
    """The CPU seconds of ``import facenet_client`` where only the base dependencies are installed."""
    python = python_of(SDK, plan.say)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / room) for room in ROOMS)}

    def once() -> float:
        done = subprocess.run([python, "-c", IMPORT], env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout)

    once()  # compiles
    plan.say(f"SDK: {RUNS} imports")
    seconds = median(once() for _ in range(RUNS))
    figure = Figure("SDK: CPU time of its import", seconds, "s", at_most=BOUND_S, note=f"median of {RUNS}")
    return Section("Importing the SDK", [figure])
