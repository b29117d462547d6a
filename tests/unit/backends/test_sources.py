"""Host files and registries: what is read from them, and what is wrong with them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends import EndpointSet, OpenAIBackend, resolve_backend
from scaleinfer.backends._membership import Address
from scaleinfer.backends._registry import Shape, parse_services
from scaleinfer.backends._sources import Fixed, HostFile, base_url, parse_hosts
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


def test_a_host_file_in_all_its_forms() -> None:
    text = (
        "# written by the launcher\n"
        "\n"
        "node1\t8000\trole=worker\tmodel=Qwen/Qwen3-8B\n"
        "node2\t8001\trole=judge # the big one\n"
        "node3 8002 role=worker\tweight=2\n"
        "node4:8003\n"
        "node5:8004 role=worker # with a tag\n"
        "  10.0.0.7:9000  \n"
        "fe80::1\t8000\n"
        "[fe80::2]:8000\n"
        "https://gateway.example.org/v1/ role=outside\n"
        "node6\t8000\tscheme=https\tpath=/openai/v1\tnote=a b c\n"
        "node7\n"
    )
    found = parse_hosts(text, "file")
    assert [(one.url, one.model, one.weight) for one in found] == [
        ("http://node1:8000/v1", "Qwen/Qwen3-8B", 1.0),
        ("http://node2:8001/v1", None, 1.0),
        ("http://node3:8002/v1", None, 2.0),
        ("http://node4:8003/v1", None, 1.0),
        ("http://node5:8004/v1", None, 1.0),
        ("http://10.0.0.7:9000/v1", None, 1.0),
        ("http://[fe80::1]:8000/v1", None, 1.0),
        ("http://[fe80::2]:8000/v1", None, 1.0),
        ("https://gateway.example.org/v1", None, 1.0),
        ("https://node6:8000/openai/v1", None, 1.0),
        ("http://node7/v1", None, 1.0),
    ]
    assert found[1].tags == {"role": "judge"}
    assert found[9].tags["note"] == "a b c"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("node1\teight", "'eight' is neither a port"),
        ("node1\t8000\tworker", "'worker' is not key=value"),
        ("node1:99999", "is not host:port"),
        ("node1\t8000\tweight=0", "weight=0"),
        ("node1\t8000\tweight=nan", "weight=nan"),
        ("ftp://node1/v1", "no http"),
        ("a/b:80", "is not host:port"),
        ("node1\t8000\t=x", "is not key=value"),
    ],
)
def test_a_line_that_is_no_endpoint_is_named(line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"hosts\.txt, line 2") as caught:
        parse_hosts(f"# first\n{line}\n", "hosts.txt")
    assert said in str(caught.value)


@given(st.text())
def test_any_text_is_endpoints_or_one_error(text: str) -> None:
    try:
        found = parse_hosts(text, "file")
    except ConfigError:
        return
    for address in found:
        OpenAIBackend(address.url, api_key="")


async def test_a_host_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("a:1\n")
    source = HostFile(path)
    first = await source.read()
    assert [one.url for one in first] == ["http://a:1/v1"]
    path.write_text("a:1\nb:2\n")
    assert len(await source.read()) == 2
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        await source.read()


async def test_half_a_line_is_left_until_it_is_whole_or_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("a:8000\nb:80")  # the launcher is still writing b:8001
    source = HostFile(path)
    assert [one.url for one in await source.read()] == ["http://a:8000/v1"]
    path.write_text("a:8000\nb:8001")
    assert len(await source.read()) == 1
    assert len(await source.read()) == 2  # nothing has changed between two looks
    old = tmp_path / "old"
    old.write_text("a:8000\nb:8001")
    os.utime(old, (1_000_000_000, 1_000_000_000))
    assert len(await HostFile(old).read()) == 2


REGISTRIES: list[tuple[Any, Shape]] = [
    ([{"host": "n1", "port": 8000, "model": "m"}], Shape()),
    ({"services": [{"host": "n1", "port": "8000", "model": "m", "healthy": True}]}, Shape()),
    ({"endpoints": {"a": {"host": "n1", "port": 8000, "model": "m", "status": "UP"}}}, Shape()),
    (
        {"result": {"list": [{"node": {"name": "n1", "port": 8000}, "served": "m"}]}},
        Shape(items="result.list", host="node.name", port="node.port", model="served"),
    ),
    # Consul's /v1/health/service/NAME?passing=1
    (
        [{"Service": {"Address": "n1", "Port": 8000, "Meta": {"model": "m"}}, "Checks": [{}]}],
        Shape(host="Service.Address", port="Service.Port", model="Service.Meta.model"),
    ),
    ([{"uri": "http://n1:8000/v1/", "model": "m"}], Shape(url="uri")),
    ([{"host": "n1:8000", "model": "m"}], Shape()),
]


@pytest.mark.parametrize(("data", "shape"), REGISTRIES)
def test_registries_of_different_shapes(data: Any, shape: Shape) -> None:
    assert parse_services(data, shape, "registry") == [Address("http://n1:8000/v1", "m")]


def test_services_that_are_not_healthy_are_left_out() -> None:
    states = [True, "healthy", "ready", "OK", 1, False, "down", "starting", 0, "unhealthy"]
    data = [{"host": f"n{i}", "port": 1, "health": state} for i, state in enumerate(states)]
    found = parse_services(data, Shape(), "registry")
    assert [one.url for one in found] == [f"http://n{i}:1/v1" for i in range(5)]
    deep = [{"host": "n", "port": 1, "checks": {"http": "failing"}}]
    assert parse_services(deep, Shape(healthy="checks.http"), "registry") == []
    assert len(parse_services(deep, Shape(), "registry")) == 1


def test_a_services_tags_are_its_plain_fields_or_a_dict_of_them() -> None:
    data = [{"host": "n", "port": 1, "rack": 7, "labels": {"role": "worker"}}]
    assert parse_services(data, Shape(), "r")[0].tags == {"host": "n", "port": "1", "rack": "7"}
    assert parse_services(data, Shape(tags="labels"), "r")[0].tags == {"role": "worker"}


@pytest.mark.parametrize(
    ("data", "shape", "said"),
    [
        ("text", Shape(), "lists no services"),
        ({"services": 3}, Shape(), "lists no services"),
        ([1, 2], Shape(), "lists no services"),
        ({"a": []}, Shape(items="b"), "lists no services"),
        ([{"name": "n1"}], Shape(), "has no 'host'"),
        ([{"host": "n1", "port": "http"}], Shape(), "'port' is 'http'"),
    ],
)
def test_what_is_no_registry_is_said(data: Any, shape: Shape, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_services(data, shape, "registry:http://r/services")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["host", "port", "services", "status"]), inner)
        ),
    )
)
def test_any_json_is_services_or_one_error(data: Any) -> None:
    try:
        found = parse_services(data, Shape(), "registry")
    except ConfigError:
        return
    for address in found:
        OpenAIBackend(address.url, api_key="")


def test_addresses() -> None:
    assert base_url("n:1") == "http://n:1/v1"
    assert base_url("n", scheme="https", prefix="openai/v1/") == "https://n/openai/v1"
    assert base_url("http://n:1/v1/") == "http://n:1/v1"
    for wrong in ("", ":1", "n:x", "u@n:1", "n:0", "http://"):
        with pytest.raises(ConfigError):
            base_url(wrong)


async def test_a_variable_with_several_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://a:1/v1, b:2\thttp://c:3/v1")
    backend = resolve_backend("env:", model="m").backend
    assert isinstance(backend, EndpointSet)
    assert (backend.endpoint, backend.model, backend.priced) == ("env:OPENAI_BASE_URL", "m", True)
    urls = [one.url for one in await Fixed("x", ["http://a:1/v1", "b:2", "http://c:3/v1"]).read()]
    async with backend:
        assert [member.endpoint for member in backend.members] == urls
    monkeypatch.setenv("SERVERS", "d:4")
    assert resolve_backend("env:SERVERS").backend.endpoint == "env:SERVERS"
    monkeypatch.delenv("SERVERS")
    with pytest.raises(ConfigError, match="SERVERS names no endpoint"):
        resolve_backend("env:SERVERS")


def test_specs(tmp_path: Path) -> None:
    hosts = resolve_backend(f"hosts:{tmp_path}/hosts", model="m").backend
    assert isinstance(hosts, EndpointSet)
    assert hosts.endpoint == f"hosts:{tmp_path}/hosts"
    assert not hosts.priced
    registry = resolve_backend("registry:https://user:secret@r.example.org/list?token=x").backend
    assert registry.endpoint == "registry:https://r.example.org/list"
    for spec, said in (
        ("hosts:", "lacks its file"),
        ("registry:", "lacks its url"),
        ("registry:ftp://x", "no http"),
    ):
        with pytest.raises(ConfigError, match=said):
            resolve_backend(spec)
    with pytest.raises(ConfigError, match="leave out base_url"):
        resolve_backend("hosts:x", base_url="http://a/v1")


def test_options_are_the_members() -> None:
    backend = EndpointSet.of(["a:1", "b:2"], model="m", concurrency=7, packing=3, api_key="k")
    assert (backend.concurrency, backend.packing, backend.endpoint) == (7, 3, "2 endpoints")
    member = backend.member(Address("http://a:1/v1", "own", weight=2.0))
    assert (member.model, member.weight, member.concurrency) == ("own", 2.0, 7)
    for wrong in ({"base_url": "x"}, {"weight": 2.0}, {"packing": 0}):
        with pytest.raises(ConfigError):
            EndpointSet.of(["a:1"], **wrong)
    with pytest.raises(ConfigError, match="no endpoint"):
        EndpointSet.of([])
    with pytest.raises(ConfigError, match="every"):
        EndpointSet.hosts("x", every=0)
