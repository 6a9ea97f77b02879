"""The operator's own certificate, looked through on the operator's machine before anything on a target changes."""

from __future__ import annotations

import contextlib
import datetime
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from fabfile.settings import SettingError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


def look_through(certificate: str, key: str) -> bool:
    """True if browsers trust it: this machine's own authorities lead to it. Raises SettingError for files that do not fit."""
    from cryptography import x509  # costs 100 ms, and only who has files of his own needs it

    chain_file, key_file = Path(certificate).expanduser(), Path(key).expanduser()
    try:
        chain = x509.load_pem_x509_certificates(chain_file.read_bytes())
    except ValueError:
        raise SettingError(f"apache_certificate_file = {certificate!r}: no certificate in PEM form") from None
    refuse_time(chain[0], certificate)
    refuse_key(chain[0], key_file, key)
    return is_trusted(chain)


def refuse_time(leaf: Certificate, named: str) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    ends, begins = leaf.not_valid_after_utc, leaf.not_valid_before_utc
    if ends < now:
        raise SettingError(f"apache_certificate_file = {named!r}: it ended on {ends:%Y-%m-%d}; get a new one")
    if begins > now:
        raise SettingError(f"apache_certificate_file = {named!r}: it begins only on {begins:%Y-%m-%d}")


def refuse_key(leaf: Certificate, path: Path, named: str) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except TypeError:
        raise SettingError(
            f"apache_key_file = {named!r}: it has a password, which nobody could type when Apache starts; "
            "`openssl pkey -in FILE -out NEW` takes it away"
        ) from None
    except ValueError:
        raise SettingError(f"apache_key_file = {named!r}: no private key in PEM form") from None
    if key.public_key() != leaf.public_key():
        raise SettingError(f"apache_key_file = {named!r}: it is not the key of apache_certificate_file")


def is_trusted(chain: list[Certificate]) -> bool:
    """True if the certificate leads to one of this machine's authorities."""
    from cryptography import x509
    from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

    authorities = ssl.create_default_context().get_ca_certs(binary_form=True)
    with contextlib.suppress(VerificationError, ValueError, IndexError, x509.ExtensionNotFound):
        names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        subject = x509.DNSName(names.get_values_for_type(x509.DNSName)[0].replace("*", "any"))
        store = Store([x509.load_der_x509_certificate(der) for der in authorities])
        PolicyBuilder().store(store).build_server_verifier(subject).verify(chain[0], chain[1:])
        return True
    return False
