"""The policies by which units are dealt to SMs, by name."""

from __future__ import annotations

from collections.abc import Mapping

from jitmk.schedule.policies.base import Placement, Policy, PolicyInput
from jitmk.schedule.policies.cyclic import RoundRobin, Zigzag
from jitmk.schedule.policies.level import Level
from jitmk.schedule.policies.listing import ListScheduling
from jitmk.schedule.policies.pool import Pool
from jitmk.schedule.policies.wave import Wave

POLICIES: Mapping[str, Policy] = {
    policy.name: policy for policy in (Level(), RoundRobin(), Zigzag(), Wave(), ListScheduling(), Pool())
}
"""Every policy by the name that `make_schedule` takes."""

__all__ = ["POLICIES", "Placement", "Policy", "PolicyInput"]
