"""What is filled in, beside guesses that need no model: errors of known size, paired over groups."""

import numpy as np
import pytest
import reconstruction
import torch
from tests.log_mels import Clips

from patchifier.config import Config, update
from patchifier.nn.model import Patchifier
from patchifier.train.references import Kriging
from patchifier.train.validation import validation_batches

TINY = {"channels": [4, 4, 4, 4, 8], "embed_dim": 16, "n_layers": 1, "n_heads": 2, "mlp_dim": 32}


class Knowing(Patchifier):
    """Fills in what there was, and a tenth more."""

    def reconstruct(self, patches, *, mask=None, valid=None):
        return self.mel(patches) + 0.1


class Blind(Patchifier):
    """Draws the mean of all visible patches, wherever they stand."""

    def reconstruct(self, patches, *, mask=None, valid=None):
        visible = (valid & ~mask)[:, :, None, None, None].float()
        return ((patches * visible).sum(1, keepdim=True) / visible.sum(1, keepdim=True)).expand_as(
            patches
        )


class Neighbouring(Patchifier):
    """Draws the patch before, visible or not, with every visible one where it was put."""

    def reconstruct(self, patches, *, mask=None, valid=None):
        return patches.roll(1, dims=1)


CONFIG = update(Config(), {"model": TINY, "pretrain": {"n_patches": 8}})
DATA = Clips(*[400] * 5)
REFERENCES = ("visible mean", "interpolation", "shrunk interpolation", "kriging", "band means")


def measured(
    made: type[Patchifier], data: Clips, kriging: Kriging | None = None
) -> dict[str, np.ndarray]:
    parts = list(reconstruction.measured(made(CONFIG).eval(), data, np.arange(5), CONFIG, kriging))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_errors_are_those_of_masked_patches_and_the_same_crops_and_masks_for_every_model(
    small_cache,
):
    kriging = reconstruction.kriging_of(small_cache, CONFIG)
    knowing, untrained = (measured(made, DATA, kriging) for made in (Knowing, Patchifier))
    assert list(knowing) == ["the model", "visible shuffled", *REFERENCES, *reconstruction.DRAWN]
    np.testing.assert_allclose(knowing["the model"], 0.01, rtol=1e-4)
    assert (untrained["the model"] > 0.02).all()
    for guess in REFERENCES:
        np.testing.assert_array_equal(knowing[guess], untrained[guess])
        assert (knowing[guess] > 1e-5).all()
        assert (knowing["band means"] <= knowing[guess] + 1e-9).all()
    assert "kriging" not in measured(Knowing, DATA)


def test_only_a_model_that_knows_where_patches_stand_loses_by_shuffling():
    blind, neighbouring = (measured(made, DATA) for made in (Blind, Neighbouring))
    np.testing.assert_allclose(blind["visible shuffled"], blind["the model"], rtol=1e-5)
    assert (neighbouring["visible shuffled"] != neighbouring["the model"]).any()


def test_what_is_drawn_is_summed_over_four_masks():
    knowing = measured(Knowing, DATA)
    for kind in ("within", "between"):
        np.testing.assert_allclose(knowing[f"{kind} drawn"], knowing[kind], rtol=1e-3)
    np.testing.assert_array_equal(knowing["onsets matched"], knowing["onsets"])
    assert (
        reconstruction.shares(
            {
                name: float(values.sum())
                for name, values in knowing.items()
                if name in reconstruction.DRAWN
            }
        )["onset F"]
        == "1.000"
    )
    (batch,) = validation_batches(DATA, np.arange(5), CONFIG)
    masks = [reconstruction.masked_anew(batch, 0, number).mask for number in range(4)]
    assert all(torch.equal(mask.sum(1), masks[0].sum(1)) for mask in masks)
    assert len({mask.numpy().tobytes() for mask in masks}) == 4
    assert torch.equal(reconstruction.masked_anew(batch, 0, 2).mask, masks[2])
    assert not torch.equal(reconstruction.masked_anew(batch, 32, 0).mask, masks[0])


def test_a_table_has_means_over_clips_and_paired_differences_over_groups():
    better = np.array([0.10, 0.20, 0.30, 0.40])
    errors = reconstruction.Errors(
        {
            "the model": better,
            "visible mean": better + 0.05,
            "interpolation": better - np.array([0.1, -0.1, 0.1, -0.1]),
        },
        {
            **dict.fromkeys(reconstruction.DRAWN, np.ones(4)),
            "within drawn": np.array([0.0, 0.2, 0.4, 0.6]),
            "onsets matched": np.array([1, 1, 0, 0]),
        },
        np.array(["scores", "scores", "grooves", "grooves"]),
        np.array(["scores/a", "scores/b", "grooves/a", "grooves/b"]),
    )
    rows = reconstruction.table(errors)
    assert [(row["clips"], row["number"]) for row in rows] == [
        ("all", "4"),
        ("scores", "2"),
        ("grooves", "2"),
    ]
    assert [row["the model"] for row in rows] == ["0.25000", "0.15000", "0.35000"]
    assert {row["model - visible mean"] for row in rows} == {
        "-0.05000 [-0.05000, -0.05000]"
    }  # paired: groups differ, the difference does not
    value, low, high = (
        float(part.strip("[],")) for part in rows[0]["model - interpolation"].split()
    )
    assert value == pytest.approx(0)
    assert low < -0.04 < 0.04 < high
    assert [row["variance within"] for row in rows] == ["0.300", "0.100", "0.500"]
    assert {row["variance between"] for row in rows} == {"1.000"}
    assert [row["onset F"] for row in rows] == ["0.500", "1.000", "0.000"]


def test_pieces_of_one_group_are_drawn_together():
    values, nothing = (
        np.array([0.0, 0.0, 1.0, 1.0]),
        dict.fromkeys(reconstruction.DRAWN, np.zeros(4)),
    )
    wide, narrow = (
        reconstruction.table(
            reconstruction.Errors(
                {"the model": values, "interpolation": np.zeros(4)},
                nothing,
                np.array(["scores"] * 4),
                np.array(groups),
            )
        )[0]
        for groups in (["a", "a", "b", "b"], ["a", "b", "a", "b"])
    )
    assert wide["model - interpolation"] == "+0.50000 [+0.00000, +1.00000]"
    assert narrow["model - interpolation"] == "+0.50000 [+0.50000, +0.50000]"


def test_a_root_without_the_benchmark_is_refused_in_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["reconstruction.py", str(tmp_path), "--out", str(tmp_path / "out")]
    )
    assert reconstruction.main() == 2
    assert "run 'python benchmarks/open/build.py" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
