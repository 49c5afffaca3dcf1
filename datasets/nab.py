"""Two folders of the Numenta Anomaly Benchmark: 24 real telemetry streams of one value, with labelled windows.

Stamps are kept as published, odd ones too: one file goes back by an hour in autumn, others repeat a stamp or skip some.
So a file is handed out in its own order, as the benchmark scores it; `nab_frame` is the tidy form without repeats. The
other five folders of the corpus are not here, and figures over these two do not compare with those over all.

Source: Lavin and Ahmad 2015, arXiv 1510.03336, github.com/numenta/NAB.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tsgdn2.datasets.errors import DataError, FrameError
from tsgdn2.datasets.fetch import Source, locate, table
from tsgdn2.datasets.frame import STREAM, TIME, normalise
from tsgdn2.datasets.instants import instants
from tsgdn2.datasets.readers import csv_table

VALUE: Final = "value"
HOME: Final = "https://raw.githubusercontent.com/numenta/NAB/master"
_AWS, _OWN = "realAWSCloudwatch", "realKnownCause"
_SHA256: Final = {
    f"{_AWS}/ec2_cpu_utilization_24ae8d": "ab446fbd8b9f37507eb2fdb06315826d8daeef02e241133ce06e0ee571ba53d9",
    f"{_AWS}/ec2_cpu_utilization_53ea38": "8942e498de7b40f1b4a6d802755592c09b8fb73ce8f658763a09cb9ea1ea94ac",
    f"{_AWS}/ec2_cpu_utilization_5f5533": "01613e6f632d067f11a5dfd40a188b0789752b388d9bc77a398bd06333878a76",
    f"{_AWS}/ec2_cpu_utilization_77c1ca": "90ceabd570b449241ee24ff8a116a793979b7671ce4490707311bfea0e0aae1f",
    f"{_AWS}/ec2_cpu_utilization_825cc2": "d768419037c9db269343822957314f57ee21a7d9a4d41df2add0d1ba45ba84de",
    f"{_AWS}/ec2_cpu_utilization_ac20cd": "749a15c2e1a4543c21fee9cbf3338cd8a7ed5f5f8a1308b9b099b06c2c66e66b",
    f"{_AWS}/ec2_cpu_utilization_c6585a": "d936cea74682ed43ac96b778352d7de294c0b0c168f4a7e6817162346cdb28c1",
    f"{_AWS}/ec2_cpu_utilization_fe7f93": "f3433f8171f4dcea86c0c7af9996d0f166f812fa0f4567f1d5cd85d2d2cd69b4",
    f"{_AWS}/ec2_disk_write_bytes_1ef3de": "ce3d6c6a652ed7c31a6dd3727a36e128fcac6fb2381c63267ad0fbc02eccd9df",
    f"{_AWS}/ec2_disk_write_bytes_c0d644": "a0e734a66098bb81833835f0839dadafbc8ae829c51494670ee8849e46eb5b63",
    f"{_AWS}/ec2_network_in_257a54": "39104b08f2e0a673b5137eb7681897fcadf0955fedf565740a6a94edc63a81a4",
    f"{_AWS}/ec2_network_in_5abac7": "c27ef93f582af63bf42e80d804764cbe64ae987620f3cfab5477d6ebb3c6157e",
    f"{_AWS}/elb_request_count_8c0756": "74c26574a01ca9fb89dddb5021e2e13c3a93eb25dc640438a9acb1ceb00f1021",
    f"{_AWS}/grok_asg_anomaly": "86a0abe9d58e376858d2fd4f4a438f1997e24c64a09e5af03accd4e1b372ac47",
    f"{_AWS}/iio_us-east-1_i-a2eb1cd9_NetworkIn": "f115fbe6542159eed5612445bfa620708a28ab6b41349d1432bb15c3a3b8414d",
    f"{_AWS}/rds_cpu_utilization_cc0c53": "d5df979ef85928769a016cd0f935919d8c2a113926e21e1eb3a5001d688760e2",
    f"{_AWS}/rds_cpu_utilization_e47b3b": "6b712b922ab3b3404c5a629d64a570c390c99471ee8b9b0ff7665f553fda92c1",
    f"{_OWN}/ambient_temperature_system_failure": "230b68ccca20f59d562afd5d24ad52939c9b784386bed0054018358bf9120581",
    f"{_OWN}/cpu_utilization_asg_misconfiguration": "58ba65dc0737cfbac11b51514476d50c438d44011232144bb8d93f392df58f9f",
    f"{_OWN}/ec2_request_latency_system_failure": "98378580aa80157e057c61d59d81daddccc6c65a2c0c800e3f01f603b8215c3f",
    f"{_OWN}/machine_temperature_system_failure": "92bf5b87fc7f9bba8ca0b7ec63ccaac8cb4a1371a258e8c29a10ae9c018d82a4",
    f"{_OWN}/nyc_taxi": "d8fa6f7f0734bf5c8be12c52a94e20a82664c397d9dec4449156bd453d32856d",
    f"{_OWN}/rogue_agent_key_hold": "47b110baa8e3636574c1033dda1cce780873647fab58223d159d4fee6f180e86",
    f"{_OWN}/rogue_agent_key_updown": "9797cfef477c13306f7a33874ab4d6cf700f8f2c7e5825a2a5bc02004370909a",
}


def _source(name: str) -> Source:
    path = f"data/{name}.csv"
    return Source(
        name=f"nab/{path}", urls=(f"{HOME}/{path}",), local=(f"nab/{path}.gz", f"nab/{path}"), sha256=_SHA256[name]
    )


NAB_SOURCES: Final[dict[str, Source]] = {name: _source(name) for name in _SHA256}
NAB_WINDOWS: Final = Source(
    name="nab/labels/combined_windows.json",
    urls=(f"{HOME}/labels/combined_windows.json",),
    local=("nab/labels/combined_windows.json",),
)
NAB_STREAMS: Final = tuple(_SHA256)
"""Names of the streams, folder/file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledStream:
    """One file as it stands, and where it is anomalous."""

    name: str
    """folder/file."""
    stamps: NDArray[np.int64]
    """Nanoseconds since 1970, UTC, [N], in the file's order: now and then equal, once going back."""
    values: NDArray[np.float64]
    """What was measured, [N]."""
    windows: tuple[tuple[int, int], ...]
    """First and last nanosecond of each labelled window, both inside it, in order; none overlap."""

    @property
    def step(self) -> int:
        """Nanoseconds between most rows."""
        steps, counts = np.unique(np.diff(self.stamps), return_counts=True)
        return int(steps[counts.argmax()])


