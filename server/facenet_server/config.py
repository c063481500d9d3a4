"""The server's one configuration: read once in ``__main__``, frozen, passed down by value."""

import importlib.util
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from facenet_server import addresses
from facenet_server.errors import StartError

MIB = 1 << 20
VARIABLE_PREFIX = "FACENET_"
_CLIENTS = ("SERVER", "TIMEOUT_S", "TLS", "CA", "CERTIFICATE", "KEY", "TOKEN")  # of the command ``facenet``
_TESTS = ("TEST_DATA",)
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "BMP", "TIFF", "GIF")
_MOST, _MOST_MIB = 2**31 - 1, 2**11 - 1  # what gRPC can count
_LEAST_STALL_S = 0.01
_MOST_STREAMS = 1024  # where memory allows
_A_STREAM_BYTES = 5 * MIB // 4  # of a stream beside its largest message, by HTTP/2


def _option(default: Any, text: str, **details: Any) -> Any:
    return field(default=default, metadata={"help": text, **details})


def bounds(name: str, kind: Any) -> tuple[float, float]:
    """The least and the greatest value of a setting that is a number."""
    if kind is float:
        return (_LEAST_STALL_S if name.endswith("stall_s") else 0, math.inf)
    if name.startswith("max_"):
        return (1, _MOST_MIB if name == "max_message_mib" else _MOST)
    return (0, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Each field is a flag (``max_batch_rows``: ``--max-batch-rows``) and an environment variable
    (``FACENET_MAX_BATCH_ROWS``), documented by its text here."""

    models: Path = _option(Path("models"), "Folder with the ONNX files and manifest.json.")
    listen: str = _option(
        "127.0.0.1:50051",
        "HOST:PORT, [IPV6]:PORT or unix:PATH. Port 0 takes a free one, which is logged; 0.0.0.0 and [::] are all "
        "addresses of IPv4 and IPv6.",
    )
    health_listen: str = _option(
        "",
        "A second address, in the forms of --listen, for health alone, in plain text: for probes that speak no TLS. "
        "Empty: none.",
    )
    tls_certificate: str = _option("", "PEM file with the server's certificate chain. With tls_key it speaks TLS.")
    tls_key: str = _option("", "PEM file with the key of tls_certificate: RSA, P-256 or P-384.")
    tls_client_ca: str = _option(
        "", "PEM file with authorities: who has no certificate of one of them is kept out. With TLS only."
    )
    tokens: str = _option(
        "",
        "File with a line for each token that is let in: SUBJECT and the token's SHA-256 in hex. Callers send "
        "'authorization: Bearer TOKEN'. With TLS only, or on loopback or a Unix socket.",
    )
    device: str = _option(
        "auto",
        "Where the networks run. auto: CUDA if it can be had, else the CPU; cuda: refuse to start without.",
        choices=("auto", "cuda", "cpu"),
    )
    gpu_mem_limit_mb: int = _option(
        0,
        "Memory that each session may take on the GPU, MB; a network has several, for batches of 1 row, 4, 16 … "
        "0: what they need.",
    )
    tf32: bool = _option(
        False, "Let the GPU multiply in TF32: faster, but three digits fewer agree with the original networks."
    )
    default_embedder: str = _option("", "Embedder for requests that name none. Empty: the models folder's.")
    reflection: bool = _option(False, "Serve gRPC reflection, so that tools can read the contract.")
    image_formats: str = _option(
        "JPEG,PNG,WEBP",
        "Encoded formats to accept; AVIF, HEIF (as phones' HEIC; extra: heif), BMP, TIFF and GIF (first frame) can be "
        "added.",
    )
    workers: str = _option(
        "auto",
        "Processes that decode, detect and embed; one more stands by. auto: one per usable core, with a GPU three for "
        "four cores, as far as memory goes. 0: all in one process, for debugging.",
    )
    threads: int = _option(0, "Threads for computing, per network and for images. 0: one per usable core.")
    max_batch_rows: int = _option(64, "Crops of one run of an embedder.")
    max_window_rows: int = _option(1024, "Windows of one batch of R-Net or O-Net, where images share them.")
    runs_per_embedder: int = _option(
        0,
        "Batches of one embedder that run at once, each on its share of the threads. 0: on the CPU one per thread, "
        "which does most and is steady beside other programs; on CUDA one. 1: all threads on one batch, which answers "
        "a lone crop sooner.",
    )
    share_levels: str = _option(
        "auto",
        "Let pyramid levels of many images share P-Net's batches, on canvases of one size. auto: on CUDA; the CPU "
        "takes twice as long that way.",
        choices=("auto", "on", "off"),
    )
    share_windows: str = _option(
        "auto",
        "Let windows of many images share R-Net's and O-Net's batches. auto: on CUDA; the CPU does less that way. "
        "Where levels are shared, windows are, too.",
        choices=("auto", "on", "off"),
    )
    max_wait_s: float = _option(
        0.01,
        "How long an idle embedder waits for as many crops as there were lately; half as long where none comes. A lone "
        "caller is not waited for.",
    )
    max_queued_rows: int = _option(4096, "Crops that may wait for one embedder; an item beyond is refused.")
    images_per_group: int = _option(
        8, "Images of one message that go through the networks side by side: their crops share batches."
    )
    max_images_per_stream: int = _option(16, "Images of one stream worked on at once.")
    max_images_in_flight: int = _option(32, "Images worked on at once, over all callers; others wait.")
    max_megapixels_in_flight: int = _option(
        204,
        "Pixels of all images worked on at once, in millions: seven bytes of memory each, up to 16 while a file is "
        "decoded. Others wait; one caller has half of them.",
    )
    max_messages_in_flight: int = _option(4, "Messages of one stream read and not yet answered.")
    max_items_per_stream: int = _option(256, "Items (images, crops, pairs) of one stream under way.")
    max_items_per_caller: int = _option(
        1024, "Items of one caller under way: a token's or certificate's subject, or a host."
    )
    max_items_in_flight: int = _option(2048, "Items of all callers under way.")
    max_mib_in_flight: int = _option(
        256, "Request messages of all callers under way, MiB; as much again of the crops that they ask for."
    )
    max_streams: int = _option(
        0,
        "Streams open at once, over all callers. 0: 1024, or as many as could each bring their largest message within "
        "half of the memory that there is.",
    )
    max_connections: int = _option(
        512,
        "Connections with streams open at once. gRPC itself closes those beyond 2048 more, which are idle, of "
        "health's callers, or refused.",
    )
    max_write_stall_s: float = _option(30.0, "How long an answer may lie unread until its stream's work is given up.")
    max_streams_per_connection: int = _option(100, "Streams that one connection may hold open.")
    max_items_per_message: int = _option(64, "Images, crops or pairs of one message.")
    max_message_mib: int = _option(26, "Size of one request message, MiB.")
    max_image_mib: int = _option(25, "Size of one encoded image, MiB.")
    max_image_megapixels: int = _option(51, "Height × width of one image, in millions.")
    max_image_side_px: int = _option(32_768, "Longer side of one image, px.")
    max_image_aspect: int = _option(200, "How many times as long as the other one side of an image may be.")
    max_image_scans: int = _option(100, "Scans of one JPEG: each is decoded over all of its pixels.")
    max_header_parts: int = _option(16_384, "Segments, chunks or boxes of one image file's header.")
    max_pyramid_megapixels: int = _option(25, "Pixels of one image's pyramid over all levels, in millions.")
    max_candidates: int = _option(
        20_000, "Windows of one image that P-Net and its suppression may leave: the work of R-Net."
    )
    max_crop_mib: int = _option(64, "Crops of one response message, MiB.")
    grace_s: float = _option(30.0, "Seconds that SIGTERM leaves for what is in flight.")
    stall_s: float = _option(30.0, "Health says NOT_SERVING where work is under way and none has ended for so long.")
    log_level: str = _option("info", "What is logged.", choices=("debug", "info", "warning", "error"))

    def with_streams_for(self, memory_bytes: int | None) -> "Config":
        """``max_streams`` as a number, on a machine of so much memory."""
        if self.max_streams or memory_bytes is None:
            return replace(self, max_streams=self.max_streams or _MOST_STREAMS)
        a_stream = self.max_message_mib * MIB + _A_STREAM_BYTES
        return replace(self, max_streams=min(_MOST_STREAMS, max(1, memory_bytes // 2 // a_stream)))

    def check(self) -> None:
        """Raises StartError where a value is none that a server can run with."""
        unknown = set(self.formats) - set(_FORMATS)
        if unknown:
            raise StartError(f"unknown image formats {', '.join(sorted(unknown))}; known are {', '.join(_FORMATS)}")
        if "HEIF" in self.formats and importlib.util.find_spec("pillow_heif") is None:
            raise StartError('the image format HEIF needs its extra package: pip install "facenet-serve[heif]"')
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type is float and not 0 <= value < math.inf:
                raise StartError(f"{each.name} must be a number of seconds from 0, not {value}")
            if each.name.endswith("stall_s") and value < bounds(each.name, float)[0]:
                raise StartError(f"{each.name} must be at least {_LEAST_STALL_S} s, not {value}")
            if each.type is int and each.name.startswith("max_"):
                least, most = bounds(each.name, each.type)
                if not least <= value <= most:
                    raise StartError(f"{each.name} must be at least {least} and at most {most}")
        if self.workers != "auto" and not self.workers.isdecimal():
            raise StartError(f"workers must be auto or a number of processes, not {self.workers!r}")
        addresses.parse(self.listen)
        if self.health_listen:
            addresses.parse(self.health_listen)
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise StartError("--tls-certificate and --tls-key go together")
        if self.tls_client_ca and not self.tls_certificate:
            raise StartError("--tls-client-ca needs --tls-certificate and --tls-key")
        if self.tokens and not self.tls_certificate and not self.is_near:
            raise StartError("--tokens needs --tls-certificate and --tls-key, or a loopback address: tokens are secret")

    @property
    def is_near(self) -> bool:
        """Whether only this machine's programs can call. Raises StartError where ``listen`` is no address."""
        return addresses.is_near(addresses.parse(self.listen))

    @property
    def formats(self) -> tuple[str, ...]:
        """``image_formats`` one by one, by Pillow's names."""
        return tuple(name.strip().upper() for name in self.image_formats.split(","))


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """What to tell of each variable that is named like a setting and is none. Values are not looked at: they may be
    secrets. Those that Kubernetes sets for a Service named ``facenet…`` are not told."""
    names = [name for name in environment if name.startswith(VARIABLE_PREFIX)]
    # For a Service, Kubernetes sets NAME_SERVICE_HOST, NAME_SERVICE_PORT…, NAME_PORT and NAME_PORT_….
    services = [name.removesuffix("_SERVICE_HOST") for name in names if name.endswith("_SERVICE_HOST")]
    of_services = tuple(f"{service}_{kind}" for service in services for kind in ("SERVICE_", "PORT"))
    ours, others = [each.name.upper() for each in fields(Config)], [*_CLIENTS, *_TESTS]
    unknown = {name.removeprefix(VARIABLE_PREFIX) for name in names if not name.startswith(of_services)}
    return [_unknown(name, ours, others) for name in sorted(unknown.difference(ours, others))]


def _unknown(name: str, *known: list[str]) -> str:
    near = next(filter(None, (get_close_matches(name, names, 1) for names in known)), None)
    hint = f": is {VARIABLE_PREFIX}{near[0]} meant?" if near else "; see --help"
    return f"the environment variable {VARIABLE_PREFIX}{name} is no setting{hint}"
