"""Certificates for tests of TLS, made by the openssl program: an authority, and servers and clients it vouches for."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

VALID_DAYS = "2"
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The files of a certificate and of its key."""

    certificate: Path
    key: Path


def make_authority(folder: Path, name: str) -> Certificate:
    """Make the certificate of an authority."""
    made = Certificate(certificate=folder / f"{name}.crt", key=folder / f"{name}.key")
    _openssl(
        *("req", "-x509", *KEY, "-days", VALID_DAYS, "-subj", f"/CN={name}"),
        *("-keyout", str(made.key), "-out", str(made.certificate)),
    )
    return made


def make_certificate(folder: Path, authority: Certificate, name: str) -> Certificate:
    """Make a certificate for a host or a role of this name, signed by the authority."""
    made = Certificate(certificate=folder / f"{name}.crt", key=folder / f"{name}.key")
    request, names = folder / f"{name}.csr", folder / f"{name}.ext"
    names.write_text(f"subjectAltName = DNS:{name}\n")
    _openssl("req", *KEY, "-subj", f"/CN={name}", "-keyout", str(made.key), "-out", str(request))
    _openssl(
        *("x509", "-req", "-in", str(request), "-days", VALID_DAYS, "-extfile", str(names), "-set_serial", "2"),
        *("-CA", str(authority.certificate), "-CAkey", str(authority.key), "-out", str(made.certificate)),
    )
    made.key.chmod(0o600)
    return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
