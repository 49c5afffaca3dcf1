"""Training and validation windows: the same for the same seed, and on their side of the cut."""

import numpy as np

from tsgdn2.forecaster import ForecasterConfig
from tsgdn2.pipelines.loader import WindowSampler, validation_batches
from tsgdn2.timeline import Series, Timelines


def test_batches_are_reproducible_and_never_look_past_the_cut():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(900, 1))
    values[rng.random(900) < 0.2] = np.nan
    config = ForecasterConfig(prediction_length=12, period_ns=3_600_000_000_000)
    lines = Timelines(
        [Series(values=values, start=477_000, prior_scale=np.ones(1))], window=8, horizon=12, half_life=100.0
    )
    until = np.array([477_000 + 700])
    options = {"tokens": 8, "batch_size": 4, "batches": 5, "seed": 7, "until": until}
    for a, b in zip(WindowSampler(lines, config, **options), WindowSampler(lines, config, **options), strict=True):
        np.testing.assert_array_equal(a.target, b.target)
        clock = a.queries.windows.clock
        ends = clock[..., None] + np.arange(1, 13)
        assert not a.weight[..., 0][ends >= until[0]].any()
        assert (a.query_elapsed > 0).all()
    scored = [
        (int(lane), int(step))
        for b in validation_batches(lines, config, tokens=8, since=until, seed=0, batch_size=4)
        for lane, step in zip(
            *[
                x[b.weight[..., 0]]
                for x in np.broadcast_arrays(
                    b.queries.windows.clock[..., None], b.queries.windows.clock[..., None] + np.arange(1, 13)
                )
            ],
            strict=True,
        )
    ]
    assert len(scored) == len(set(scored))
    assert min(step for _, step in scored) >= until[0]


def test_hidden_cells_are_asked_for_and_seen_by_nothing_else():
    rng = np.random.default_rng(1)
    values = 5 + rng.normal(size=(400, 1))
    hidden = rng.random(values.shape) < 0.4
    config = ForecasterConfig(prediction_length=6, period_ns=3_600_000_000_000, patch_length=4, lag_skip=8, bridge=3.0)
    options = {"window": 8, "horizon": 6, "half_life": 100.0, "bridge": 3.0}
    scale = np.ones(1)
    told = Timelines([Series(values=values, start=50, prior_scale=scale, hidden=hidden)], **options)
    gone = Timelines([Series(values=np.where(hidden, np.nan, values), start=50, prior_scale=scale)], **options)
    sampling = {"tokens": 8, "batch_size": 4, "batches": 4, "seed": 3}
    for a, b in zip(WindowSampler(told, config, **sampling), WindowSampler(gone, config, **sampling), strict=True):
        for mine, other in zip((*a.commits, *a.queries.windows), (*b.commits, *b.queries.windows), strict=True):
            np.testing.assert_array_equal(mine, other)
        np.testing.assert_array_equal(a.queries.lags, b.queries.lags)
        np.testing.assert_array_equal(a.target[b.weight], b.target[b.weight])
        inside = (a.queries.windows.clock[:, None, None] + np.arange(1, 7)[:, None]) < 450
        assert (a.weight == inside).all(), "every cell of the horizon counts, hidden or not"
        assert (a.weight & ~b.weight).any()
