"""Certificates for tests of TLS: an authority, and servers and clients it vouches for."""

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The files of a certificate and of its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, kw_only=True)
class Authority:
    """An authority, and the file of its certificate."""

    signer: trustme.CA
    certificate: Path


def make_authority(folder: Path, name: str) -> Authority:
    """Make an authority."""
    made = Authority(signer=trustme.CA(organization_name=name), certificate=folder / f"{name}.crt")
    made.signer.cert_pem.write_to_path(made.certificate)
    return made


def make_certificate(folder: Path, authority: Authority, name: str) -> Certificate:
    """Make a certificate for a host or a role of this name, signed by the authority."""
    made = Certificate(certificate=folder / f"{name}.crt", key=folder / f"{name}.key")
    issued = authority.signer.issue_cert(name, common_name=name)
    issued.cert_chain_pems[0].write_to_path(made.certificate)
    issued.private_key_pem.write_to_path(made.key)
    made.key.chmod(0o600)  # libpq rejects a key that others can read
    return made
