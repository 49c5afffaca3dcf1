"""The job `audit run`: accounts for what a state evicted, over data or as a saved online state remembers it.

<output>/audit/   the tables and the summary that audit_report.py lists

Of a registered version (models:/name/3) it is the gate: its tag `audit.status` becomes "passed" or "failed".
"""

from __future__ import annotations

from dataclasses import replace

from tsgdn2.errors import ConfigError
from tsgdn2.pipelines.accounts import Account, account
from tsgdn2.pipelines.audit_report import OnlineView, log_audit, online_view, write_audit
from tsgdn2.pipelines.event_source import open_data
from tsgdn2.pipelines.jobs import AuditRun
from tsgdn2.pipelines.predictor import GDN2Predictor
from tsgdn2.pipelines.registry import fetch, verdict
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.saved import STATE, open_predictor, open_state
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.service_jobs import REGISTERED
from tsgdn2.pipelines.source import Source
from tsgdn2.pipelines.traces import collect
from tsgdn2.pipelines.tracking import default_tracking_uri
from tsgdn2.pipelines.training import record_options, write_settings


def run(job: AuditRun) -> None:
    """Audit a predictor over data, or a saved online state, or both."""
    screen, registered = Screen(job.quiet), None
    if str(job.predictor).startswith(REGISTERED):
        uri = job.tracking_uri or default_tracking_uri(job.runs)
        registered = fetch(str(job.predictor), job.runs, uri, require_audit=False)
        job = replace(job, predictor=registered.folder)
    view: OnlineView | None = None
    predictor: GDN2Predictor | None = None
    if job.predictor.suffix == STATE:
        online = open_state(job.predictor)
        view = online_view(online, online.evictions(drain=True))
        if job.data is not None:
            raise ConfigError("data: an audit over data needs the predictor's folder, a saved state has its own past; "
                              "leave data out, or name the folder")  # fmt: skip
        if view is None:
            raise ConfigError(f"predictor: {job.predictor} was saved without an audit; replay with audit=true")
    else:
        predictor = open_predictor(job.predictor)
        if job.data is None:
            raise ConfigError("data: a predictor's folder holds no stream; name a file or a set to run it over")
    source = None
    if job.data is not None and predictor is not None:
        source = open_data(job.data, job.columns, predictor.config)
        source = source.select(predictor.channels) if predictor.config.channels > 1 else source
    name = job.predictor.stem if source is None else source.name
    decided: dict[str, str] = {}
    folder = job.folder("audit")
    with Run.start(job.experiment, f"audit {name}", root=job.runs, tracking_uri=job.tracking_uri,
                   tags={"tsgdn2.job": "audit"}) as record:  # fmt: skip
        write_settings(job, folder)
        record_options(record, job)
        accounts: list[Account] = []
        if source is not None and predictor is not None:
            source.log(record, context="test")
            with screen.phase("following every write"):
                accounts = _accounts(job, source, predictor)
        with screen.phase("writing"):
            found = write_audit(folder / "audit", accounts, view, f"{name}, predictor {job.predictor}")
            log_audit(record, folder / "audit", found, {"threshold": job.audit.threshold, "window": job.audit.window})
            if registered is not None:
                alerts = [row for one in accounts for row in one.alerts.to_dicts()]
                errors = [f"{row['series']}: {row['message']}" for row in alerts if row["severity"] == "error"]
                decided = verdict(found, errors, len(alerts) - len(errors))
                record.version_tags(registered.name, registered.version, decided)
    for key, value in found.items():
        screen.say(f"{key:<32} {value:,.4g}")
    for key, text in decided.items():
        screen.say(f"{key:<32} {text}")
    screen.say(f"summary: {folder / 'audit' / 'summary.html'}")


def _accounts(job: AuditRun, source: Source, predictor: GDN2Predictor) -> list[Account]:
    config = predictor.config
    entries = source.entries("univariate" if config.channels == 1 else "multivariate")
    names = source.streams[: job.audit.streams]
    chosen = [e for e in entries if str(e["item_id"]) in names or str(e["item_id"]).rpartition("/")[0] in names]
    layers = tuple(range(config.layers)) if job.audit.layers == "all" else (config.layers - 1,)
    traces = collect(predictor, chosen, layers=layers, window=job.audit.window)
    return [account(one.heads(job.audit.heads), source.period, threshold=job.audit.threshold) for one in traces]
