"""A certificate authority, its files, and what callers and servers need of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import grpc
import trustme


class Authority(NamedTuple):
    """A certificate authority, and its files."""

    ca: trustme.CA
    folder: Path

    def file(self) -> str:
        """A file of its own certificate, to trust."""
        self.ca.cert_pem.write_to_path(str(self.folder / "ca.pem"))
        return str(self.folder / "ca.pem")

    def certificate(self, name: str) -> tuple[str, str]:
        """Files of a new certificate's chain and its key."""
        issued = self.ca.issue_cert(name)
        chain, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        chain.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        return str(chain), str(key)

    def trusted(self, name: str = "", *, token: str | None = None) -> grpc.ChannelCredentials:
        """What a caller needs who trusts this authority, has a certificate for a name, and a token."""
        chain, key = map(read, self.certificate(name)) if name else (None, None)
        channel = grpc.ssl_channel_credentials(self.ca.cert_pem.bytes(), key, chain)
        if token is None:
            return channel
        return grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(token))


def read(file: str) -> bytes:
    return Path(file).read_bytes()


def flags(settings: Mapping[str, str]) -> list[str]:
    """A server's settings as its command takes them."""
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
