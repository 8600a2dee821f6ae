"""tcp under TLS keeps the contract, and lets in nobody without a certificate of the mesh's CA."""

import asyncio
import os
import ssl
import subprocess
from pathlib import Path

import pytest

from common.config.types import TlsConfig, TransferConfig
from common.errors import ConfigError
from tests.contract.tcp_wire import ALWAYS, address_of, hang_up, is_turned_away, pair, relayed, until_striped
from transfer.backends.base import Backend
from transfer.backends.tcp import Striping, TcpBackend, TlsFiles
from transfer.errors import PeerLost
from transfer.frames import encode_hello
from transfer.testing import BackendContract, mesh


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def make_ca(folder: Path) -> None:
    """ca.key and ca.pem."""
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", "/CN=throw-away CA", "-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.pem",
    )  # fmt: skip


def make_member(folder: Path, name: str) -> TlsFiles:
    """A certificate from the folder's CA."""
    base = folder / name
    openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-subj", f"/CN={name}", "-keyout", f"{base}.key", "-out", f"{base}.csr",
    )  # fmt: skip
    openssl(
        "x509", "-req", "-in", f"{base}.csr", "-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key",
        "-CAcreateserial", "-days", "2", "-out", f"{base}.pem",
    )  # fmt: skip
    return TlsFiles(base.with_suffix(".pem"), base.with_suffix(".key"), folder / "ca.pem")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """Those of a member of the mesh."""
    folder = tmp_path_factory.mktemp("ca")
    make_ca(folder)
    return make_member(folder, "member")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """Those of another CA's mesh."""
    folder = tmp_path_factory.mktemp("other-ca")
    make_ca(folder)
    return make_member(folder, "stranger")


class TestTls(BackendContract):
    @pytest.fixture
    def backend(self, files: TlsFiles) -> Backend:
        return TcpBackend(tls=files, striping=ALWAYS)


def test_only_tls_authenticates(files: TlsFiles) -> None:
    assert TcpBackend(tls=files).traits.authenticated
    assert not TcpBackend().traits.authenticated


@pytest.mark.parametrize("connections", [1, 3])
async def test_segments_of_every_length(files: TlsFiles, connections: int) -> None:
    striping = Striping(connections=connections, segment_bytes=1, handoff_bytes=0)
    async with pair(TcpBackend(tls=files, striping=striping), zone_bytes=3 << 20) as made:
        await made.pass_on(1, os.urandom(3 << 20))
        await made.join()
        for length in (1, 2, 16_384, 16_385, 3 << 20):
            await made.pass_on(length % 2, os.urandom(length))


async def test_nothing_is_sent_in_the_clear(files: TlsFiles) -> None:
    seen = bytearray()

    def listen_in(_number: int, data: bytes) -> bytes:
        seen.extend(data)
        return data

    async with mesh(TcpBackend(tls=files, striping=ALWAYS)) as made, relayed(made.endpoints[0]) as relay:
        relay.tamper = listen_in
        offer, take = made.offer(), made.take(endpoints=(relay.endpoint,))
        await take
        await offer.ended()
        blocks = made.given.parts[0][0]
        assert len(seen) > made.sink.payload_bytes_received
        assert blocks[63].numpy().tobytes()[:64] not in seen
        assert b"PDKV" not in seen


@pytest.mark.parametrize("at", ["control", "data"])
async def test_a_flipped_bit_breaks_the_connection(files: TlsFiles, at: str) -> None:
    """Wherever it is; no checksum of ours is needed for it."""

    def flip(number: int, data: bytes) -> bytes:
        return data if (number == 0) != (at == "control") else data[:-1] + bytes([data[-1] ^ 1])

    async with mesh(TcpBackend(tls=files, striping=ALWAYS)) as made, relayed(made.endpoints[0]) as relay:
        offer, take = made.offer(layers=1), made.take(endpoints=(relay.endpoint,))
        await until_striped(made)
        relay.tamper = flip
        for layer in range(3, 6):
            offer.layer_ready(layer, 30)
        with pytest.raises(PeerLost):
            await take
        await made.assert_works()


