"""`python -m tsgdn2.service.deploy.alive`: exits with 0 where the service of this environment answers, for a container.

    plain or TLS        GET /healthz at the loopback must give 200; the certificate is not asked who it is
    TLS of both sides   a handshake: the process is alive when it asks for a certificate, which this program has not

It reads TSGDN2_SERVE_PORT, _CERTIFICATE and _CLIENT_AUTHORITY, and nothing else: a port that only a settings file or an
argument names is not known here, so give it in the environment. It imports nothing that is large, as it runs often.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from collections.abc import Mapping

PORT = 8321
TIMEOUT_S = 4.0


def alive(environ: Mapping[str, str]) -> bool:
    """Whether the service answers at the loopback."""
    port = int(environ.get("TSGDN2_SERVE_PORT") or PORT)
    if not environ.get("TSGDN2_SERVE_CERTIFICATE"):
        return _healthy(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)
    if not environ.get("TSGDN2_SERVE_CLIENT_AUTHORITY"):
        return _healthy(connection)
    try:
        connection.connect()
    except ssl.SSLError:
        return True  # it has refused us, so it lives
    except OSError:
        return False
    finally:
        connection.close()
    return True


def _healthy(connection: http.client.HTTPConnection) -> bool:
    try:
        connection.request("GET", "/healthz", headers={"Host": "localhost"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if alive(os.environ) else 1)
