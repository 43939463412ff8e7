"""Faces put where a network expects them, by five landmarks."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

# Eyes, nose and corners of the mouth in a picture of 112 x 112, as the published training sets of
# faces were aligned (Deng et al., "ArcFace", CVPR 2019).
_WANTED = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
_SIDE = 112


def aligned(
    picture: Image.Image,
    landmarks: Tensor,  # (5, 2): x and y
    size: tuple[int, int],  # width and height
) -> Image.Image:
    """The picture rotated, scaled and moved so that the landmarks lie where they should.

    The best of such maps in least squares: as complex numbers ``found = a * wanted + b`` is linear
    regression. It goes from the new picture to the old one, as resampling needs it.
    """
    scale = np.array(size) / _SIDE
    # A pixel's centre is half a pixel from its corner; landmarks count from centres.
    wanted = (_WANTED + 0.5) * scale @ [1, 1j]
    found = (landmarks.double().numpy() + 0.5) @ [1, 1j]
    centred = wanted - wanted.mean()
    a = np.vdot(centred, found) / np.vdot(centred, centred)
    b = found.mean() - a * wanted.mean()
    coefficients = (a.real, -a.imag, b.real, a.imag, a.real, b.imag)
    return picture.transform(
        size, Image.Transform.AFFINE, tuple(map(float, coefficients)), Image.Resampling.BILINEAR
    )
