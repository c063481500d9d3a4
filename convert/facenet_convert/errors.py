"""What can go wrong between a pretrained file and a verified model.

::

    package index ──fetch──▶ source file ──parse──▶ weights ──export──▶ ONNX graph ──verify──▶ model file
                   FetchError           SourceError        SourceError           ParityError

    model file ──quantize──▶ model file in lower precision
                PrecisionError

Each message says what to do next; ``__main__`` prints it and exits with 1.
"""


class ConversionError(Exception):
    """Base of everything this package raises on purpose."""


class FetchError(ConversionError):
    """The package that carries the weights could not be downloaded, or lacks the file."""


class SourceError(ConversionError):
    """The source file is not the pinned one, or does not hold what its release promises."""


class ParityError(ConversionError):
    """The exported graph does not compute what the TensorFlow original computes."""


class PrecisionError(ConversionError):
    """A model in lower precision lost too much of what its fp32 form computes."""
