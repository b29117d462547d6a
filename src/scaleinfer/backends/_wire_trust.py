"""Which certificates are trusted."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from scaleinfer.errors import ConfigError

__all__ = ["trusted_by", "verifying_context"]

_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_OPENSSL = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def trusted_by() -> str:
    """Return in words whose certificates are trusted."""
    named = [
        f"{name}={os.environ[name]}" for name in (*_OPENSSL, *_BUNDLES) if os.environ.get(name)
    ]
    return " and ".join(named) or "the system"


def verifying_context() -> ssl.SSLContext:
    """Return a context that checks certificates and host names.

    `SSL_CERT_FILE` and `SSL_CERT_DIR` (OpenSSL's own variables) and `REQUESTS_CA_BUNDLE` or
    `CURL_CA_BUNDLE` (a file or a folder) name who is trusted; any of them replaces the system's
    authorities. A system without any (some containers, python.org's Python on macOS) gets
    certifi's, if that is installed.

    Raises:
        ConfigError: A variable names what cannot be read.
    """
    bundle = next((name for name in _BUNDLES if os.environ.get(name)), None)
    for name in _OPENSSL:
        value = os.environ.get(name)
        # OpenSSL itself ignores a file that is not there, and then nothing is trusted.
        if value and not any(Path(part).exists() for part in value.split(os.pathsep)):
            raise ConfigError(f"{name} names {value}, which does not exist.")
    if bundle is None:
        context = ssl.create_default_context()
        if not any(os.environ.get(name) for name in _OPENSSL) and _trusts_nobody(context):
            _add_certifi(context)
        return context
    path = Path(os.environ[bundle])
    file, folder = (None, path) if path.is_dir() else (path, None)
    try:
        context = ssl.create_default_context(cafile=file, capath=folder)
        if any(os.environ.get(name) for name in _OPENSSL):
            context.set_default_verify_paths()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{bundle} names {path}, which holds no certificates that can be read: {error}."
        ) from error
    return context


def _trusts_nobody(context: ssl.SSLContext) -> bool:
    if context.cert_store_stats()["x509_ca"]:
        return False
    folder = ssl.get_default_verify_paths().capath
    return not (folder and any(Path(folder).iterdir()))


def _add_certifi(context: ssl.SSLContext) -> None:
    try:
        import certifi
    except ImportError:
        return
    context.load_verify_locations(certifi.where())
