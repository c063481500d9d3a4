"""The server's one configuration: read once in ``__main__``, frozen, passed down by value."""

import importlib.util
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from facenet_server import addresses
from facenet_server.errors import StartError

MIB = 1 << 20
VARIABLE_PREFIX = "FACENET_"
GROUPS = ("listening and callers", "models and device", "limits", "scheduling", "lifecycle")
_CLIENTS = ("SERVER", "TIMEOUT_S", "TLS", "CA", "CERTIFICATE", "KEY", "TOKEN")  # of the command ``facenet``
_TESTS = ("TEST_DATA",)
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "BMP", "TIFF", "GIF")
_MANY = 1_000_000
_MOST_MIB = 2**11 - 1  # what gRPC and protobuf can count
_MOST_MEGAPIXELS = 1000  # of an image: more are too many for one scan of a JPEG
_MOST_THREADS = 1024
_MOST_ROWS = 2048  # twice as many wait for an embedder at most
_DAY_S = 86_400
_MOST_STREAMS = 1024  # where memory allows
_A_STREAM_BYTES = 5 * MIB // 4  # of a stream beside its largest message, by HTTP/2
_CANDIDATES = 800  # of a megapixel of the pyramid


def _option(group: str, default: Any, text: str, *, advanced: bool = True, flag: bool = True, **details: Any) -> Any:
    """A field. ``least`` and ``most`` are its range, ``word`` a value beside it, ``unit`` that of a number, ``shown``
    the default in words."""
    return field(
        default=default, metadata={"help": text, "group": group, "advanced": advanced, "flag": flag, **details}
    )


