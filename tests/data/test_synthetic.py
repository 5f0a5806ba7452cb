"""Invented scans."""

from __future__ import annotations

import numpy as np

from volsam.data.synthetic import render, sample_volume, scene, smooth_noise


def test_the_sample_is_the_same_every_time() -> None:
    one, other = sample_volume(shape=(40, 40, 30)), sample_volume(shape=(40, 40, 30))
    np.testing.assert_array_equal(one[0].data, other[0].data)
    np.testing.assert_array_equal(one[1].data, other[1].data)


def test_the_sample_holds_organs_that_differ_from_their_surroundings() -> None:
    volume, labels = sample_volume(shape=(56, 56, 40))
    assert volume.data.dtype == np.int16
    assert set(np.unique(labels.data)) >= {0, 1, 2, 3}
    liver, body = volume.data[labels.data == 2].mean(), volume.data[labels.data == 1].mean()
    assert liver > body + 40


def test_a_scene_has_objects_and_a_finite_image() -> None:
    image, labels = scene(np.random.default_rng(3), 32)
    assert image.shape == labels.shape == (32, 32, 32)
    assert np.isfinite(image).all()
    assert len(np.unique(labels)) > 1


def test_real_contours_appear_in_a_scene() -> None:
    contours = np.zeros((20, 20, 20), np.uint8)
    contours[5:15, 5:15, 5:15] = 1
    _, labels = scene(np.random.default_rng(0), 32, contours)
    assert (labels == labels.max()).sum() > 50


def test_regions_of_one_map_get_their_own_means() -> None:
    labels = np.zeros((24, 24, 24), np.uint8)
    labels[12:] = 1
    gaps = [render(np.random.default_rng(seed), labels) for seed in range(6)]
    assert max(abs(image[:10].mean() - image[14:].mean()) for image in gaps) > 0.1


def test_smooth_noise_has_unit_spread_and_wanders_slowly() -> None:
    noise = smooth_noise(np.random.default_rng(0), (32, 32, 32), 4)
    assert abs(noise.std() - 1) < 1e-6
    assert np.abs(np.diff(noise, axis=0)).mean() < 0.3
