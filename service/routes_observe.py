"""POST /v1/observe and /v1/observe/batch: rows in, and what became of each of them; answered when they are on the disk.

wait=applied (the default) waits for the model as well, and tells surprises. wait=disk does not: an answer in the time
of one group commit, also while thousands of streams close their patches at once; surprises then come as events alone.
A batch is JSON (rows or columns) or Arrow IPC. A row that is wrong is refused with its reason, and the status of the
whole stays 200: the body says which. A row with source and sequence can be sent again at any time.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from tsgdn2.service.admission import Admitted
from tsgdn2.service.arrow import FILE_TYPE, STREAM_TYPE, from_arrow
from tsgdn2.service.bodies import Columns, ManyObserved, Observed, Row, Rows
from tsgdn2.service.columns import Raw, from_body, from_rows
from tsgdn2.service.connectors.decoded import UnsupportedError
from tsgdn2.service.desk import Desk, InDesk
from tsgdn2.service.errors import ElsewhereError
from tsgdn2.service.faults import documented
from tsgdn2.service.guard import Guarded, InCaller, InRequestId, role
from tsgdn2.service.receipts import ELSEWHERE, Receipt
from tsgdn2.service.tenants import shown

router = APIRouter(route_class=Guarded, tags=["observe"])
JSON: Final = "application/json"
_REASONS: Final = 1_000
Wait = Annotated[
    Literal["applied", "disk"],
    Query(description="disk: answer when the rows are on the disk; rows that are still to be applied are `kept`."),
]
_BINARY: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "Arrow: columns stream, time, channels, and source and sequence if there are any.",
        "content": {
            JSON: {
                "schema": {"oneOf": [model.model_json_schema() for model in (Rows, Columns)]},
                "examples": {
                    model.__name__.lower(): {"value": model.model_config["json_schema_extra"]["example"]}  # type: ignore[index]
                    for model in (Rows, Columns)
                },
            },
            STREAM_TYPE: _BINARY,
            FILE_TYPE: _BINARY,
        },
    }
}


@router.post(
    "/v1/observe", summary="Observe one moment of one stream", responses=documented([421])
)  # fmt: skip
@role("write")
async def observe(
    body: Row, desk: InDesk, caller: InCaller, request_id: InRequestId, request: Request, wait: Wait = "applied"
) -> Observed:
    """Give one moment of one stream; the answer comes when it is on the disk."""
    raw = from_rows([body.model_dump()], desk.memory.channels, 1)
    receipt = await _taken(desk, caller, raw, request, soon=wait == "disk")
    if receipt.status[0] == ELSEWHERE:
        raise ElsewhereError(receipt.reasons[0])
    surprise = receipt.surprise[0].tolist()
    return Observed(
        request_id=request_id, status=receipt.status[0],  # type: ignore[arg-type]
        surprise={
            name: None if bits != bits else bits for name, bits in zip(desk.memory.channels, surprise, strict=True)
        },
        reason=_reason(caller.tenant, receipt, 0),
    )  # fmt: skip


@router.post("/v1/observe/batch", response_model=ManyObserved, openapi_extra=_BODY, summary="Observe many moments")
@role("write")
async def observe_batch(
    request: Request,
    desk: InDesk,
    caller: InCaller,
    request_id: InRequestId,
    results: Annotated[
        Literal["all", "counts"], Query(description="counts: no status and surprise of each row")
    ] = "all",
    wait: Wait = "applied",
) -> Response:
    """Give many moments of many streams; rows of one stream are taken in their order."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    decoders = {JSON: from_body, STREAM_TYPE: from_arrow, FILE_TYPE: from_arrow}
    if kind not in decoders:
        raise UnsupportedError(f"Content-Type: must be one of {', '.join(decoders)}, got {kind[:60]!r}")
    content = await request.body()
    raw = await desk.threaded(decoders[kind], content, desk.memory.channels, desk.settings.rows)
    receipt = await _taken(desk, caller, raw, request, soon=wait == "disk")
    answer = {
        "request_id": request_id,
        "rows": len(receipt),
        "counts": receipt.counts,
        "status": receipt.status if results == "all" else None,
        "surprise": None if results == "counts" else {
            name: receipt.surprise[:, channel].tolist() for channel, name in enumerate(desk.memory.channels)
        },
        "reasons": {str(row): _reason(caller.tenant, receipt, row) for row in sorted(receipt.reasons)[:_REASONS]},
    }  # fmt: skip
    return Response(to_json(answer, inf_nan_mode="null"), media_type=JSON)


async def _taken(desk: Desk, caller: InCaller, raw: Raw, request: Request, *, soon: bool) -> Receipt:
    def admit() -> Admitted:
        return raw.admitted(desk.memory.admission, caller.tenant)

    admitted = await desk.threaded(admit) if raw.total > 64 else admit()
    request.state.rows, request.state.streams = raw.total, len(set(raw.streams))
    if not len(admitted.batch):  # nothing for the memory to do; it would say the same
        surprise = np.full((raw.total, len(desk.memory.channels)), np.nan)
        return Receipt(status=("refused",) * raw.total, surprise=surprise, reasons=admitted.refused)
    return await desk.take(caller, admitted, soon=soon)


def _reason(tenant: str, receipt: Receipt, row: int) -> str | None:
    reason = receipt.reasons.get(row)
    return None if reason is None else shown(tenant, reason).encode(errors="replace").decode()
