"""The SDK of FaceNet Serve: find, embed and compare faces on a server.

Photos go in, and a result for each comes back, in their order:

    from facenet_client import CallError, Client

    with Client("127.0.0.1:50051") as client:
        try:
            (photo,) = client.detect(["group.jpg"])
        except CallError as error:  # the whole call: no server, no room, no answer in time
            raise SystemExit(str(error))
        print(photo.error or [face.box for face in photo.faces])
"""

from facenet_client import _process as _process  # before gRPC: sets the variable that gRPC reads on import
from facenet_client import distances
from facenet_client.aio import AsyncClient
from facenet_client.client import Client
from facenet_client.errors import (
    AnswerTimeout,
    AuthenticationError,
    CallError,
    EmbeddingError,
    FaceNetError,
    ImageError,
    ItemError,
    ItemTimeout,
    NoFaceError,
    OptionError,
    RequestRefused,
    ServerFault,
    ServerItemError,
    ServerOverloaded,
    ServerUnavailable,
    TemporaryError,
)
from facenet_client.stats import Admission, LoopLag, ServerStats, StageStats, WorkerStats
from facenet_client.types import (
    Calibration,
    CallOptions,
    Colour,
    CompareOptions,
    Comparison,
    CropOptions,
    Detection,
    DetectOptions,
    Embedding,
    EmbedOptions,
    Face,
    FaceSelection,
    ImageLike,
    ModelInfo,
    OperatingPoint,
    ServerInfo,
    Side,
    raise_for_errors,
)

__all__ = [
    "Admission",
    "AnswerTimeout",
    "AsyncClient",
    "AuthenticationError",
    "Calibration",
    "CallError",
    "CallOptions",
    "Client",
    "Colour",
    "CompareOptions",
    "Comparison",
    "CropOptions",
    "DetectOptions",
    "Detection",
    "EmbedOptions",
    "Embedding",
    "EmbeddingError",
    "Face",
    "FaceNetError",
    "FaceSelection",
    "ImageError",
    "ImageLike",
    "ItemError",
    "ItemTimeout",
    "LoopLag",
    "ModelInfo",
    "NoFaceError",
    "OperatingPoint",
    "OptionError",
    "RequestRefused",
    "ServerFault",
    "ServerInfo",
    "ServerItemError",
    "ServerOverloaded",
    "ServerStats",
    "ServerUnavailable",
    "Side",
    "StageStats",
    "TemporaryError",
    "WorkerStats",
    "distances",
    "raise_for_errors",
]
