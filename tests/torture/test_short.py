import pytest

from tests.torture.__main__ import attacks, run

EACH = pytest.mark.parametrize(
    "attack", [a for a in attacks() if a.short], ids=lambda attack: attack.name
)


def require_survived(attack, count):
    if reason := attack.missing():
        pytest.skip(reason)
    result = run(attack, count, seed=0)
    assert result.injected >= count
    assert result.lost == []


@EACH
def test_every_fault_is_survived(attack):
    require_survived(attack, -(-attack.short // 4))


@pytest.mark.slow
@EACH
def test_four_times_as_many_faults_are_survived(attack):
    require_survived(attack, attack.short)
