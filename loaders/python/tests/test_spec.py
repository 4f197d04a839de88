from __future__ import annotations

import json

import pytest

from covey.spec import Spec


def test_golden(vectors) -> None:
    cases = json.loads((vectors / "spec.json").read_text())
    assert cases
    for case in cases:
        name, want = case.pop("name"), bytes.fromhex(case.pop("hex"))
        for key in ("samples", "seed", "base"):
            case[key] = int(case[key])
        spec = Spec(**case)
        assert spec.to_bytes() == want, name
        assert Spec.from_bytes(want) == spec, name


def test_shares() -> None:
    assert Spec(10, 4).per_rank == 3
    assert Spec(10, 4, drop_last=True).per_rank == 2
    assert Spec(10, 4, base=8).per_rank == 1
    assert Spec(10, 4, base=12).per_rank == 0
    assert Spec(0, 4).per_rank == 0


def test_negative_seed() -> None:
    assert Spec(1, 1, seed=-7) == Spec(1, 1, seed=2**64 - 7)


@pytest.mark.parametrize(
    "wrong", [{"samples": -1}, {"samples": 2**32 + 1}, {"world": 0}, {"world": 2**24 + 1}, {"epoch": -1}, {"base": 2**25}]
)
def test_refuses(wrong) -> None:
    with pytest.raises(ValueError):
        Spec(**{"samples": 1, "world": 1, **wrong})


@pytest.mark.parametrize(("at", "to"), [(0, 2), (1, 2), (2, 4), (3, 1), (4, 0)])
def test_refuses_bytes(at: int, to: int) -> None:
    good = bytearray(Spec(1, 1).to_bytes())
    Spec.from_bytes(bytes(good))
    good[at] = to
    with pytest.raises(ValueError):
        Spec.from_bytes(bytes(good))
    with pytest.raises(ValueError):
        Spec.from_bytes(bytes(good[:-1]))
