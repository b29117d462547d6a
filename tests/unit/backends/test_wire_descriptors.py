"""How many connections a process can hold, and whom it trusts."""

from __future__ import annotations

import resource
import ssl
from typing import TYPE_CHECKING

import pytest

from scaleinfer.backends import _wire_trust
from scaleinfer.backends._wire_descriptors import max_connections

if TYPE_CHECKING:
    from pathlib import Path

ENDLESS = resource.RLIM_INFINITY


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("limits", "refuse_above", "raised_to", "connections"),
    [
        ((1024, 4096), ENDLESS, 4096, 4096),
        ((1024, 1 << 20), ENDLESS, 1 << 16, 1 << 16),
        ((1024, ENDLESS), ENDLESS, 1 << 16, 1 << 16),
        ((256, ENDLESS), 10_240, 10_240, 10_240),  # macOS
        ((1 << 18, 1 << 20), ENDLESS, None, 1 << 16),
        ((ENDLESS, ENDLESS), ENDLESS, None, 1 << 16),
        ((1024, 4096), 0, None, 1024),
        ((16, 16), ENDLESS, None, 0),
    ],
)
def test_the_limit_is_raised(
    limits: tuple[int, int],
    refuse_above: int,
    raised_to: int | None,
    connections: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def setrlimit(_: int, wanted: tuple[int, int]) -> None:
        if refuse_above != ENDLESS and wanted[0] > refuse_above:
            raise ValueError("not allowed")
        asked.append(wanted[0])

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    found = max_connections()
    assert asked == ([] if raised_to is None else [raised_to])
    assert found >= 1
    assert found == 1 or connections - 1000 < found < connections


def test_whom_it_trusts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _wire_trust.trusted_by() == "the system"
    context = _wire_trust.verifying_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    assert _wire_trust.trusted_by() == f"REQUESTS_CA_BUNDLE={tmp_path}"
    assert not _wire_trust.verifying_context().get_ca_certs()


def test_a_system_without_authorities_gets_certifis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wire_trust, "_trusts_nobody", lambda _: True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    monkeypatch.setattr(ssl, "create_default_context", lambda: context)
    assert _wire_trust.verifying_context() is context
    assert context.get_ca_certs()
