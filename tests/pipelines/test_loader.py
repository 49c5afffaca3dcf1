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
