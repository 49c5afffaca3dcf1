"""Sends a spool to MLflow: in order, in batches, and each thing once however often it is tried.

A server that is down is found out by a short probe before MLflow is called, since MLflow itself would retry for
minutes; the spool is then as it was. What makes a second try harmless, after a crash at any point:

    run             found again by its tag tsgdn2.spool_id before one is created
    metrics         a point is (key, step, time, value), all fixed when recorded; SQL stores keep equal points once
    params, tags    the same value again changes nothing
    data sets       kept once per name and digest
    artifacts       the same file again replaces itself
    models          found again by the tags tsgdn2.spool_id and tsgdn2.event, and so are registered versions

After each batch the number of events sent is noted, so a second try repeats one batch at most.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from tsgdn2.pipelines.events import (
    Artifact,
    Dataset,
    End,
    Event,
    Metrics,
    ModelFolder,
    Params,
    Tags,
    VersionTags,
)
from tsgdn2.pipelines.spool import Progress, Spool, TrackingError, files_below
from tsgdn2.pipelines.tracking import artifact_home, bounded, connect, probe, shown
from tsgdn2.pipelines.versions import register, tag_version

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric

BATCH = 1000  # points of one log_batch, and MLflow's own limit
SPOOL_TAG = "tsgdn2.spool_id"
EVENT_TAG = "tsgdn2.event"


@dataclass(frozen=True, kw_only=True)
class Drained:
    """What one drain sent: the MLflow run, events, metric points, and whether the run is now whole in the store."""

    run_id: str
    events: int
    points: int
    complete: bool


def drain(spool: Spool, tracking_uri: str, *, timeout: float = 10.0, budget: float | None = None) -> Drained:
    """Send what is new in the spool; remove the spool once its run has ended and all of it is there.

    Args:
        spool: May still be written to: whole events are sent, the rest waits for the next time.
        tracking_uri: The MLflow store; `sqlite:///...` or a server.
        timeout: Seconds for the probe and for each request.
        budget: Seconds for the whole, checked between requests; None is no limit.

    Raises:
        ServerDownError: No answer; what was sent before stays noted, the rest stays in the spool.
        TrackingError: The store refused something, the budget is used up, or another process sends this spool.
    """
    deadline = time.monotonic() + (math.inf if budget is None else budget)
    lock = spool.sender_lock()
    try:
        lock.acquire(timeout=min(timeout, max(0.0, deadline - time.monotonic())))
    except Timeout as error:
        raise TrackingError(
            f"spool: another process is sending {spool.path.name}; wait for it, or sync later"
        ) from error
    try:
        if not spool.path.exists():  # that other process has just sent all of it
            return Drained(run_id="", events=0, points=0, complete=True)
        probe(tracking_uri, timeout)
        with bounded(timeout):
            sent = _with_causes(spool, tracking_uri, timeout, deadline)
        if sent.complete:
            spool.remove()
            Path(lock.lock_file).unlink(missing_ok=True)
        return sent
    finally:
        lock.release()


def _with_causes(spool: Spool, tracking_uri: str, timeout: float, deadline: float) -> Drained:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return _Sender(spool, tracking_uri, timeout, deadline).send()
    except (MlflowException, SQLAlchemyError, OSError) as error:
        probe(tracking_uri, timeout)
        raise TrackingError(
            f"tracking_uri: {shown(tracking_uri)} refused a part of the run {spool.header.name!r} ({error}); "
            f"it is kept in {spool.path}: mend the cause and run `tsgdn2 audit sync`"
        ) from error


class _Sender:
    """One drain under way."""

    def __init__(self, spool: Spool, tracking_uri: str, timeout: float, deadline: float) -> None:
        self.spool, self.tracking_uri, self.timeout, self.deadline = spool, tracking_uri, timeout, deadline
        self.client = connect(tracking_uri)
        self.remote = tracking_uri.startswith("http")
        self.points = 0
        self.experiment_id = ""

    def send(self) -> Drained:
        progress = start = self.ensure_run(self.spool)
        complete = False
        waiting: list[Event] = []
        room = BATCH
        for event in self.spool.events(start_byte=progress.byte):
            if isinstance(event.payload, Metrics):
                if waiting and len(event.payload.values) > room:
                    progress = self.send_metrics(progress, waiting)
                    waiting, room = [], BATCH
                waiting.append(event)
                room -= len(event.payload.values)
                continue
            if waiting:
                progress = self.send_metrics(progress, waiting)
                waiting, room = [], BATCH
            self.send_event(progress.run_id, event)
            progress = self.advance(progress, event)
            complete = complete or isinstance(event.payload, End)
        if waiting:
            progress = self.send_metrics(progress, waiting)
        return Drained(run_id=progress.run_id, events=progress.done - start.done, points=self.points, complete=complete)

    def in_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TrackingError(
                f"budget: the time for sending {self.spool.header.name!r} is used up; `tsgdn2 audit sync` goes on"
            )

    def advance(self, progress: Progress, event: Event) -> Progress:
        progress = replace(progress, done=event.number + 1, byte=event.end_byte)
        self.spool.note(progress)
        return progress

    def ensure_run(self, spool: Spool) -> Progress:
        """The MLflow run of a spool: the one noted, else the one that carries its tag, else a new one."""
        header = spool.header
        self.experiment_id = self.ensure_experiment(header.experiment)
        noted = spool.progress()
        found = self.find_run(header.spool_id)
        if found is not None:
            if noted is not None and noted.run_id == found:
                return replace(noted, tracking_uri=self.tracking_uri)
            progress = Progress(tracking_uri=self.tracking_uri, run_id=found)
        else:
            tags = dict(header.tags) | {SPOOL_TAG: header.spool_id}
            if header.parent is not None:
                tags["tsgdn2.parent_spool_id"] = header.parent
                parent = self.parent_run(header.parent)
                if parent is not None:
                    tags["mlflow.parentRunId"] = parent
            run = self.client.create_run(
                self.experiment_id, start_time=header.started_ms, tags=tags, run_name=header.name
            )
            progress = Progress(tracking_uri=self.tracking_uri, run_id=run.info.run_id)
        spool.note(progress)
        return progress

    def parent_run(self, parent_id: str) -> str | None:
        path = self.spool.path.with_name(parent_id)
        if path.exists():
            parent = Spool(path)
            with parent.sender_lock().acquire(timeout=self.timeout):
                if path.exists():
                    return self.ensure_run(parent).run_id
        return self.find_run(parent_id)  # sent whole and removed before

    def find_run(self, spool_id: str) -> str | None:
        found = self.client.search_runs([self.experiment_id], f"tags.`{SPOOL_TAG}` = '{spool_id}'", max_results=1)
        return found[0].info.run_id if found else None

    def ensure_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=artifact_home(self.tracking_uri)))
            except MlflowException:  # another process was first
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment: {name!r} is deleted in {shown(self.tracking_uri)}; restore it there, then sync"
            )
        return str(found.experiment_id)

    def send_metrics(self, progress: Progress, events: list[Event]) -> Progress:
        from mlflow.entities import Metric

        points: list[Metric] = []
        for event in events:
            assert isinstance(event.payload, Metrics)
            points += [
                Metric(key, value, event.time_ms, event.payload.step) for key, value in event.payload.values.items()
            ]
        for first in range(0, len(points), BATCH):
            self.in_time()
            self.client.log_batch(progress.run_id, metrics=points[first : first + BATCH])
        self.points += len(points)
        return self.advance(progress, events[-1])

    def send_event(self, run_id: str, event: Event) -> None:
        from mlflow.entities import Param, RunTag

        self.in_time()
        match event.payload:
            case Params(values=values):
                params = [Param(key, value) for key, value in values.items()]
                for first in range(0, len(params), 100):
                    self.client.log_batch(run_id, params=params[first : first + 100])
            case Tags(values=values):
                tags = [RunTag(key, value) for key, value in values.items()]
                for first in range(0, len(tags), 100):
                    self.client.log_batch(run_id, tags=tags[first : first + 100])
            case Dataset() as dataset:
                self.client.log_inputs(run_id, datasets=[dataset_input(dataset)])
            case Artifact(folder=folder):
                for file, inner in files_below(self.spool.file(event)):
                    self.in_time()
                    self.client.log_artifact(
                        run_id, str(file), "/".join(part for part in (folder, inner) if part) or None
                    )
            case ModelFolder() as model:
                self.send_model(run_id, event, model)
            case VersionTags() as version:
                tag_version(self.client, version)
            case End(status=status):
                with redirect_stdout(StringIO()):  # MLflow prints two links here
                    self.client.set_terminated(run_id, status=status, end_time=event.time_ms)

    def send_model(self, run_id: str, event: Event, payload: ModelFolder) -> None:
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus
        from mlflow.models import Model

        spool_id, number, folder = self.spool.header.spool_id, str(event.number), self.spool.file(event)
        same = f"tags.`{SPOOL_TAG}` = '{spool_id}' AND tags.`{EVENT_TAG}` = '{number}'"
        run = self.client.get_run(run_id)
        found = self.client.search_logged_models([self.experiment_id], same, max_results=1)
        model = (
            found[0]
            if found
            else self.client.create_logged_model(
                self.experiment_id,
                name=payload.name,
                source_run_id=run_id,
                tags={SPOOL_TAG: spool_id, EVENT_TAG: number},
                params=dict(run.data.params),
            )
        )
        if model.model_id not in [output.model_id for output in (run.outputs.model_outputs if run.outputs else [])]:
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        description = Model.load(str(folder))
        description.run_id, description.model_id, description.model_uuid = run_id, model.model_id, model.model_id
        description.artifact_path = model.artifact_location
        with tempfile.TemporaryDirectory() as draft:
            description.save(f"{draft}/MLmodel")
            for file, inner in files_below(folder):
                self.in_time()
                place = inner.partition("/")[2] or None
                chosen = Path(draft, "MLmodel") if file == folder / "MLmodel" else file
                self.client.log_model_artifact(model.model_id, str(chosen), place)
        self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        if payload.registered_name is not None:
            # a server takes models:/<id>; without one MLflow would look the id up in the process's global store
            source = f"models:/{model.model_id}" if self.remote else model.artifact_location
            tags = {SPOOL_TAG: spool_id, EVENT_TAG: number}
            register(self.client, run_id, model.model_id, source, payload.registered_name, tags, same=EVENT_TAG)


def dataset_input(dataset: Dataset) -> DatasetInput:
    """The data set in MLflow's words; MLflow stores 36 characters of its digest, the profile all."""
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.types import ColSpec, Schema

    remote = dataset.source.startswith(("http://", "https://"))
    source = {"url": dataset.source} if remote else {"tags": {"mlflow.source.name": dataset.source}}
    colspec = (
        Schema([ColSpec(kind, name) for name, kind in dataset.columns.items()]).to_dict() if dataset.columns else None
    )
    entity = Entity(
        name=dataset.name,
        digest=dataset.digest[:36],
        source_type="http" if remote else "code",
        source=json.dumps(source),
        schema=json.dumps({"mlflow_colspec": colspec}) if colspec else None,
        profile=json.dumps({"digest": dataset.digest}),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", dataset.context)])
