from __future__ import annotations

import pytest
import torch

from jitmk.reference.kv_ledger import KvLedger
from jitmk.reference.words import RaceError
from tests.support.tiny import tiny_spec


def ledger(position: int, steps: int = 4) -> KvLedger:
    kv = KvLedger(tiny_spec())
    keys = torch.randn(2, position, 64)
    for layer in range(2):
        kv.cache.write(layer, 0, keys, keys)
    kv.begin_launch(position, steps)
    return kv


def append(kv: KvLedger, position: int, epoch: int) -> None:
    kv.append(1, 0, position, torch.ones(64), torch.zeros(64), epoch, "SM 0")


def test_positions_before_the_launch_are_known() -> None:
    kv = ledger(20)
    keys, values = kv.read(1, 0, range(16, 20), "SM 1")
    assert keys.shape == values.shape == (4, 64) and keys.isfinite().all()


def test_an_append_is_known_when_it_is_released() -> None:
    kv = ledger(3)
    with pytest.raises(RaceError, match="position 3 has not been released yet"):
        kv.read(1, 0, range(4), "SM 1")
    append(kv, 3, epoch=5)
    assert not kv.is_released(1, 0, 5)
    with pytest.raises(RaceError, match="SM 1 reads positions 0 to 3 of head 0 of layer 1"):
        kv.read(1, 0, range(4), "SM 1")
    kv.release(1, 0, 5)
    assert kv.is_released(1, 0, 5) and not kv.is_released(1, 1, 5)
    keys, values = kv.read(1, 0, range(4), "SM 1")
    assert (keys[3] == 1).all() and (values[3] == 0).all()


def test_appending_twice_is_a_race() -> None:
    kv = ledger(0)
    append(kv, 0, epoch=1)
    with pytest.raises(RaceError, match="SM 0 appends position 0 to head 0 of layer 1 in epoch 1, but epoch 1 did so"):
        append(kv, 0, epoch=1)


def test_a_launch_forgets_what_lies_behind_it() -> None:
    kv = ledger(0)
    append(kv, 0, epoch=1)
    kv.release(1, 0, 1)
    kv.begin_launch(0, 2)
    with pytest.raises(RaceError):
        kv.read(1, 0, range(1), "SM 1")
    assert kv.cache.read_head(1, 0, 0, 2)[0].isnan().all()
