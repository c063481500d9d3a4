"""The contract and its generated code, and what the packages show of themselves."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from facenet_proto.v1 import face_pb2 as pb

PROTO = ROOT / "protos" / "facenet_proto" / "v1" / "face.proto"


@pytest.mark.timeout(60)
def test_the_generated_code_is_what_the_contract_generates(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "protos"), *outputs, str(PROTO)]
    subprocess.run(command, check=True, capture_output=True)
    generated = sorted((tmp_path / "facenet_proto" / "v1").iterdir())
    assert [file.name for file in generated] == ["face_pb2.py", "face_pb2.pyi", "face_pb2_grpc.py"]
    for file in generated:
        assert file.read_text() == (PROTO.parent / file.name).read_text(), f"{file.name} is stale: make proto"


def test_every_field_of_the_contract_is_documented() -> None:
    lines = PROTO.read_text().splitlines()
    message = ""
    for number, line in enumerate(lines):
        if found := re.match(r"(?:message|enum) (\w+)", line):
            message = found[1]
        field = re.match(r"\s+(?:optional |repeated )?[\w.]+ (\w+) = \d+;", line)
        if field:
            assert lines[number - 1].strip().startswith("//"), f"{message}.{field[1]} has no comment"


def test_the_contract_imports_nothing() -> None:
    assert list(pb.DESCRIPTOR.dependencies) == []
    assert pb.DESCRIPTOR.package == "facenet.v1"