# ------------------------------------------------------------ who is not let in


async def says_nothing(sink: Backend, endpoint: str) -> None:
    """Connect and wait for a word; with TLS 1.3 a client learns only then that it was refused."""
    link = await sink.connect(endpoint)
    try:
        await link.receive()
    finally:
        await link.close()


@pytest.mark.parametrize("direction", ["sink", "source"])
async def test_another_ca(files: TlsFiles, stranger: TlsFiles, direction: str) -> None:
    ours, theirs = TcpBackend(tls=files), TcpBackend(tls=stranger)
    async with mesh(ours if direction == "sink" else theirs) as made:
        with pytest.raises(PeerLost):
            await says_nothing(theirs if direction == "sink" else ours, made.endpoints[0])
        assert made.source.connections_broken == 0
        await made.assert_works()


@pytest.mark.parametrize("direction", ["sink", "source"])
async def test_one_side_without_tls(files: TlsFiles, direction: str) -> None:
    plain, tls = TcpBackend(), TcpBackend(tls=files)
    async with mesh(tls if direction == "sink" else plain) as made:
        with pytest.raises(PeerLost):
            await says_nothing(plain if direction == "sink" else tls, made.endpoints[0])
        assert made.source.connections_broken == 0
        await made.assert_works()


async def test_no_certificate(files: TlsFiles) -> None:
    async with mesh(TcpBackend(tls=files)) as made:
        context = ssl.create_default_context(cafile=str(files.ca))
        context.check_hostname = False
        reader, writer = await asyncio.open_connection(*address_of(made.endpoints[0]), ssl=context)
        try:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await refused(reader, writer)
        finally:
            await hang_up(writer)
        assert made.source.connections_broken == 0
        await made.assert_works()


async def refused(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Introduce oneself as if nothing were the matter."""
    writer.write(encode_hello())
    if not await reader.read(1):
        raise ConnectionResetError("closed")


@pytest.mark.parametrize("data", [encode_hello(), b"\x16\x03\x01\xff\xff" + b"\x00" * 70_000, b"\xee" * 999])
async def test_noise_instead_of_a_handshake(files: TlsFiles, data: bytes) -> None:
    async with mesh(TcpBackend(tls=files)) as made:
        assert await is_turned_away(data, made.endpoints[0])
        await made.assert_works()


async def test_a_handshake_that_is_begun_and_left(files: TlsFiles) -> None:
    async with mesh(TcpBackend(tls=files)) as made:
        _, writer = await asyncio.open_connection(*address_of(made.endpoints[0]))
        writer.write(b"\x16")
        await made.assert_works()
        await hang_up(writer)


def test_files_that_cannot_be_used(files: TlsFiles, stranger: TlsFiles, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    openssl("ec", "-in", str(files.key), "-aes256", "-passout", "pass:secret", "-out", str(locked))
    for wrong in (
        TlsFiles(files.certificate, stranger.key, files.ca),
        TlsFiles(tmp_path / "missing", files.key, files.ca),
        TlsFiles(files.certificate, files.key, files.key),
        TlsFiles(files.certificate, locked, files.ca),
    ):
        with pytest.raises(ValueError, match="cannot be used for TLS"):
            TcpBackend(tls=wrong)


def test_mesh_yaml_names_the_files(files: TlsFiles) -> None:
    tls = TlsConfig(str(files.certificate), str(files.key), str(files.ca))
    backend = TcpBackend.from_config(TransferConfig(tls=tls))
    assert backend.traits.authenticated
    assert not TcpBackend.from_config(TransferConfig()).traits.authenticated
    missing = TransferConfig(tls=TlsConfig("nowhere.pem", str(files.key), str(files.ca)))
    with pytest.raises(ConfigError, match=r"transfer\.tls"):
        TcpBackend.from_config(missing)
