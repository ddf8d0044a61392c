"""What a camera makes of a digit: faded, out of focus, tilted, noisy; how much of each is the camera's own.

Only numpy and scipy are needed, so that a camera's process stays small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FULL = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How a camera sees.

    Args:
        contrast: What is left of the contrast, 1.0 is all; what is lost turns into a grey veil over the picture.
        blur: Standard deviation of the blur in pixels.
        rotation_deg: Tilt of the camera, degrees, counter-clockwise.
        noise: Standard deviation of the sensor's noise in grey levels of 0..16.
    """

    contrast: float = 1.0
    blur: float = 0.0
    rotation_deg: float = 0.0
    noise: float = 0.0

    def show(self, images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """The images as this camera takes them; the same generator state gives the same pictures.

        Args:
            images: float32[N, 1, 8, 8] in 0..16.
        Returns:
            float32[N, 1, 8, 8] in 0..16.
        """
        seen = images.astype(np.float64)
        if self.rotation_deg:
            seen = ndimage.rotate(seen, self.rotation_deg, axes=(-1, -2), reshape=False, order=1, mode="grid-constant")
        if self.blur:
            seen = ndimage.gaussian_filter(seen, sigma=(0, 0, self.blur, self.blur), mode="constant")
        seen = seen * self.contrast + (1.0 - self.contrast) * FULL / 2
        if self.noise:
            seen = seen + rng.normal(0.0, self.noise, size=seen.shape)
        return np.clip(seen, 0.0, FULL).astype(np.float32)


CLEAR = World()
# Three cameras after the world has changed, each in its own way and degree.
DRIFTED: Mapping[str, World] = {
    "cam-a": World(contrast=0.37, blur=0.4, rotation_deg=17.0, noise=0.35),
    "cam-b": World(contrast=0.36, blur=0.35, rotation_deg=20.0, noise=0.3),
    "cam-c": World(contrast=0.35, blur=0.3, rotation_deg=23.0, noise=0.3),
}
