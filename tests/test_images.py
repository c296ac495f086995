"""PNG files that other programs read."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edgegen.errors import BuildError, RuntimeFault
from edgegen.images import png_bytes, save_samples
from edgegen.quality import distance
from edgegen.spec import SampleSpec


def test_a_grey_grid_is_read_back():
    samples = np.linspace(-1, 1, 5 * 6 * 4, dtype=np.float32).reshape(5, 1, 6, 4)
    picture = np.asarray(Image.open(io.BytesIO(png_bytes(samples, -1, 1, columns=3))))
    assert picture.shape == (12, 12)
    levels = np.rint((samples.astype(np.float64) + 1) * 127.5).astype(np.uint8)
    assert (picture[:6, 4:8] == levels[1, 0]).all()
    assert (picture[6:, 8:] == 0).all()  # the empty place


def test_colour_clipping_and_enlarging():
    samples = np.array([[-9.0, 0.0, 9.0]], np.float32).reshape(1, 3, 1, 1)
    picture = np.asarray(Image.open(io.BytesIO(png_bytes(samples, 0, 1, scale=3))))
    assert picture.shape == (3, 3, 3)
    assert picture[0, 0].tolist() == [0, 0, 255]


def test_suffixes_and_kinds_are_checked(tmp_path):
    array = SampleSpec((2,))
    with pytest.raises(RuntimeFault, match="write them as .npy"):
        save_samples(tmp_path / "a.png", np.zeros((1, 2)), array)
    with pytest.raises(RuntimeFault, match="give a .png or .npy"):
        save_samples(tmp_path / "a", np.zeros((1, 2)), array)
    with pytest.raises(BuildError, match="cannot write"):
        save_samples(tmp_path / "none" / "a.npy", np.zeros((1, 2)), array)


def test_distance_is_peak_signal_to_noise():
    a = np.zeros((2, 3))
    d = distance(a, a + 0.1, 2.0)
    assert d.rmse == pytest.approx(0.1) and d.max_abs == pytest.approx(0.1)
    assert d.psnr_db == pytest.approx(20 * np.log10(20))
    assert distance(a, a, 2.0).psnr_db == np.inf
