import pytest

from tests.torture.__main__ import attacks, run


@pytest.mark.parametrize("attack", [a for a in attacks() if a.short], ids=lambda a: a.name)
def test_every_fault_is_survived(attack):
    if reason := attack.missing():
        pytest.skip(reason)
    result = run(attack, attack.short, seed=0)
    assert result.injected >= attack.short
    assert result.lost == []
