"""One MLflow run per job, written to a local spool first, so that a dead server neither loses nor delays anything.

    with Run.start("weather", "train", root=Path("runs")) as run:
        run.params({"lr": 1e-3})
        run.metrics({"loss": 0.7}, step=1)
        with run.child("audit") as audit:
            audit.artifact(Path("ledger.parquet"), "audit")

Nothing is visible in MLflow before the outermost run ends (or `sync` runs): that is the price of never waiting for it.
Then the run and its children are sent within a bounded time; what could not be sent is named in one line and stays
for `tsgdn2 audit sync`. The job's own outcome is never changed by what happens to its records.
"""

from __future__ import annotations

import getpass
import math
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, SupportsFloat

from tsgdn2.errors import ConfigError, SchemaError, TsgdnError
from tsgdn2.pipelines.drain import drain
from tsgdn2.pipelines.events import (
    COLUMN_TYPES,
    Artifact,
    Dataset,
    End,
    Metrics,
    ModelFolder,
    Params,
    Tags,
    VersionTags,
    clean_keys,
    clean_name,
    texts,
)
from tsgdn2.pipelines.spool import Header, ServerDownError, Spool, new_id, now_ms
from tsgdn2.pipelines.sync import SyncSummary, sync
from tsgdn2.pipelines.tracking import default_tracking_uri, shown

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "SyncSummary", "sync"]


