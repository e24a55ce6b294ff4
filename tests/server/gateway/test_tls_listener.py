"""A port with few limits: strangers give way to strangers, and who has proved to be a site stays."""

import asyncio
import contextlib
import ssl

import pytest
from projects import make_project

from fedglm.server.gateway import tls_listener as module
from fedglm.server.gateway.connections import ConnectionLimits, ConnectionTable
from fedglm.server.gateway.tls_listener import TlsListener, bind_socket


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project") / "fl")


class Greeter(asyncio.Protocol):
    """Says hello, and takes a line for the name of a site that has proved itself."""

    def __init__(self, connection):
        self._connection = connection

    def connection_made(self, transport):
        self._transport = transport
        self._connection.abort = transport.abort
        transport.write(b"hello\n")

    def data_received(self, data):
        self._connection.authenticate(data.decode())
        self._transport.write(b"welcome\n")

    def connection_lost(self, _):
        self._connection.table.remove(self._connection)


def visit(project, act, limits, **options):
    """Run `act` with a port that has so many limits; it gives a way to connect, and the table of who is there."""

    async def whole():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(project.certificate, project.server_key)
        sock, table = bind_socket("127.0.0.1", 0), ConnectionTable(limits)
        port = TlsListener(sock, context, Greeter, connections=table, **options)
        port.open()
        trust = ssl.create_default_context(cafile=project.authority)
        number = sock.getsockname()[1]

        async def connect(*, speaks=True, source="127.0.0.1"):
            named = {"ssl": trust, "server_hostname": "127.0.0.1"} if speaks else {}
            reader, writer = await asyncio.open_connection("127.0.0.1", number, local_addr=(source, 0), **named)
            if speaks:
                assert await asyncio.wait_for(reader.readline(), 5) == b"hello\n"
            else:
                await until(lambda: True)
            return reader, writer

        try:
            await asyncio.wait_for(act(connect, table), 60)
        finally:
            port.close()

    asyncio.run(whole())


async def until(condition):
    for _ in range(200):
        await asyncio.sleep(0.01)
        if condition():
            return
    raise AssertionError("it never came true")


async def is_cut_off(connection):
    """Whether the server has ended the connection."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        return await asyncio.wait_for(connection[0].read(100), 5) == b""
    return True


async def prove(connection, site="a"):
    connection[1].write(site.encode())
    assert await asyncio.wait_for(connection[0].readline(), 5) == b"welcome\n"


LIMITS = ConnectionLimits(silent=3, unauthenticated=4, per_address=2, per_site=2)


def test_the_oldest_silent_connection_goes(project):
    async def act(connect, table):
        silent = [await connect(speaks=False) for _ in range(3)]
        await until(lambda: table.counts == (3, 0, 0))
        more = [await connect(speaks=False) for _ in range(2)]
        assert await is_cut_off(silent[0])
        assert await is_cut_off(silent[1])
        await until(lambda: table.counts == (3, 0, 0))
        for connection in (silent[2], *more):
            connection[1].close()
        await until(lambda: table.counts == (0, 0, 0))  # what closes has spoken

    visit(project, act, LIMITS)


def test_silence_has_an_end(project, monkeypatch):
    monkeypatch.setattr(module, "FIRST_BYTE_TIMEOUT_S", 0.2)

    async def act(connect, table):
        assert await is_cut_off(await connect(speaks=False))
        assert table.counts == (0, 0, 0)

    visit(project, act, LIMITS)


def test_one_address_has_some_of_the_places(project):
    async def act(connect, table):
        other = await connect(source="127.0.0.2")
        first = [await connect() for _ in range(2)]
        await connect()
        assert await is_cut_off(first[0])
        assert table.counts == (0, 3, 0)
        await prove(other)

    visit(project, act, LIMITS)


def test_who_has_proved_to_be_a_site_stays(project):
    async def act(connect, table):
        site = await connect()
        await prove(site)
        for _ in range(8):
            await connect()
            await connect(speaks=False)
        await prove(site)
        assert table.counts[2] == 1

    visit(project, act, LIMITS)


def test_an_address_that_a_site_came_from_gives_way_last(project):
    async def act(connect, table):
        site = await connect(source="127.0.0.9")
        await prove(site)
        again = await connect(source="127.0.0.9")
        strangers = [await connect(source=f"127.0.0.{number}") for number in range(2, 6)]
        assert await is_cut_off(strangers[0])
        assert table.counts == (0, 4, 1)
        await prove(again)

    visit(project, act, LIMITS)


def test_a_site_has_so_many_connections(project):
    async def act(connect, table):
        own = []
        for _ in range(3):
            own.append(await connect())
            await prove(own[-1])
        other = await connect()
        await prove(other, "b")
        assert await is_cut_off(own[0])
        assert table.counts == (0, 0, 3)

    visit(project, act, LIMITS)


def test_who_is_not_admitted_is_hung_up_on(project):
    async def act(connect, table):
        connection = await connect(speaks=False)
        assert await is_cut_off(connection)
        assert table.counts == (0, 0, 0)

    visit(project, act, LIMITS, accepts=lambda _: False)


def test_a_handshake_that_stops_has_an_end(project, monkeypatch):
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT_S", 0.3)

    async def act(connect, table):
        half = await connect(speaks=False)
        half[1].write(bytes.fromhex("160301"))
        assert await is_cut_off(half)
        garbage = await connect(speaks=False)
        garbage[1].write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(garbage[0].read(-1), 5)
        await until(lambda: table.counts == (0, 0, 0))

    visit(project, act, LIMITS)


@pytest.mark.parametrize("descriptors", [64, 256, 1024, 65536])
def test_half_of_the_open_files_are_not_for_strangers(descriptors):
    limits = ConnectionLimits.for_descriptors(descriptors)
    assert 0 < limits.per_address <= limits.unauthenticated
    assert limits.silent + limits.unauthenticated <= descriptors // 2


def test_an_ipv6_address_stands_for_its_network():
    table = ConnectionTable()
    groups = {
        table.add(address, lambda: None).address for address in ("2001:db8::1", "2001:db8::2%eth0", "::ffff:1.2.3.4")
    }
    assert groups == {"2001:db8::/64", "1.2.3.4"}
