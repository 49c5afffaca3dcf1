"""A service as a process, with the small model of the tests, MQTT or NATS; and the nursery that it is forked from.

    python -m tests.service.endtoend.serving         serves, with the settings of its environment
    python -m tests.service.endtoend.serving nurse   forks a process that serves for each line, an environment in JSON

TSGDN2_SERVE_* are the service's own. END_MQTT and END_NATS are ports of brokers, END_CLIENT is the name of the session
there, END_KIND the late policy, END_LOG the file of what is said, END_BOARD that of the phases. The nursery says `pid`,
and `dead` with the exit status; it has imported everything, so that a life begins in a moment.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tests.service.endtoend.phases import Board, watch
from tests.service.predictors import predictor

from tsgdn2.service.connectors.connector import Connector
from tsgdn2.service.connectors.delivery import Backoff
from tsgdn2.service.connectors.mqtt import MqttConnector, MqttOptions
from tsgdn2.service.connectors.nats import NatsConnector, NatsOptions
from tsgdn2.service.connectors.router import Router
from tsgdn2.service.server import serve
from tsgdn2.service.settings import read_settings

QUICK = Backoff(first=0.02, longest=0.3)
JETSTREAM = "plant"
_DIE_WITH_PARENT = 1


def connectors(router: Router) -> Sequence[Connector]:
    """Those that the environment asks for."""
    client, made = os.environ.get("END_CLIENT", "service"), list[Connector]()
    if mqtt := os.environ.get("END_MQTT"):
        made.append(
            MqttConnector(MqttOptions(host="127.0.0.1", port=int(mqtt), client_id=client), router, backoff=QUICK)
        )
    if nats := os.environ.get("END_NATS"):
        options = NatsOptions(servers=(f"nats://127.0.0.1:{nats}",), stream=JETSTREAM, durable=client)
        made.append(NatsConnector(options, router, backoff=QUICK))
    return made


def end_with_parent() -> None:
    """Whoever started this process may be killed, and then this one goes, too."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def main() -> None:
    """Serve until a signal comes."""
    end_with_parent()
    torch.set_num_threads(1)
    if board := os.environ.get("END_BOARD"):
        watch(Board(Path(board)))
    serve(read_settings(), partial(predictor, os.environ.get("END_KIND", "tag")), connectors=connectors)


def live(environment: dict[str, str]) -> None:
    """Serve in this forked process, which ends here."""
    status = 1
    try:
        os.environ.update(environment)
        log = os.open(environment["END_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(log, stream)
        main()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def nurse() -> None:
    """Fork a life for each line."""
    end_with_parent()
    torch.set_num_threads(1)
    os.write(1, b"here\n")
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            live(json.loads(line))
        os.write(1, f"pid {pid}\n".encode())
        os.write(1, f"dead {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())


if __name__ == "__main__":
    nurse() if sys.argv[1:] else main()
