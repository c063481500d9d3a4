"""The command ``facenet``: the SDK from the shell."""

import sys


def main() -> None:
    """Run the command; without its extra packages, say how to get them."""
    try:
        from facenet_client.cli.commands import facenet

        facenet()
    except ImportError as error:
        sys.exit(f'facenet needs its extra packages ({error.name}): pip install "facenet-serve[cli]"')
    except KeyboardInterrupt:  # before a command runs: its modules take half a second
        sys.exit(130)
