"""A load generator: messages made once, sent over and over by many callers, and what came of it.

    async with AsyncClient("127.0.0.1:50051") as client:
        crops = load.workload("embed_crops", load.random_crops(64), batch=32)
        report = await load.run(client, crops, load.Plan(callers=16, duration_s=10))
    print(report.items_per_s, report.latency.p99_s)

A closed loop has ``callers`` that each wait for an answer before they send the next message. An open loop
(``rate_per_s``) sends when a message is due, however late the answers are, and counts latency from that time. The
generator costs its machine little: a message is bytes before the clock starts, and an answer is only searched for
errors.
"""

from facenet_client.load.engine import Plan, Progress, run
from facenet_client.load.report import Latency, Report
from facenet_client.load.workload import Message, Workload, random_crops, workload

__all__ = ["Latency", "Message", "Plan", "Progress", "Report", "Workload", "random_crops", "run", "workload"]
