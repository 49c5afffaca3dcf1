"""Streams of events: moments with a type and marks, summed per step, from histories and one by one.

`schema` says what an event is, `sums` what is added up per step, `patch` how windows become tokens; `history` and
`timeline` serve training and batch prediction, `slab`, `engine`, `ingest`, `intake` and `online` the stream. Each is
the twin of the file of that name one folder up. Nothing is handed on here: `forecaster_config` needs `schema` alone.
"""
