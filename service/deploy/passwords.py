"""`python3 passwords.py [FOLDER]`: makes the passwords that compose.yaml mounts; those that are there already stay.

    mosquitto.passwd     the users tsgdn2 and sender, as mosquitto keeps them: PBKDF2 with SHA-512
    mqtt.env             user and password of the service at the broker     sender              that of your devices
    postgres.env         of the database, for both of its sides             grafana-password    of Grafana's user admin
    metrics-key          empty: put the read key for Prometheus into it, see README.md

Any Python 3 runs it; nothing need be installed. Files are for their owner alone but those that a container's own user
must read, so the folder is the border: it is made for its owner alone as well, and the engine mounts what is in it.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import sys
from pathlib import Path

ROUNDS = 101
"""Mosquitto's default; the passwords are random, 256 bits long, and can not be tried."""


def mosquitto_line(user: str, password: str) -> str:
    """A line of mosquitto's password file."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ROUNDS)
    return f"{user}:$7${ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"


def make(folder: Path) -> list[str]:
    """Write what is not there; gives the names of the files that were made."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made: list[str] = []

    def write(name: str, text: str, mode: int) -> None:
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        path.chmod(mode)
        made.append(name)

    if not (folder / "mosquitto.passwd").exists():
        ours, theirs = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        write("mqtt.env", f"TSGDN2_MQTT_USERNAME=tsgdn2\nTSGDN2_MQTT_PASSWORD={ours}\n", 0o600)
        write("sender", f"{theirs}\n", 0o600)
        write("mosquitto.passwd", mosquitto_line("tsgdn2", ours) + mosquitto_line("sender", theirs), 0o644)
    for name, text, mode in (
        ("postgres.env", "POSTGRES_PASSWORD={0}\nPGPASSWORD={0}\n", 0o600),
        ("grafana-password", "{0}", 0o644),
        ("metrics-key", "", 0o644),
    ):
        if not (folder / name).exists():
            write(name, text.format(secrets.token_urlsafe(32)), mode)
    return made


if __name__ == "__main__":
    for one in make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "secrets"):
        print(one)
