"""Compare on the wire: distances, thresholds, verdicts, and whose errors are whose."""

from typing import Any

import numpy as np
import pytest
from calls import ask, raw, stream
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.serving import per_image_detector
from nets import crop, fake_server, square

NOT_FOUND = 5


async def test_two_sides_are_compared_by_distance_and_threshold() -> None:
    red, blue = square(), square()
    red[..., 1:] //= 3
    blue[..., :2] //= 3
    red[..., 0], blue[..., 0] = square()[..., 0], square()[..., 0]  # the fake detector looks at red
    pairs = [pb.Pair(a=pb.Side(image=raw(a)), b=pb.Side(image=raw(b))) for a, b in ((red, red), (red, blue))]
    async with fake_server() as target, stream(target, "Compare", pb.CompareResponse) as call:
        same, other = (result.comparison for result in (await ask(call, pb.CompareRequest(pairs=pairs))).results)
        strict = pb.CompareOptions(threshold=1e-3)
        judged = (await ask(call, pb.CompareRequest(pairs=pairs[1:], options=strict))).results[0].comparison
    assert (same.distance, same.same, same.threshold, same.model) == (0, True, 0.5, "colour")
    assert other.distance > 0.1
    assert same.HasField("face_a")
    assert same.HasField("face_b")
    assert (judged.same, judged.threshold) == (False, pytest.approx(1e-3))


async def test_an_operating_point_is_chosen_by_name() -> None:
    pair = pb.Pair(a=pb.Side(image=raw(square())), b=pb.Side(image=raw(square())))
    async with fake_server() as target, stream(target, "Compare", pb.CompareResponse) as call:

        async def compare(**options: Any) -> Any:
            request = pb.CompareRequest(pairs=[pair], options=pb.CompareOptions(**options))
            return (await ask(call, request)).results[0]

        default, strict = (await compare()).comparison, (await compare(operating_point="far_1e-3")).comparison
        given = (await compare(threshold=0.75)).comparison
        unknown = (await compare(operating_point="far_1e-9")).error
    assert (default.operating_point, default.threshold) == ("best_accuracy", 0.5)
    assert (strict.operating_point, strict.threshold) == ("far_1e-3", 0.25)
    assert (given.operating_point, given.threshold, given.same) == ("given", 0.75, True)
    assert default.probability == pytest.approx(1 / (1 + np.exp(-5)))
    assert (unknown.code, unknown.reason) == (NOT_FOUND, "UNKNOWN_OPERATING_POINT")


async def test_an_uncalibrated_model_gives_distances_without_verdicts() -> None:
    pair = pb.Pair(a=pb.Side(image=raw(square())), b=pb.Side(image=raw(square())))
    settings = {"calibration": None}
    async with fake_server(**settings) as target, stream(target, "Compare", pb.CompareResponse) as call:
        plain = (await ask(call, pb.CompareRequest(pairs=[pair]))).results[0].comparison
        options = pb.CompareOptions(threshold=0.5)
        given = (await ask(call, pb.CompareRequest(pairs=[pair], options=options))).results[0].comparison
        options = pb.CompareOptions(operating_point="best_accuracy")
        refused = (await ask(call, pb.CompareRequest(pairs=[pair], options=options))).results[0].error
    assert plain.operating_point == "uncalibrated"
    assert not any(plain.HasField(name) for name in ("threshold", "same", "probability"))
    assert (given.operating_point, given.same, given.HasField("probability")) == ("given", True, False)
    assert refused.reason == "UNKNOWN_OPERATING_POINT"


async def test_embeddings_are_compared_with_their_own_kind_only() -> None:
    def side(model: str = "colour", dimension: int = 4, scale: float = 1.0) -> pb.Side:
        vector = np.eye(1, dimension, dtype="<f4")[0] * np.float32(scale)
        return pb.Side(embedding=pb.Embedding(vector=vector.tobytes(), dimension=dimension, model=model))

    cut_short = side()
    cut_short.embedding.vector = cut_short.embedding.vector[:-1]
    others = [side(), side("other"), side(dimension=5), side(scale=2), cut_short, pb.Side()]
    request = pb.CompareRequest(pairs=[pb.Pair(a=side(), b=other) for other in others])
    async with fake_server() as target, stream(target, "Compare", pb.CompareResponse) as call:
        results = (await ask(call, request)).results
    assert results[0].comparison.distance == 0
    assert not results[0].comparison.HasField("face_a")
    reasons = [r.error.reason for r in results[1:]]
    assert reasons == ["MODEL_MISMATCH", "BAD_EMBEDDING", "BAD_EMBEDDING", "BAD_EMBEDDING", "EMPTY"]


async def test_embeddings_of_interchangeable_models_are_compared() -> None:
    def side(model: str) -> pb.Side:
        return pb.Side(embedding=pb.Embedding(vector=np.eye(1, 4, dtype="<f4").tobytes(), dimension=4, model=model))

    pairs = [pb.Pair(a=side("colour"), b=side(model)) for model in ("colour-int8", "other")]
    twins = {"colour": ("colour-int8",)}
    async with fake_server(interchangeable_with=twins) as target:
        async with stream(target, "Compare", pb.CompareResponse) as call:
            same, other = (await ask(call, pb.CompareRequest(pairs=pairs))).results
    assert same.comparison.distance == 0
    assert other.error.reason == "MODEL_MISMATCH"


async def test_a_side_without_a_face_is_an_error_of_its_pair() -> None:
    pair = pb.Pair(a=pb.Side(image=raw(square())), b=pb.Side(image=raw(crop(0))))
    async with fake_server() as target, stream(target, "Compare", pb.CompareResponse) as call:
        error = (await ask(call, pb.CompareRequest(pairs=[pair]))).results[0].error
    assert (error.code, error.reason) == (NOT_FOUND, "NO_FACE")
    assert "side b" in error.message


@pytest.mark.parametrize("share_windows", ["on", "off"])
async def test_images_of_more_windows_than_are_cut_at_once_hold_up_none_of_their_company(
    monkeypatch: pytest.MonkeyPatch, share_windows: str
) -> None:
    monkeypatch.setattr(per_image_detector, "AT_ONCE_BYTES", 1)
    many = square(10, 10, 24)
    many[60:100, 80:120] = 255
    pair = pb.Pair(a=pb.Side(image=raw(many)), b=pb.Side(image=raw(square(side=24))))
    async with (
        fake_server(share_windows=share_windows) as target,
        stream(target, "Compare", pb.CompareResponse) as call,
    ):
        (result,) = (await ask(call, pb.CompareRequest(pairs=[pair]))).results
    assert result.HasField("comparison")


async def test_a_failing_image_holds_up_none_of_its_company() -> None:
    pairs = [
        pb.Pair(a=pb.Side(image=raw(square())), b=pb.Side(image=raw(square(60, 30)))),
        pb.Pair(a=pb.Side(image=pb.Image(encoded=b"text")), b=pb.Side(image=raw(square()))),
        pb.Pair(a=pb.Side(image=raw(crop(0))), b=pb.Side(image=raw(square()))),
        pb.Pair(a=pb.Side(image=raw(square())), b=pb.Side()),
    ]
    async with fake_server() as target, stream(target, "Compare", pb.CompareResponse) as call:
        results = (await ask(call, pb.CompareRequest(pairs=pairs))).results
    assert [result.error.reason for result in results] == ["", "UNSUPPORTED_FORMAT", "NO_FACE", "EMPTY"]
