"""A Kerberos realm of a test: a real KDC on loopback, the principal of a user, the keytab of an sshd.

with Realm(tmp_path / "realm", user="me") as realm:
    realm.serve("host/127.0.0.2")      # its key in the keytab, which an sshd reads
    realm.log_in()                     # the ticket: realm.env names its file, KRB5CCNAME
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Self

from tests.support.clock.waiting import until
from tests.support.machines.sshd import CLEAN_PATH, free_address

CLIENT = """\
[libdefaults]
default_realm = TEST
dns_lookup_kdc = false
dns_lookup_realm = false
dns_canonicalize_hostname = false
rdns = false
[realms]
TEST = {{
  kdc = {address}:{port}
}}
"""
KDC = """\
[kdcdefaults]
kdc_listen = {address}:{port}
kdc_tcp_listen = {address}:{port}
[realms]
TEST = {{
  database_name = {folder}/principals
  key_stash_file = {folder}/stash
}}
"""
PASSWORD = "a-password-of-a-test"


class Realm:
    """Ends its KDC when left."""

    def __init__(self, folder: Path, *, user: str) -> None:
        self.folder, self.user = folder, user
        self.keytab = folder / "keytab"
        self.env = {
            "PATH": CLEAN_PATH,
            "KRB5_CONFIG": str(folder / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(folder / "kdc.conf"),
            "KRB5_KTNAME": str(self.keytab),
            "KRB5CCNAME": f"FILE:{folder}/ticket",
        }

    def __enter__(self) -> Self:
        self.folder.mkdir()
        address, port = free_address()
        for name, text in (("krb5.conf", CLIENT), ("kdc.conf", KDC)):
            (self.folder / name).write_text(text.format(address=address, port=port, folder=self.folder))
        self._run("kdb5_util", "create", "-s", "-r", "TEST", "-P", PASSWORD)
        self._run("kadmin.local", "-q", f"addprinc -pw {PASSWORD} {self.user}")
        log = self.folder / "kdc.log"
        with log.open("wb") as words:
            self._kdc = subprocess.Popen(["krb5kdc", "-n"], env=self.env, stdout=words, stderr=words)
        until(lambda: b"starting" in log.read_bytes())
        return self

    def __exit__(self, *_: object) -> None:
        self._kdc.kill()
        self._kdc.wait()

    def serve(self, service: str) -> None:
        for query in (f"addprinc -randkey {service}", f"ktadd -k {self.keytab} {service}"):
            self._run("kadmin.local", "-q", query)

    def log_in(self) -> None:
        self._run("kinit", self.user, stdin=PASSWORD)

    def _run(self, *argv: str, stdin: str = "") -> None:
        subprocess.run(argv, input=stdin, env={**os.environ, **self.env}, capture_output=True, text=True, check=True)
