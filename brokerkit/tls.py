"""TLS as every broker that is reached over TCP is told of it."""

from __future__ import annotations

from brokerkit.plugins import Settings


class TlsSettings(Settings):
    """`tls` asks for encryption; `tls_ca` is a file with the authorities to trust (default: the system's), `tls_cert`
    and `tls_key` are files with the certificate that this side shows."""

    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
