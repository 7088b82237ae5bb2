"""Finds the next step to report when a TLS connection fails, on either side. Pure.

libpq reports what it found, and sometimes advises verifying less. That advice is removed.
"""

from __future__ import annotations

DOCUMENT = "docs/configuration.md, TLS"
# Words in the text of libpq or the server, and the next step.
NEXT_STEPS = (
    (
        "certificate verify failed",
        "its certificate is not signed by an authority in sslrootcert, or is out of date: name the file of the "
        "authority that signed it, and trust no other",
    ),
    (
        "does not match host name",
        "the certificate belongs to another host: connect by a name that is in it, or have one issued for this name",
    ),
    ("root certificate file", "sslrootcert must name a file with the authority's certificate, or be system"),
    ("certificate file", "sslcert and sslkey must name the files of a client certificate and of its key"),
    ("private key file", "sslkey must name the key of sslcert, in a file that only its owner can read"),
    (
        "does not support SSL",
        "the server has no TLS: set ssl = on there, or, if nobody can listen in between, remove sslmode from the URL",
    ),
    ("no encryption", "the server requires TLS: add sslmode=verify-full and sslrootcert to the URL"),
    ("sslmode value", "sslmode is one of disable, prefer, require, verify-ca and verify-full"),
)
LIBPQ_ADVICE = "Either provide the file"


def find_next_step(text: str) -> str | None:
    """Return what to do when connecting failed with this text; None if TLS is not the reason."""
    step = next((step for words, step in NEXT_STEPS if words in text), None)
    return None if step is None else f"{step} ({DOCUMENT})"


def without_advice(text: str) -> str:
    """Return libpq's text without its own advice, which includes verifying nothing."""
    return text.partition(LIBPQ_ADVICE)[0].rstrip()
