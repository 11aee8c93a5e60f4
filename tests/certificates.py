"""Certificates that even Python 3.13 trusts, whose default context verifies them strictly (RFC 5280)."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OPENSSL = shutil.which("openssl")
CONFIG = """\
[req]
distinguished_name = subject
x509_extensions = extensions
prompt = no
[subject]
CN = {name}
[extensions]
subjectAltName = DNS:{name}
basicConstraints = critical, CA:TRUE
keyUsage = critical, digitalSignature, keyCertSign
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
"""


@dataclass(frozen=True)
class Certificate:
    path: Path
    key: Path


def self_signed(folder: Path, name: str, stem: str = "certificate") -> Certificate:
    """Write a certificate for the host `name`, valid for two days, and its key to `folder`."""
    made = Certificate(folder / f"{stem}.crt", folder / f"{stem}.key")
    config = folder / f"{stem}.cnf"
    config.write_text(CONFIG.format(name=name))
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-config", str(config), "-keyout", str(made.key), "-out", str(made.path)]
    subprocess.run([str(OPENSSL), "req", "-x509", *curve, *files], check=True, capture_output=True)
    return made