_listening, _models, _limit, _scheduling, _lifecycle = (partial(_option, group) for group in GROUPS)
_count = partial(_limit, least=1, most=_MANY)
_seconds: dict[str, Any] = {"least": 0, "most": _DAY_S, "unit": "s"}
_stall: dict[str, Any] = _seconds | {"least": 0.01}
# What tests, chaos and benchmarks set by argument, and operators do not.
_fixed = partial(_limit, flag=False, least=1, most=2**31 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A field is a flag (``max_batch_rows``: ``--max-batch-rows``) and an environment variable
    (``FACENET_MAX_BATCH_ROWS``), documented by its text here. Those with ``flag=False`` are set by argument alone."""

    listen: str = _listening(
        "127.0.0.1:50051",
        "HOST:PORT, [IPV6]:PORT, unix:PATH or unix-abstract:NAME. Port 0 takes a free one, which is logged; 0.0.0.0 "
        "and [::] are all addresses of IPv4 and IPv6.",
        advanced=False,
    )
    health_listen: str = _listening(
        "",
        "A second address, in the forms of --listen, for health alone, in plain text: for probes that speak no TLS.",
        advanced=False,
    )
    tls_certificate: str = _listening(
        "", "PEM file with the server's certificate chain. With --tls-key the server speaks TLS.", advanced=False
    )
    tls_key: str = _listening(
        "", "PEM file with the key of --tls-certificate: RSA, P-256 or P-384, unencrypted.", advanced=False
    )
    tls_client_ca: str = _listening(
        "",
        "PEM file with authorities: who has no certificate of one of them is kept out. With TLS only.",
        advanced=False,
    )
    tokens: str = _listening(
        "",
        "File with a line for each token that is let in: SUBJECT and the token's SHA-256 in hex. Callers send "
        "'authorization: Bearer TOKEN'. With TLS only, or on loopback or a Unix socket.",
        advanced=False,
    )
    reflection: bool = _listening(False, "Serve gRPC reflection, so that tools can read the contract.")

    models: Path = _models(Path("models"), "Folder with the ONNX files and manifest.json.", advanced=False)
    device: str = _models(
        "auto",
        "Where the networks run. auto: CUDA if it can be had, else the CPU; cuda: without CUDA the server does not "
        "start.",
        advanced=False,
        choices=("auto", "cuda", "cpu"),
    )
    default_embedder: str = _models(
        "", "Embedder for requests that name none.", advanced=False, shown="that of the models folder"
    )
    image_formats: str = _models(
        "JPEG,PNG,WEBP",
        "Encoded formats to accept; AVIF, HEIF (as phones' HEIC; extra: heif), BMP, TIFF and GIF (first frame) can be "
        "added.",
        advanced=False,
    )
    gpu_mem_limit_mb: int = _models(
        0,
        "Memory that each session may take on the GPU, MB; a network has several, for batches of 1 row, 4, 16 …",
        least=0,
        most=_MANY,
        shown="0, as much as they need",
    )
    tf32: bool = _models(
        False,
        "Let the GPU multiply in TF32: faster, but outputs agree with the original networks in three digits fewer.",
    )

    max_image_megapixels: int = _limit(
        51,
        "Pixels (height × width) of one image, in millions.",
        advanced=False,
        least=1,
        most=_MOST_MEGAPIXELS,
        unit="megapixels",
    )
    max_message_mib: int = _limit(
        26,
        "Size of one request message, MiB. An image's file may have 1 MiB less.",
        least=1,
        most=_MOST_MIB,
        unit="MiB",
    )
    max_items_per_message: int = _count(
        64, "Images, crops or pairs of one message. A stream has four messages under way."
    )
    max_pyramid_megapixels: int = _limit(
        25,
        "Pixels of one image's pyramid over all levels, in millions. For each of them 800 windows may go on to R-Net.",
        least=1,
        most=10_000,
        unit="megapixels",
    )
    max_images_in_flight: int = _count(
        32, "Images worked on at once, over all callers, and half as many of one stream; others wait."
    )
    max_megapixels_in_flight: int = _count(
        204,
        "Pixels of all images worked on at once, in millions: seven bytes of memory each, up to 16 while a file is "
        "decoded. Others wait; one caller has half of them.",
        unit="megapixels",
    )
    max_items_in_flight: int = _count(
        2048,
        "Items (images, crops, pairs) under way, over all callers. Each of n callers may have 1 / (n + 1) of them. A "
        "caller is a token's or certificate's subject, or a host.",
    )
    max_mib_in_flight: int = _count(
        256,
        "MiB of request messages under way, over all callers. The crops that these ask for may take as much again.",
        unit="MiB",
    )
    max_streams: int = _limit(
        0,
        "Streams open at once, over all callers.",
        least=0,
        most=_MANY,
        shown="0, as many as fit into half of the memory, each with its largest message; at most 1024",
    )
    max_streams_per_connection: int = _count(
        100, "Streams that one connection may hold open. A proxy carries the streams of many callers on one."
    )
    max_connections: int = _count(
        512,
        "Connections with streams open at once. Besides these, 2048 connections may be idle, refused, or of health's "
        "callers. gRPC closes all further ones.",
    )
    max_write_stall_s: float = _limit(
        30.0,
        "How long an answer may lie unread until its stream's work is given up.",
        **_stall,
    )

    workers: str = _scheduling(
        "auto",
        "Processes that decode, detect and embed; one more stands by. auto: one per usable core, with a GPU three for "
        "four cores, as far as memory goes. 0: all in one process, as on Windows, to debug, or for several servers on "
        "one GPU.",
        advanced=False,
        word="auto",
        least=0,
        most=_MOST_THREADS,
    )
    threads: int = _scheduling(
        0,
        "Threads for computing, per network and for images.",
        least=0,
        most=_MOST_THREADS,
        shown="0, one per usable core",
    )
    max_batch_rows: int = _scheduling(64, "Crops of one run of an embedder.", least=1, most=_MOST_ROWS)
    runs_per_embedder: int = _scheduling(
        0,
        "Batches of one embedder that run at once. 1 puts all threads on one batch, which answers a lone crop sooner; "
        "more share the threads.",
        least=0,
        most=_MOST_THREADS,
        shown="0, one per worker process; with --workers 0 one per thread, on CUDA one",
    )
    share_levels: str = _scheduling(
        "auto",
        "Let pyramid levels of many images share P-Net's batches, on canvases of one size. Windows then share batches "
        "of R-Net and O-Net, too. auto: on with CUDA, off on the CPU, where a level takes twice as long on a canvas.",
        choices=("auto", "on", "off"),
    )
    max_wait_s: float = _scheduling(
        0.01,
        "How long an idle embedder waits, at most, for as many crops as there usually are. After the last crop it "
        "waits half as long. With one caller it does not wait.",
        **_seconds | {"most": 60},
    )

    grace_s: float = _lifecycle(
        30.0, "How long work in flight may go on after SIGTERM; then the rest is cut off.", advanced=False, **_seconds
    )
    log_level: str = _lifecycle(
        "info", "What is logged.", advanced=False, choices=("debug", "info", "warning", "error")
    )
    stall_s: float = _lifecycle(
        30.0,
        "Health says NOT_SERVING where work is under way and none has ended for so long.",
        **_stall,
    )

    # None: by the property of that name without ``max_``.
    max_image_mib: int | None = _fixed(None, "Size of one encoded image, MiB.", follows="--max-message-mib, less 1 MiB")
    max_images_per_stream: int | None = _fixed(
        None, "Images of one stream worked on at once.", follows="half of --max-images-in-flight"
    )
    max_items_per_stream: int | None = _fixed(
        None, "Items of one stream under way.", follows="4 × --max-items-per-message"
    )
    max_items_per_caller: int | None = _fixed(
        None, "Items of one caller under way.", follows="half of --max-items-in-flight"
    )
    max_candidates: int | None = _fixed(
        None, "Windows of one image that P-Net and its suppression may leave.", follows="800 × --max-pyramid-megapixels"
    )
    max_messages_in_flight: int = _fixed(4, "Messages of one stream read and not yet answered.")
    images_per_group: int = _fixed(8, "Images of one message that go through the networks side by side.")
    max_window_rows: int = _fixed(1024, "Windows of one batch of R-Net or O-Net, where images share them.")
    max_queued_rows: int = _fixed(4096, "Crops that may wait for one embedder; an item beyond is refused.")
    max_crop_mib: int = _fixed(64, "Crops of one response message, MiB.")
    max_image_side_px: int = _fixed(32_768, "Longer side of one image, px.")
    max_image_aspect: int = _fixed(200, "The longer side of one image as a multiple of its shorter side.")
    max_image_scans: int = _fixed(100, "Scans of one JPEG: each is decoded over all of its pixels.")
    max_header_parts: int = _fixed(16_384, "Segments, chunks or boxes of one image file's header.")
    share_windows: str = _option(
        "scheduling",
        "auto",
        "Whether windows of many images share batches. auto: on CUDA.",
        flag=False,
        choices=("auto", "on", "off"),
    )

    @property
    def image_mib(self) -> int:
        """Size of one encoded image, MiB: a message's, less some for what is beside it."""
        return self.max_image_mib or max(1, self.max_message_mib - 1)

    @property
    def images_per_stream(self) -> int:
        """Images of one stream worked on at once: half of all, so that another stream has room."""
        return self.max_images_per_stream or max(1, self.max_images_in_flight // 2)

    @property
    def items_per_stream(self) -> int:
        """Items of one stream under way: those of its messages, were each as large as may be."""
        return self.max_items_per_stream or self.max_messages_in_flight * self.max_items_per_message

    @property
    def items_per_caller(self) -> int:
        """Items of one caller under way: half of all, so that another caller has room."""
        return self.max_items_per_caller or max(1, self.max_items_in_flight // 2)

    @property
    def candidates(self) -> int:
        """Windows of one image that P-Net and its suppression may leave: the larger its pyramid may be, the more."""
        return self.max_candidates or _CANDIDATES * self.max_pyramid_megapixels

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
            if fault := fault_of(each, getattr(self, each.name)):
                raise StartError(f"{flag_of(each)} {fault}")
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


def settings() -> list[Field[Any]]:
    """The fields that operators set: by flag, or by environment variable."""
    return [each for each in fields(Config) if each.metadata["flag"]]


def flag_of(setting: Field[Any]) -> str:
    """A setting as it is typed; of a field that is no flag, its name."""
    return f"--{setting.name.replace('_', '-')}" if setting.metadata["flag"] else setting.name


def default_of(setting: Field[Any]) -> str:
    """A setting's default for people, with its unit; empty where there is none."""
    about, default = setting.metadata, setting.default
    if isinstance(default, bool):
        return "on" if default else "off"
    number = f"{default:g}" if isinstance(default, float) else str(default)
    return str(about.get("shown", f"{number} {about.get('unit', '')}".strip()))


def range_of(setting: Field[Any]) -> str:
    """What values a setting may have, for people; empty where that is no question of numbers."""
    about = setting.metadata
    word = f"{about['word']}, or " if "word" in about else ""
    return f"{word}{about['least']:,} to {about['most']:,}" if "least" in about else ""


def fault_of(setting: Field[Any], value: Any) -> str:
    """What a setting's value must be, where it is not that; else empty."""
    about = setting.metadata
    if "choices" in about and value not in about["choices"]:
        return f"must be one of {', '.join(about['choices'])}, not {value}"
    if "least" not in about or value in (None, about.get("word")):
        return ""
    is_number = not isinstance(value, str) or value.isdecimal()
    if is_number and about["least"] <= float(value) <= about["most"]:
        return ""
    return f"must be {range_of(setting)}{' ' * ('unit' in about)}{about.get('unit', '')}, not {value}"


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """What to tell of each variable that is named like a setting and is none. Values are not looked at: they may be
    secrets. Those that Kubernetes sets for a Service named ``facenet…`` are not told."""
    names = [name for name in environment if name.startswith(VARIABLE_PREFIX)]
    # For a Service, Kubernetes sets NAME_SERVICE_HOST, NAME_SERVICE_PORT…, NAME_PORT and NAME_PORT_….
    services = [name.removesuffix("_SERVICE_HOST") for name in names if name.endswith("_SERVICE_HOST")]
    of_services = tuple(f"{service}_{kind}" for service in services for kind in ("SERVICE_", "PORT"))
    ours, others = [each.name.upper() for each in settings()], [*_CLIENTS, *_TESTS]
    unknown = {name.removeprefix(VARIABLE_PREFIX) for name in names if not name.startswith(of_services)}
    return [_unknown(name, ours, others) for name in sorted(unknown.difference(ours, others))]


def _unknown(name: str, *known: list[str]) -> str:
    near = next(filter(None, (get_close_matches(name, names, 1) for names in known)), None)
    hint = f": is {VARIABLE_PREFIX}{near[0]} meant?" if near else "; see --help"
    if name.lower() in Config.__dataclass_fields__:
        follows = Config.__dataclass_fields__[name.lower()].metadata.get("follows")
        hint = f": it follows {follows}" if follows else ": the server chooses it"
    return f"the environment variable {VARIABLE_PREFIX}{name} is no setting{hint}"
