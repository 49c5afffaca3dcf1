"""The eviction audit: what the state kept, what it lost, when, why, and to whom (math.md 3).

Offline (retention, ledger, eviction, occupancy) accounts for every write of a window; online follows a bounded sample
beside the predictor. It reads (k, e, z, g) and states, never a model, so it holds for every mixer of that family.
"""

from tsgdn2.audit.alerts import Alert, AlertLimits, HeadFacts, judge, window_alerts
from tsgdn2.audit.eviction import (
    EvictionEvents,
    EvictionMatrix,
    eviction_events,
    eviction_matrix,
    half_life,
    kaplan_meier,
)
from tsgdn2.audit.ledger import EnergyLedger, energy_ledger
from tsgdn2.audit.occupancy import Occupancy, ReadBack, cohort_states, occupancy, read_back
from tsgdn2.audit.online import OnlineAudit
from tsgdn2.audit.readings import HeadReadings, SlotReadings, TrackedWrites
from tsgdn2.audit.retention import carried_state, largest_gain, retained_keys, retention_matrix
from tsgdn2.audit.slab import AuditConfig
from tsgdn2.audit.tracking import Eviction

__all__ = [
    "Alert",
    "AlertLimits",
    "AuditConfig",
    "EnergyLedger",
    "Eviction",
    "EvictionEvents",
    "EvictionMatrix",
    "HeadFacts",
    "HeadReadings",
    "Occupancy",
    "OnlineAudit",
    "ReadBack",
    "SlotReadings",
    "TrackedWrites",
    "carried_state",
    "cohort_states",
    "energy_ledger",
    "eviction_events",
    "eviction_matrix",
    "half_life",
    "judge",
    "kaplan_meier",
    "largest_gain",
    "occupancy",
    "read_back",
    "retained_keys",
    "retention_matrix",
    "window_alerts",
]