def nab(name: str, *, sha256: str | None = None) -> LabelledStream:
    """Read one file of NAB_STREAMS in its own order, with its windows.

    sha256: the digest that you expect of the file in place of the known one. Raises DataError for another name, for a
    file or labels of another form; FetchError, ChecksumError.
    """
    if name not in NAB_SOURCES:
        raise DataError(f"name must be one of {', '.join(NAB_STREAMS)}, got {name!r}")
    path = locate(NAB_SOURCES[name], sha256=sha256)
    raw = csv_table(table(path), origin=str(path))
    if raw.columns != ["timestamp", VALUE]:
        raise FrameError(f"{path} must have the columns timestamp and value, it has {raw.columns}; fetch it again")
    stamps = instants(raw["timestamp"]).to_physical().to_numpy()
    values = raw[VALUE].cast(pl.Float64, strict=False).to_numpy()
    if len(stamps) < 2 or not np.isfinite(values).all():
        raise FrameError(f"{path} must hold at least two rows, each with a number; fetch it again")
    return LabelledStream(name=name, stamps=stamps, values=values, windows=nab_windows()[name])


def nab_frame(name: str, *, sha256: str | None = None) -> pl.DataFrame:
    """The same file as a frame of the schema, one channel `value`: sorted, of equal stamps the last one kept."""
    found = nab(name, sha256=sha256)
    raw = pl.DataFrame({TIME: found.stamps, VALUE: found.values})
    return normalise(raw, name=found.name, unit="ns", duplicates="last").select(STREAM, TIME, VALUE)


def nab_windows(*, sha256: str | None = None) -> dict[str, tuple[tuple[int, int], ...]]:
    """Labelled windows of every stream of NAB_STREAMS, in int64 nanoseconds; empty where nothing is labelled.

    The public file names all of the corpus; its digest is pinned on first use. Raises DataError where it is of another
    form, names a stream not at all, or where windows are out of order; FetchError, ChecksumError.
    """
    path = locate(NAB_WINDOWS, sha256=sha256)
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        pairs = {name: [(str(begin), str(end)) for begin, end in given[f"{name}.csv"]] for name in NAB_STREAMS}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} must map each file to pairs of stamps ({error!r}); fetch it again") from error
    found = {}
    for name, own in pairs.items():
        ends = instants(pl.Series("windows", [stamp for pair in own for stamp in pair], pl.String)).to_physical()
        if not ends.is_sorted():
            raise DataError(f"{path}: the windows of {name} must be in order and apart, got {own}; fetch it again")
        found[name] = tuple((int(ends[i]), int(ends[i + 1])) for i in range(0, len(ends), 2))
    return found
