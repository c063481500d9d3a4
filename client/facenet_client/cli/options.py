"""The options that commands share, and how they become the SDK's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click

Command: TypeAlias = Callable[..., None]

MARGIN_PX = 32
"""Around a face in its crop: what the calibrations were fitted on, and the server's default."""

AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
AS_CSV = click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values with a header.")
DRAW = click.option(
    "--draw",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Write pictures with boxes and landmarks: a file for one image, else a folder.",
)
MODEL = click.option("--model", help="The embedder.  [default: the server's]")
PATHS = click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path))
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Name each file that is passed over, with the reason.")
_COUNT, _PIXELS = click.IntRange(min=1), click.IntRange(0, 1000)

SELECTIONS = ("all", "largest", "best_score", "most_central")
ONE_FACE = SELECTIONS[1:]


_OLD_SPELLINGS = {
    "--cluster_threshold": ("--eps", ""),
    "--detect_multiple_faces": ("--detect-multiple-faces", ""),
    "--distance_metric": ("--metric", ""),
    "--exif": ("", "the EXIF orientation is applied unless --no-exif or --reference is given: leave it out"),
    "--gpu_memory_fraction": ("", "the server has the GPU: facenet-server --gpu-mem-limit-mb"),
    "--image_size": ("--image-size", "embeddings are of crops of 160 px always: leave it out"),
    "--largest_cluster_only": ("--largest-only", ""),
    "--lfw_batch_size": ("", "the server makes the batches: leave it out"),
    "--lfw_nrof_folds": ("", "the folds are those of the pairs file: leave it out"),
    "--lfw_pairs": ("--pairs", ""),
    "--margin": ("--margin-px", "the margin is fixed: leave it out"),
    "--min_cluster_size": ("--min-samples", ""),
    "--minsize": ("--min-face-px", ""),
    "--model_dir": ("--model", ""),
    "--out_dir": ("--out", ""),
    "--random_order": ("--random-order", ""),
    "--subtract_mean": ("--subtract-mean", ""),
    "--threshold": ("--thresholds", ""),
    "--use_fixed_image_standardization": ("", "each model knows its own standardisation: leave it out"),
    "--use_flipped_images": ("--flip", ""),
}
"""Options of davidsandberg/facenet's tools: what each is called here, and what to do where a command has none."""


def old_spelling(error: click.NoSuchOption) -> click.UsageError:
    """The same error, which names the option of this command that one of the original tools stands for."""
    here, otherwise = _OLD_SPELLINGS.get(error.option_name, ("", ""))
    known = {name: option for option in error.ctx.command.params for name in option.opts} if error.ctx else {}
    if here in known:
        is_flag = getattr(known[here], "is_flag", False)
        otherwise = f"here it is {here}{', without a value' if is_flag else ''}"
    return click.UsageError(f"No such option: {error.option_name}; {otherwise}.", error.ctx) if otherwise else error


def faces(choices: Sequence[str], default: str | None = None) -> Callable[[Command], Command]:
    """``--faces``."""
    return click.option(
        "--faces",
        type=click.Choice(choices),
        default=default,
        show_default=default is not None,
        help="Which faces of an image count.",
    )


def operating_point(default: str) -> Callable[[Command], Command]:
    """``--operating-point``."""
    told = "The operating point whose threshold counts; `facenet info` shows them."
    text = f"{told}  [default: {default}, or the strictest there is]"
    return click.option("--operating-point", help=text)


def folder(name: str) -> Callable[[Command], Command]:
    """An argument that is a folder that exists."""
    return click.argument(name, type=click.Path(exists=True, file_okay=False, path_type=Path))


def results(*suffixes: str) -> Callable[[Command], Command]:
    """How results are written: for people, or as ``--json``, ``--csv`` and ``--out`` with one of these suffixes."""
    kinds = ", ".join(suffixes)

    def decorate(command: Command) -> Command:
        for option in (
            click.option(
                "--out",
                type=click.Path(dir_okay=False, path_type=Path),
                metavar="FILE",
                help=f"Write results to FILE ({kinds}), or continue it: what it has is not asked for again.",
            ),
            AS_CSV,
            AS_JSON,
        ):
            command = option(command)
        return command

    return decorate


def check_form(as_json: bool, as_csv: bool) -> None:
    """Raises UsageError where two forms of results are asked for."""
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")


def looking(command: Command) -> Command:
    """The options of finding faces in images."""
    for option in (
        VERBOSE,
        click.option("--no-exif", is_flag=True, help="Ignore the EXIF orientation."),
        click.option(
            "--margin-px", type=_PIXELS, help=f"Margin around a face in its crop, px.  [default: {MARGIN_PX}]"
        ),
        click.option(
            "--thresholds",
            type=(click.FloatRange(0.3, 1, max_open=True),) * 3,
            help="What P-Net, R-Net and O-Net must score.  [default: 0.6 0.7 0.7]",
        ),
        click.option(
            "--min-face-px", type=click.IntRange(12, 1000), help="Smallest face looked for, px.  [default: 20]"
        ),
    ):
        command = option(command)
    return command


def max_faces(command: Command) -> Command:
    """``--max-faces``."""
    return click.option("--max-faces", type=_COUNT, help="At most this many faces per image.  [default: all]")(command)


def reference(margin_px: int) -> Callable[[Command], Command]:
    """``--reference``: what the tool of davidsandberg/facenet does, which knows no EXIF orientation."""
    text = f"Do exactly as the original: EXIF orientation ignored, a margin of {margin_px} px unless another is given."
    return click.option("--reference", "reference_margin_px", flag_value=margin_px, type=int, help=text)


def request(given: dict[str, Any]) -> Any:
    """What was given on the command line as the SDK's options; what was not is left to the server."""
    options = {name: value for name, value in given.items() if value is not None and name != "verbose"}
    margin_px = options.pop("reference_margin_px", None)
    as_reference = margin_px is not None
    if as_reference:
        options.setdefault("margin_px", margin_px)
    return options | {"apply_exif_orientation": not (options.pop("no_exif") or as_reference)}