def user_name() -> str:
    """Who runs the job, for MLflow's user column."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run as a number that has no name
        return "unknown"


class Run:
    """A run that is being recorded; make one with `Run.start` or `run.child`, and use it in a `with` statement."""

    def __init__(self, spool: Spool, root: Path, budget: float, outermost: bool) -> None:
        """Wrap a spool that this process writes; called by `start` and `child`."""
        self.spool = spool
        self.root = root
        self.budget = budget
        self._outermost = outermost
        self._children: list[Run] = []
        self._params: dict[str, str] = {}

    @classmethod
    def start(
        cls,
        experiment: str,
        name: str,
        *,
        root: Path,
        tracking_uri: str | None = None,
        parent: Run | None = None,
        tags: Mapping[str, object] | None = None,
        budget: float = 10.0,
    ) -> Run:
        """Begin a run.

        Args:
            experiment: Name of the MLflow experiment; made when it is not there.
            name: Name of the run.
            root: Folder of the spool and, by default, of the store.
            tracking_uri: MLflow store or server; None is a sqlite file under `root`.
            parent: The run to nest this one in; it gives the experiment, the root and the store.
            tags: Labels, as text.
            budget: Seconds that a server may take for everything at the end of the run; a local store is not limited.

        Raises:
            ConfigError: experiment is empty, or MLflow's "Default", whose artifacts would fall into the working folder.
        """
        uri = tracking_uri or default_tracking_uri(root)
        if not experiment.strip() or (experiment == "Default" and uri.startswith("sqlite:")):
            raise ConfigError(
                f"experiment: any name but '' and 'Default' is allowed, got {experiment!r}; name the job's subject"
            )
        own = {
            "mlflow.user": user_name(),
            "mlflow.source.name": Path(sys.argv[0] or "python").name,
            "mlflow.source.type": "LOCAL",
        }
        header = Header(
            spool_id=new_id(),
            experiment=experiment if parent is None else parent.spool.header.experiment,
            name=name,
            tracking_uri=uri if parent is None else parent.spool.header.tracking_uri,
            started_ms=now_ms(),
            parent=None if parent is None else parent.spool.header.spool_id,
            tags=own | texts("tag", tags or {}),
        )
        home = root if parent is None else parent.root
        run = cls(Spool.create(home, header), home, budget, outermost=parent is None)
        if parent is not None:
            parent._children.append(run)
        return run

    def child(self, name: str, *, tags: Mapping[str, object] | None = None) -> Run:
        """Begin a run nested in this one; it is sent when the outermost one ends."""
        return Run.start(self.spool.header.experiment, name, root=self.root, parent=self, tags=tags)

    def params(self, values: Mapping[str, object]) -> None:
        """Record settings, as text of at most 6000 characters.

        Raises:
            SchemaError: A setting has another value already; MLflow would refuse the second one later.
        """
        clean = texts("param", values)
        for name, value in clean.items():
            if self._params.get(name, value) != value:
                raise SchemaError(
                    f"param: {name!r} is {self._params[name]!r} already, got {value!r}; settings are set once"
                )
        self._params |= clean
        self.spool.append(Params(values=clean))

    def tags(self, values: Mapping[str, object]) -> None:
        """Record labels; a later value replaces an earlier one."""
        self.spool.append(Tags(values=texts("tag", values)))

    def metrics(self, values: Mapping[str, SupportsFloat], *, step: int = 0) -> None:
        """Record one point of each named curve; NaN and infinities are allowed.

        Raises:
            SchemaError: A value is not a number, or a name is not one that MLflow takes.
        """
        points: dict[str, float] = {}
        for key, (name, value) in zip(clean_keys("metrics", list(values)), values.items(), strict=True):
            try:
                points[key] = float(value)
            except (TypeError, ValueError) as error:
                raise SchemaError(
                    f"metrics: values are numbers, {name!r} is {value!r}; log text as a tag or param"
                ) from error
        if points:
            self.spool.append(Metrics(values=points, step=int(step)))

    def dataset(
        self, name: str, digest: str, source: str, schema: Mapping[str, str] | None = None, *, context: str = "training"
    ) -> None:
        """Record a data set that the run read.

        Args:
            name: At most 500 characters.
            digest: Fingerprint of the content; MLflow shows its first 36 characters, the profile holds all.
            source: URL, or any text that says where the data came from.
            schema: Column name to MLflow type (boolean, integer, long, float, double, string, binary, datetime).
            context: What it was used for: training, validation, test.

        Raises:
            SchemaError: A name, a digest or a type is not allowed.
        """
        if not name or len(name) > 500 or not digest:
            raise SchemaError(
                f"name, digest: 1 to 500 and at least 1 characters, got {name!r} and {digest!r}; give both"
            )
        wrong = {column: kind for column, kind in (schema or {}).items() if kind not in COLUMN_TYPES}
        if wrong:
            raise SchemaError(f"schema: types are {', '.join(COLUMN_TYPES)}, got {wrong}; use one of those")
        self.spool.append(Dataset(name=name, digest=digest, source=source, context=context, columns=dict(schema or {})))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or a folder as it is now (it is copied), to be shown in `folder` of the run.

        Raises:
            SchemaError: path is not there, or folder leads out of the run.
        """
        if not path.exists():
            raise SchemaError(f"path: an existing file or folder is needed, {path} is not there; write it first")
        place = clean_name("folder", folder) if folder else ""
        self.spool.append(Artifact(file=path.resolve().name, folder=place), source=path.resolve())

    def text(self, text: str, file: str) -> None:
        """Record text as a file of the run: `file` is its name, with folders before it if wanted."""
        folder, _, name = clean_name("file", file).rpartition("/")
        with TemporaryDirectory() as draft:
            path = Path(draft, name)
            path.write_text(text, encoding="utf-8")
            self.artifact(path, folder)

    def model(
        self,
        path: Path,
        input_example: pd.DataFrame,
        *,
        name: str = "model",
        freq: str | None = None,
        registered_name: str | None = None,
    ) -> None:
        """Record a serialized GluonTS predictor as an MLflow pyfunc model; pyfunc.py says what goes in and out.

        Args:
            path: Folder that `predictor.serialize` wrote.
            input_example: Columns item_id, timestamp and one per channel; a forecast of it is made to check the model.
            name: Name of the model in MLflow.
            freq: Period of the observations as pandas writes it; None takes it from the example.
            registered_name: Make a version of this registered model; None registers nothing.

        Raises:
            SchemaError: The example does not fit, or the predictor can not forecast it.
        """
        from tsgdn2.pipelines.pyfunc import save_forecast_model

        with TemporaryDirectory() as draft:
            folder = Path(draft, "model")
            save_forecast_model(folder, path, input_example, freq=freq)
            self.spool.append(
                ModelFolder(
                    file="model", name=clean_name("name", name).replace("/", "_"), registered_name=registered_name
                ),
                source=folder,
            )

    def version_tags(self, name: str, version: str, values: Mapping[str, object]) -> None:
        """Record labels of a version of a registered model, which it gets when the run is sent."""
        self.spool.append(VersionTags(name=name, version=version, values=texts("tag", values)))

    def close(self, status: str = "FINISHED") -> None:
        """Record the end (FINISHED, FAILED or KILLED); an outermost run is then sent, with those nested in it."""
        self.spool.append(End(status=status))
        if self._outermost:
            self._send()

    def _family(self) -> list[Run]:
        return [self] + [run for child in self._children for run in child._family()]

    def _send(self) -> None:
        uri = self.spool.header.tracking_uri
        deadline = time.monotonic() + (self.budget if uri.startswith("http") else math.inf)
        trouble: Exception | None = None
        for run in self._family():
            left = deadline - time.monotonic()
            try:
                drain(run.spool, uri, timeout=max(1.0, min(5.0, left)), budget=None if math.isinf(left) else left)
            except Exception as error:  # the job is over, its records are safe: no fault of the store may fail it now
                trouble = trouble or error
                if isinstance(error, ServerDownError):
                    break
        if trouble is not None:
            self._say(trouble)

    def _say(self, error: Exception) -> None:
        cause = "does not answer" if isinstance(error, ServerDownError) else f"did not take everything ({error})"
        line = f"tsgdn2: MLflow at {shown(self.spool.header.tracking_uri)} {cause}"
        kept = f"nothing is lost, the run is kept in {self.root / 'spool'}; send it with `tsgdn2 audit sync`"
        print(f"{' '.join(line.split())}; {kept}", file=sys.stderr)

    def __enter__(self) -> Run:
        """Give the run itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close as FINISHED, or as FAILED (KILLED for an interrupt) with the exception as a tag and a text file."""
        if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            self.close()
            return
        try:
            self.tags({"tsgdn2.exception": f"{type(error).__name__}: {error}"[:2000]})
            self.text("".join(traceback.format_exception(kind, error, trace)), "traceback.txt")
            self.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        except (OSError, TsgdnError) as trouble:  # a full disk must not hide why the job failed
            self._say(trouble)
