"""The SDK's errors and results in other processes and as copies."""

import asyncio
import copy
import dataclasses
import inspect
import json
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import facenet_client
import numpy as np
import pytest
from facenet_client import (
    Comparison,
    Detection,
    Embedding,
    Face,
    FaceNetError,
    ImageError,
    ItemError,
    ServerOverloaded,
    errors,
)

ERRORS = [
    kind
    for _, kind in inspect.getmembers(facenet_client, inspect.isclass)
    if issubclass(kind, facenet_client.FaceNetError)
]
COPIES: list[Callable[[Any], Any]] = [lambda value: pickle.loads(pickle.dumps(value)), copy.copy, copy.deepcopy]


def an_error(kind: type[FaceNetError]) -> FaceNetError:
    """One with all that it can carry."""
    error: FaceNetError
    if issubclass(kind, ItemError):
        error = kind("the photo is damaged", code=3, reason="CORRUPT")
    elif issubclass(kind, ServerOverloaded):
        error = kind("no room", retry_after_s=0.5)
    else:
        error = kind("it failed")
    error.add_note("item 3; 1 of 4 items failed")
    return error


def results() -> list[Any]:
    vector, crop = np.arange(8, dtype=np.float32), np.zeros((4, 4, 3), np.uint8)
    failed = ImageError("no image", code=3, reason="CORRUPT")
    face = Face((1.0, 2.0, 3.0, 4.0), 0.9, ((1.0, 2.0),) * 5, Embedding(vector, "m"), crop)
    return [
        Detection((face,), 100, 200),
        Detection((), 0, 0, error=failed),
        Embedding(np.empty(0, np.float32), "", failed),
        Comparison(0.5, 1.1, True, 0.9, "best_accuracy", "m", face, face),
    ]


def same(one: Any, other: Any) -> bool:
    """Whether two values say the same, arrays and errors within them included."""
    if isinstance(one, FaceNetError):
        return (type(one), str(one), one.args, vars(one)) == (type(other), str(other), other.args, vars(other))
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and np.array_equal(one, other))
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)
        )
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("again", COPIES, ids=["pickle", "copy", "deepcopy"])
@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_the_same_after_it_was_copied(kind: type[FaceNetError], again: Callable[[Any], Any]) -> None:
    error = an_error(kind)
    assert same(error, again(error))
    assert vars(again(error))["__notes__"] == ["item 3; 1 of 4 items failed"]


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_can_be_made_again_of_its_args_as_json(kind: type[FaceNetError]) -> None:
    error = an_error(kind)
    again = kind(*json.loads(json.dumps(error.args)))
    del error.__notes__
    assert same(error, again)


@pytest.mark.parametrize("again", COPIES, ids=["pickle", "copy", "deepcopy"])
@pytest.mark.parametrize("result", results(), ids=lambda result: type(result).__name__)
def test_a_result_is_the_same_after_it_was_copied(result: Any, again: Callable[[Any], Any]) -> None:
    assert same(result, again(result))


@pytest.mark.parametrize("result", results(), ids=lambda result: type(result).__name__)
def test_a_result_becomes_a_dictionary(result: Any) -> None:
    assert set(dataclasses.asdict(result)) == {field.name for field in dataclasses.fields(result)}


def fail(number: int) -> int:
    """In a worker's process."""
    if number:
        raise an_error(ERRORS[number % len(ERRORS)])
    return number


def first(values: list[Any]) -> Any:
    """In a worker's process."""
    return values[0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_results_come_through_pools_in_both_directions(method: str) -> None:
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool, ProcessPoolExecutor(1, mp_context=context) as executor:
        for result in results():
            assert same(result, pool.apply_async(first, ([result],)).get(30))
            assert same(result, executor.submit(first, [result]).result(30))


@pytest.mark.parametrize("result", results(), ids=lambda result: type(result).__name__)
def test_a_result_goes_into_json_and_its_repr_tells_no_vector(result: Any) -> None:
    assert json.loads(json.dumps(result.to_dict()))["error"] in (
        None,
        {"code": 3, "reason": "CORRUPT", "message": "no image"},
    )
    assert "array" not in repr(result)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_error_in_a_pools_worker_reaches_whoever_waits(method: str) -> None:
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool, pytest.raises(errors.FaceNetError):
        pool.apply_async(fail, (1,)).get(30)
    with ProcessPoolExecutor(1, mp_context=context) as executor, pytest.raises(errors.FaceNetError):
        executor.submit(fail, 2).result(30)


def test_an_error_that_is_raised_again_elsewhere_keeps_its_notes() -> None:
    async def task() -> None:
        raise pickle.loads(pickle.dumps(an_error(ImageError)))

    with pytest.raises(ImageError, match=r"damaged \[CORRUPT\]") as raised:
        asyncio.run(task())
    assert raised.value.__notes__ == ["item 3; 1 of 4 items failed"]
