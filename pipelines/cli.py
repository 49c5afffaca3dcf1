"""The command `tsgdn2`: one subcommand per job, options from flags and YAML files, errors in one line.

    tsgdn2 train --config weather.yaml --model.width 96        flags win over the file
    tsgdn2 train --print_config                                 a file to start from
    tsgdn2 pretrain run --config tiny --data shards             a configuration of the package, by its name
    tsgdn2 serve --source host --source mqtt://broker           an option that may be given several times

Nothing heavy is imported before a job begins. Exit codes: 0 done, 1 an unexpected fault (with its traceback),
2 something that the caller can mend, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Final

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from tsgdn2 import __version__
from tsgdn2.datasets.errors import DataError
from tsgdn2.errors import TsgdnError
from tsgdn2.pipelines.jobs import JOBS, Options, runner
from tsgdn2.pipelines.pretrain.recipes import named
from tsgdn2.pipelines.service_jobs import gathered

ABOUT = "State models for streams that never end: train, backtest, stream and audit Gated DeltaNet-2 forecasters."
GROUPS: Final = {
    "audit": "Audit what a state evicted (run), or send waiting records (sync).",
    "pretrain": "Language models: from text to shards (prepare), train (run), evaluate, export and compare them.",
}
"""Jobs of two words, by the first."""


def parser() -> ArgumentParser:
    """Build the parser of every job from the dataclasses in jobs.py."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    top = ArgumentParser(prog="tsgdn2", description=ABOUT, version=__version__)
    top.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    jobs = top.add_subcommands(dest="job", metavar="JOB", help="tsgdn2 JOB --help lists the options of a job.")
    own = {name: _options(options) for name, (options, _) in JOBS.items()}
    for name, options in own.items():
        if " " not in name:
            jobs.add_subcommand(name, options, help=options.description)
    for group, about in GROUPS.items():
        verbs = ArgumentParser(description=about)
        jobs.add_subcommand(group, verbs, help=about)
        listed = verbs.add_subcommands(dest="verb", metavar="VERB")
        for name, options in own.items():
            if name.startswith(f"{group} "):
                listed.add_subcommand(name.removeprefix(f"{group} "), options, help=options.description)
    return top


def _options(options: Options) -> ArgumentParser:
    """Build the parser of one job."""
    own = ArgumentParser(description=(options.__doc__ or "").strip())
    own.add_argument("--config", action="config", help="YAML file with options; flags after it win.")
    own.add_class_arguments(options, skip={"quiet"})
    if "quiet" in options.__dataclass_fields__:
        own.add_argument("--quiet", action="store_true", help="No progress bars; results and errors are still printed.")
    return own


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    warnings.filterwarnings("ignore", message="Using `json`-module", category=UserWarning)  # nothing large goes there
    try:
        whole = parser()
        name, job = _job(whole, whole.parse_args(gathered(named([item for item in given if item != "--debug"]))))
        runner(name)(job)
    except (TsgdnError, DataError) as error:
        if debug:
            raise
        print(f"tsgdn2: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tsgdn2: interrupted; what was written so far is kept", file=sys.stderr)
        return 130
    return 0


def _job(whole: ArgumentParser, parsed: Namespace) -> tuple[str, object]:
    """Name the job, and build its options."""
    made = whole.instantiate(parsed)
    name = made["job"]
    values = made[name]
    if name in GROUPS:
        name = f"{name} {values['verb']}"
        values = values[values["verb"]]
    options, _ = JOBS[name]
    fields = {name: values[name] for name in options.__dataclass_fields__ if name in values}
    return name, options(**fields)


if __name__ == "__main__":  # torchrun -m tsgdn2.pipelines.cli pretrain run ..
    sys.exit(main())
