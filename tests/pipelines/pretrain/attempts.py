"""Trainings in new processes that are killed at chosen moments: a program for test_resume.py, one start for all.

    python attempts.py HOME OUTPUT MOMENT MOMENT ..        HOME as conftest's fixture makes it

Each attempt is a process of its own, forked before this one has computed anything, on the same output. A moment is
`event:n`: at the n-th event of that name that concerns a checkpoint (`event@word:n`: whose arguments have the word) the
process kills itself with SIGKILL, without a chance to tidy up; `never` lets it end. Events are those of
sys.addaudithook, which come from the interpreter itself, so what runs is the real thing. Every exit is printed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def killer(moment: str) -> Callable[[str, tuple[object, ...]], None]:
    """An audit hook that ends the process at a moment."""
    event_of, _, number = moment.partition(":")
    name, _, word = event_of.partition("@")
    left = int(number or 0)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event == name and any((word or "step-") in str(argument) for argument in arguments):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def main() -> None:
    """Run the attempts one after the other."""
    home, output, *moments = sys.argv[1:]
    spec = spec_from_file_location("corpus", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    corpus = module_from_spec(spec)
    spec.loader.exec_module(corpus)
    from tsgdn2.pipelines.pretrain.run import run

    for moment in moments:
        child = os.fork()
        if child == 0:
            if moment != "never":
                sys.addaudithook(killer(moment))
            run(corpus.small_job(Path(home), output=output))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(f"attempt {moment} {-os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
