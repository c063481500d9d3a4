"""What is measured. Each module is a program of its own, run in its own environment (``python -m``), that answers
the benchmark over a pipe (``protocol``)."""
