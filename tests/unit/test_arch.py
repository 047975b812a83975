"""GpuArch: known targets, refused ones, sizes."""

from __future__ import annotations

import pytest

from jitmk.arch import Feature, GpuArch
from jitmk.errors import DeviceError


def test_supported_targets() -> None:
    assert GpuArch.supported() == ("sm_90a", "sm_100a", "sm_103a", "sm_120a")


@pytest.mark.parametrize(
    ("name", "capability", "shared"),
    [
        ("sm_90a", (9, 0), 232448),
        ("sm_100a", (10, 0), 232448),
        ("sm_103a", (10, 3), 232448),
        ("sm_120a", (12, 0), 101376),
    ],
)
def test_a_known_target(name: str, capability: tuple[int, int], shared: int) -> None:
    arch = GpuArch.parse(name)
    assert arch.name == name
    assert arch.compute_capability == capability
    assert arch.shared_bytes_per_block == shared
    assert GpuArch.from_compute_capability(*capability) == arch


def test_features_select_the_instructions_of_one_target() -> None:
    with_wgmma = {name for name in GpuArch.supported() if Feature.WGMMA in GpuArch.parse(name).features}
    with_tcgen05 = {name for name in GpuArch.supported() if Feature.TCGEN05 in GpuArch.parse(name).features}
    assert with_wgmma == {"sm_90a"}
    assert with_tcgen05 == {"sm_100a", "sm_103a"}


def test_sm_count_can_be_given() -> None:
    assert GpuArch.parse("sm_90a").sm_count == 132
    assert GpuArch.parse("sm_90a", sm_count=114).sm_count == 114
    with pytest.raises(DeviceError, match="sm_count is 0"):
        GpuArch.parse("sm_90a", sm_count=0)


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_121a", "90a", "compute_90a", "", "SM_90A"])
def test_other_targets_are_refused_by_name(name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        GpuArch.parse(name)
    assert repr(name) in str(caught.value)
    assert "sm_90a, sm_100a, sm_103a, sm_120a" in str(caught.value)


def test_a_forgotten_suffix_is_pointed_out() -> None:
    with pytest.raises(DeviceError, match="write sm_100a"):
        GpuArch.parse("sm_100")


def test_an_unsupported_device_is_refused_by_its_capability() -> None:
    with pytest.raises(DeviceError, match=r"compute capability 8\.9"):
        GpuArch.from_compute_capability(8, 9)


def test_it_is_a_value() -> None:
    assert hash(GpuArch.parse("sm_90a")) == hash(GpuArch.parse("sm_90a"))
    assert GpuArch.parse("sm_90a") != GpuArch.parse("sm_90a", sm_count=78)
