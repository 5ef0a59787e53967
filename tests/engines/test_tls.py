"""A Dask scheduler and workers that speak TLS alone, and who is let in."""

import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from ddlflow.engines import GangJob, open_engine
from ddlflow.errors import EngineError, SpecError
from ddlflow.spec.site import Site

RANKS = str(Path(__file__).parent / "ranks")
sys.path.insert(0, RANKS)

import data_work  # noqa: E402 - it is on the path only now


def certificates(folder: Path) -> dict[str, str]:
    """An authority of its own, and a certificate that it signed, as files."""
    folder.mkdir()
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in ("ca", "node")]
    paths = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    for number, name in enumerate(("ca", "cert")):
        made = (
            x509.CertificateBuilder()
            .subject_name(names[number])
            .issuer_name(names[0])
            .public_key(keys[number].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=number == 0, path_length=None), critical=True)
            .sign(keys[0], hashes.SHA256())
        )
        paths[name].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths["key"].write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, dask_by_command_line: Any
) -> Iterator[tuple[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("tls")
    tls = certificates(folder / "certificates")
    files = ("--tls-ca-file", tls["ca"], "--tls-cert", tls["cert"], "--tls-key", tls["key"])
    with dask_by_command_line(folder, 2, *files, "--protocol", "tls") as (address, _):
        assert address.startswith("tls://")
        yield address, tls


def site(address: str, tls: dict[str, str] | None) -> Site:
    engine = {"use": "dask", "address": address, "workers": 2, "tls": tls}
    return Site.model_validate({"engine": engine})


def test_data_work_and_a_gang_over_tls(cluster: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    job = GangJob("meet", {}, 1, str(tmp_path), {}, (RANKS,), 60.0)
    with open_engine(site(*cluster), slots=1, threads=1) as engine:
        assert list(engine.map(data_work.square, range(5))) == [0, 1, 4, 9, 16]
        assert engine.gang(job, 2).values == [[0, 1], [1]]


def test_who_has_no_certificate_that_the_scheduler_trusts_is_not_let_in(
    cluster: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, tls = cluster
    other = certificates(tmp_path / "other")
    for files in (other, other | {"ca": tls["ca"]}):
        with pytest.raises(EngineError, match=r"No Dask scheduler answers at tls://") as caught:
            open_engine(site(address, files), slots=1, threads=1)
        assert "engine.tls" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match="nothing says by which certificates"):
        open_engine(site(address, None), slots=1, threads=1)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    tls = certificates(tmp_path / "mine") | {"key": str(tmp_path / "no.pem")}
    with pytest.raises(SpecError, match=r"engine\.tls\.key is .*no\.pem, which is no file here"):
        open_engine(site("tls://127.0.0.1:1", tls), slots=1, threads=1)


def test_files_that_do_not_belong_together_are_the_users_mistake(tmp_path: Path) -> None:
    mine, other = certificates(tmp_path / "mine"), certificates(tmp_path / "other")
    (tmp_path / "empty.pem").touch()
    for wrong in ({"key": other["key"]}, {"cert": str(tmp_path / "empty.pem")}):
        with pytest.raises(SpecError, match=r"The files of engine\.tls cannot be used \(SSLError"):
            open_engine(site("tls://127.0.0.1:1", mine | wrong), slots=1, threads=1)


@pytest.mark.parametrize("address", [None, "tcp://127.0.0.1:8786"])
def test_tls_is_for_an_address_that_says_so(address: str | None) -> None:
    tls = dict.fromkeys(("ca", "cert", "key"), "x.pem")
    text = json.dumps({"use": "dask", "address": address, "tls": tls})
    with pytest.raises(ValidationError, match="tls is for an address of tls://"):
        Site.model_validate_json(f'{{"engine": {text}}}')
