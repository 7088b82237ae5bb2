"""Tells what is to be done where a session with TLS is refused, on either side. Pure.

libpq says what it found, and sometimes advises to verify less: that is no next step.
"""

from __future__ import annotations

DOCUMENT = "docs/configuration.md, TLS"
# What libpq's or the server's text holds, and the next step.
NEXT_STEPS = (
    (
        "certificate verify failed",
        "its certificate is not signed by an authority of sslrootcert, or is out of date: name the file of the "
        "authority that signed it, and trust no other",
    ),
    (
        "does not match host name",
        "the certificate is another host's: connect by a name that is in it, or have one made for this name",
    ),
    ("root certificate file", "sslrootcert has to name a file with the authority's certificate, or be system"),
    ("certificate file", "sslcert and sslkey have to name the files of a client's certificate and of its key"),
    ("private key file", "sslkey has to name a key that belongs to sslcert and that its owner alone can read"),
    (
        "does not support SSL",
        "its server has no TLS: set ssl = on there, or, where nobody listens on the way, leave sslmode out of the URL",
    ),
    ("no encryption", "the server wants TLS: add sslmode=verify-full and sslrootcert to the URL"),
    ("sslmode value", "sslmode is one of disable, prefer, require, verify-ca and verify-full"),
)
LIBPQ_ADVICE = "Either provide the file"


def find_next_step(text: str) -> str | None:
    """Return what to do when connecting failed with this text, None when TLS is not why."""
    step = next((step for words, step in NEXT_STEPS if words in text), None)
    return None if step is None else f"{step} ({DOCUMENT})"


def without_advice(text: str) -> str:
    """Return libpq's text up to its own advice, which is to verify nothing among others."""
    return text.partition(LIBPQ_ADVICE)[0].rstrip()
