"""Point spread functions: kernels and blurring against astropy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from astropy.convolution import Gaussian2DKernel, Moffat2DKernel, convolve
from helpers.images import make_smooth_image
from scipy import ndimage

from galaxyhpc.config.conditions import get_parameter, get_severities
from galaxyhpc.evaluation import psf
from galaxyhpc.evaluation.corruptions import Survey, corrupt

ROWS = torch.tensor([3])


@pytest.mark.parametrize("fwhm", [0.4, 1.0])  # pixels
def test_kernels_are_astropys_integrated_over_pixels(fwhm: float) -> None:
    gaussian, moffat = psf.gaussian_kernel(fwhm), psf.moffat_kernel(fwhm)
    size = {"x_size": len(gaussian), "mode": "oversample", "factor": 101}
    expected = Gaussian2DKernel(fwhm / np.sqrt(8 * np.log(2)), **size)
    expected.normalize()
    np.testing.assert_allclose(gaussian, expected.array, atol=1e-4)
    expected = Moffat2DKernel(psf.fwhm_to_moffat_gamma(fwhm), psf.MOFFAT_BETA, **size)
    expected.normalize()
    np.testing.assert_allclose(moffat, expected.array, atol=1e-4)


@pytest.mark.parametrize("condition", ["psf_gaussian", "psf_moffat"])
@pytest.mark.parametrize("scale", [0.524, 1.03])
def test_blurring_is_the_convolution_of_scipy_and_astropy_and_keeps_the_flux(condition: str, scale: float) -> None:
    image, fwhm = make_smooth_image(48), get_parameter(condition, 4.0) / scale
    kernel = psf.gaussian_kernel(fwhm) if condition == "psf_gaussian" else psf.moffat_kernel(fwhm)
    result = corrupt(image, ROWS, condition, 4.0, Survey(37.0, scale))[0].numpy()
    for band in range(3):
        expected = ndimage.convolve(image[0, band].double().numpy(), kernel, mode="reflect")
        np.testing.assert_allclose(result[band], expected, atol=1e-6)
    reach = len(kernel) // 2
    inside = (slice(reach, -reach),) * 2
    astropys = convolve(image[0, 0].numpy(), kernel)
    np.testing.assert_allclose(result[0][inside], astropys[inside], atol=1e-6)
    assert result.sum() == pytest.approx(image.sum().item(), rel=1e-5)


def test_a_blurred_point_has_the_width_asked_for_in_arcsec() -> None:
    point = torch.zeros(1, 3, 65, 65)
    point[..., 32, 32] = 1.0
    for severity in get_severities("psf_gaussian"):
        result = corrupt(point, ROWS, "psf_gaussian", severity, Survey(37.0, 0.262))[0, 0].double().numpy()
        variance = (result.sum(0) * (np.arange(65) - 32) ** 2).sum() - 1 / 12  # a pixel's own
        fwhm = 0.262 * np.sqrt(8 * np.log(2) * variance)
        assert fwhm == pytest.approx(get_parameter("psf_gaussian", severity), rel=1e-3)
