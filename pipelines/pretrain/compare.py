"""The job `pretrain compare`: one configuration with several mixers and seeds at one budget, and one table of all.

    <output>/compare.jsonl        a row is appended as soon as a run is trained and judged; it is never done again
    <output>/<mixer>-<seed>/      the training; one that was stopped goes on from its newest checkpoint
    <output>/report.html          the page, its Markdown twin report.md

Every mixer gets the same sizes and state, the same steps, the same windows in the same order for a seed, and the same
optimiser; the hidden width of the SwiGLU makes the weights of the blocks as equal as it can. Nothing is tuned for any
of them: the learning rate is the configuration's. Judged by bits per byte of the whole held-out part. Three seeds are
no proof; the table says mean and range, and who is level with whom.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from tsgdn2.datasets.tokens import TokenShards
from tsgdn2.errors import ConfigError
from tsgdn2.evaluation.language.perplexity import score
from tsgdn2.evaluation.probes.standings import Range
from tsgdn2.evaluation.rows import Row, append, mend, read, row
from tsgdn2.language.config import LanguageConfig
from tsgdn2.language.cost import footprint
from tsgdn2.pipelines.pretrain import run as training
from tsgdn2.pipelines.pretrain.jobs import Compare, Pretrain, several
from tsgdn2.pipelines.pretrain.prepare import TRAIN, VALIDATION
from tsgdn2.pipelines.pretrain.prepared import loses_text
from tsgdn2.pipelines.pretrain.recipes import recipe
from tsgdn2.pipelines.pretrain.tokenizer import load_tokenizer
from tsgdn2.pipelines.pretrain.weights import device_of, opened
from tsgdn2.pipelines.report import Report
from tsgdn2.pipelines.runs import Run
from tsgdn2.pipelines.screen import Screen
from tsgdn2.pipelines.training import record_options, write_settings

ROWS: Final = "compare.jsonl"
COLUMNS: Final = ("mixer", "bits per byte", "smallest", "largest", "seeds", "weights of blocks",
                  "state, floats a layer", "mlp", "CPU-s a run")  # fmt: skip


def run(job: object) -> None:
    """Do the runs that have no row yet, then print and write the table."""
    assert isinstance(job, Compare)
    screen = Screen(job.quiet)
    job = replace(job, output=job.output or job.runs / "pretrain-compare")
    wanted = trials(job)
    folder = job.folder("pretrain-compare")
    path = folder / ROWS
    with Run.start(job.experiment, f"compare {job.recipe}", root=job.runs, tracking_uri=job.tracking_uri,
                   tags={"tsgdn2.job": "pretrain compare"}) as record:  # fmt: skip
        write_settings(job, folder)
        record_options(record, job)
        done = finished(path)
        keys = [key(one) for one in wanted]
        missing = [(one, name) for one, name in zip(wanted, keys, strict=True) if name not in done]
        if len(missing) < len(wanted):
            screen.say(f"{len(wanted) - len(missing)} of {len(wanted)} runs have their row already")
        for one, name in missing:
            made = trial(one, screen)
            append(path, made)
            done[name] = made
            screen.say(f"{made.shape['mixer']}, seed {made.seed}: {made.values['bits_per_byte']:.4f} bits per byte")
        rows = [done[name] for name in keys]
        screen.table("Held-out bits per byte", COLUMNS, table(rows))
        screen.say(verdict(rows))
        written = page(rows).write(folder)
        for made in rows:
            record.metrics({f"{made.shape['mixer']}/bits_per_byte": float(made.values["bits_per_byte"] or 0)},
                           step=made.seed or 0)  # fmt: skip
        for file in (path, written, written.with_suffix(".md")):
            record.artifact(file, "report")
    screen.say(f"page: {written}")


def trials(job: Compare) -> list[Pretrain]:
    """Every training, seed by seed, so that a table that was stopped has all mixers.

    Errors: ConfigError for mixers that do not compare, or data whose bits per byte would not be those of its text.
    """
    if loses_text(job.data, load_tokenizer(job.data)):
        raise ConfigError(f"data: the tokenizer of {job.data} loses text, so there are no bits per byte to compare by; "
                          "prepare it with `--tokenizer bytes` or `bpe`")  # fmt: skip
    base = recipe(job.recipe, job.data, runs=job.runs, experiment=job.experiment, tracking_uri=job.tracking_uri,
                  quiet=job.quiet)  # fmt: skip
    output = job.output or job.runs / "pretrain-compare"
    tokens = base.training.tokens if job.steps is None else job.steps * base.training.step_tokens
    models = {mixer: matched(base.model, mixer) for mixer in job.mixers}
    return [
        replace(base, model=models[mixer], output=output / f"{mixer}-{seed}",
                training=replace(base.training, seed=seed, tokens=tokens))
        for seed in several(job.seeds) for mixer in job.mixers
    ]  # fmt: skip


def matched(config: LanguageConfig, mixer: str) -> LanguageConfig:
    """The config with another mixer at the same state, and the SwiGLU that brings the weights nearest to the config's.

    Errors: ConfigError where the other mixer's state is not of the same size, or no SwiGLU is small enough.
    """
    whole = footprint(config)
    own = replace(config, mixer=mixer)
    least = footprint(replace(own, mlp=1))
    if least.state_floats != whole.state_floats:
        raise ConfigError(f"mixers: {mixer} has a state of {set(least.state_floats)} floats a layer, {config.mixer} of "
                          f"{set(whole.state_floats)}; compare those of the same size")  # fmt: skip
    unit = footprint(replace(own, mlp=2)).parameters - least.parameters
    mlp = 1 + round((whole.parameters - least.parameters) / unit)
    if mlp < 1:
        raise ConfigError(f"mixers: {mixer} alone has more weights than {config.mixer} with its SwiGLU of {config.mlp}")
    return replace(own, mlp=mlp)


def trial(job: Pretrain, screen: Screen) -> Row:
    """Train, or go on, and judge; the seconds are those of this process."""
    assert job.output is not None
    began = time.process_time()
    training.run(job)
    model = opened(
        job.output, device=device_of("auto" if job.cluster.accelerator == "auto" else job.cluster.accelerator)
    )
    held_out = TokenShards(job.data / VALIDATION, verify="use")
    with screen.phase("held-out part", total=held_out.documents):
        found = score(model, held_out.walk())
    cost = footprint(job.model)
    spent = time.process_time() - began
    return row(f"compare: {job.model.mixer}", shape(job), seed=job.training.seed, cpu_seconds=spent,
               bits_per_byte=found.bits_per_byte, loss=found.loss, perplexity=found.perplexity,
               predicted=found.predicted, parameters=cost.parameters, state_floats=max(cost.state_floats))  # fmt: skip


def shape(job: Pretrain) -> dict[str, str | int | float | bool | None]:
    """What a row depends on beside the seed: model, options that fix the weights, both parts of the data."""
    options = asdict(job.training)
    for free in ("seed", "checkpoint_every", "keep", "validate_every", "validation_windows", "log_every"):
        del options[free]
    data = [TokenShards(job.data / part).manifest.to_json() for part in (TRAIN, VALIDATION)]
    text = json.dumps([options, *data], sort_keys=True)
    return {"mixer": job.model.mixer, "model": job.model.fingerprint, "mlp": job.model.mlp, "steps": job.training.steps,
            "tokens": job.training.tokens, "settings": hashlib.sha256(text.encode()).hexdigest()[:16]}  # fmt: skip


def key(job: Pretrain) -> tuple[object, ...]:
    """What a row is known by."""
    return *shape(job).values(), job.training.seed


def finished(path: Path) -> dict[tuple[object, ...], Row]:
    """Rows by their key; what was cut off behind the last whole line is removed from the file."""
    if not path.exists():
        return {}
    mend(path)
    names = ("mixer", "model", "mlp", "steps", "tokens", "settings")
    return {(*(one.shape[name] for name in names), one.seed): one for one in read(path)}


def ranges(rows: Sequence[Row]) -> dict[str, Range]:
    """Bits per byte of each mixer, the best mean first."""
    groups: dict[str, list[float]] = {}
    for one in rows:
        groups.setdefault(str(one.shape["mixer"]), []).append(float(one.values["bits_per_byte"] or 0))
    found = {mixer: Range.of(values) for mixer, values in groups.items()}
    return dict(sorted(found.items(), key=lambda pair: pair[1].mean))


def table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """One line per mixer, the best first."""
    lines = []
    for mixer, one in ranges(rows).items():
        own = [made for made in rows if made.shape["mixer"] == mixer]
        seconds = sum(made.cpu_seconds or 0.0 for made in own) / len(own)
        seeds = ", ".join(str(made.seed) for made in own)
        cells = (mixer, f"{one.mean:.4f}", f"{one.low:.4f}", f"{one.high:.4f}", seeds,
                 f"{own[0].values['parameters']:,}", f"{own[0].values['state_floats']:,}", str(own[0].shape["mlp"]),
                 f"{seconds:.0f}")  # fmt: skip
        lines.append(dict(zip(COLUMNS, cells, strict=True)))
    return lines


def verdict(rows: Sequence[Row]) -> str:
    """Who wins, in words: the smallest mean, and who is level with it."""
    found = ranges(rows)
    best, *others = found
    if not others:
        return f"{best} stands alone with {found[best].mean:.4f} bits per byte."
    level = [name for name in others if found[name].low <= found[best].high]
    seeds = len({one.seed for one in rows})
    said = f"{best} has the fewest bits per byte, {found[best].mean:.4f} on average of {seeds} seeds"
    if level:
        return f"{said}; level with it, by the range of the seeds: {', '.join(level)}."
    return f"{said}; every seed of it is better than every seed of {' and '.join(others)}."


def page(rows: Sequence[Row]) -> Report:
    """The page."""
    first = rows[0]
    report = Report("Mixers of a language model at one budget",
                    f"{first.shape['steps']:,} steps, {first.shape['tokens']:,} tokens; {first.device}, "
                    f"commit {first.commit}, {first.date}")  # fmt: skip
    report.table(
        COLUMNS, table(rows), ours=("gdn2",), note="Bits per byte of the whole held-out part; smaller is better."
    )
    report.paragraph(verdict(rows))
    return report
