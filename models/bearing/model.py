"""Envelope analysis as layers: a small network (about 19,000 weights) that knows how bearings speak.

A filter bank finds the band in which the structure rings; the envelope of that band shows the rhythm of the strikes;
measured in turns of the shaft instead of seconds, the rhythm is the same at every speed (order analysis). A damaged
outer ring, inner ring or ball each has an order of its own. All of it is differentiable, works for windows of any
length, and is inside the exported graph: a device sends what its sensor measured.

The anomaly score tells what no class describes: an autoencoder learns what healthy windows look like, and what it
cannot rebuild is unusual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[dict[str, Tensor], Tensor, Tensor]
RATE_HZ = 12_000.0
# One bank of filters, moved by so many samples: envelopes change slowly, 1,500 values a second hold them.
_TAPS, _STRIDE = 32, 8
# Values of an envelope that are looked at together: a sixth of a second, in which two orders can be told apart.
_SEGMENT = 250
_EPS = 1e-6


class FilterBank(nn.Module):
    """Band-pass filters and the envelopes behind them, begun evenly spread over the frequencies and then learnt.

    Args:
        bands: How many.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        centres = torch.linspace(800.0, 5_200.0, bands)[:, None]
        time = (torch.arange(_TAPS) - (_TAPS - 1) / 2)[None, :] / RATE_HZ
        hann = torch.hann_window(_TAPS, periodic=False)[None, :]
        phase = 2 * math.pi * centres * time
        # Cosine and sine: the root of the sum of their squares is the envelope, whatever the phase.
        kernels = torch.cat([torch.cos(phase) * hann, torch.sin(phase) * hann]) * (2 / _TAPS)
        self.kernels = nn.Parameter(kernels[:, None, :])

    def forward(self, vibration: Tensor) -> Tensor:
        """Envelopes float32[N, bands, T'] of vibration float32[N, T]; T' is about T / 8."""
        found = functional.conv1d(vibration[:, None, :], self.kernels, stride=_STRIDE)
        cosine, sine = found.chunk(2, dim=1)
        return torch.sqrt(cosine.square() + sine.square() + _EPS)


class OrderSpectrum(nn.Module):
    """How strongly the envelopes beat at each multiple of the shaft's speed.

    Args:
        highest: Order up to which is looked; ``step``: between two of them.
    """

    orders: Tensor

    def __init__(self, highest: float, step: float) -> None:
        super().__init__()
        self.register_buffer("orders", torch.arange(2 * step, highest + step / 2, step))

    def forward(self, envelope: Tensor, speed: Tensor) -> Tensor:
        """Amplitudes float32[N, bands, orders], relative to the envelope's mean, of float32[N, bands, T'].

        The power is averaged over segments of one length that overlap by half (Welch 1967): a longer window makes it
        steadier, and changes nothing else. What is left over at the window's end is not looked at.
        """
        beat = envelope / envelope.mean(dim=-1, keepdim=True) - 1
        segments = torch.cat([_cut(beat), _cut(beat[:, :, _SEGMENT // 2 :])], dim=2)
        at = torch.arange(_SEGMENT, dtype=beat.dtype, device=beat.device)
        hann = 0.5 - 0.5 * torch.cos(2 * math.pi * (at + 0.5) / _SEGMENT)
        cycles = speed[:, None, None] * self.orders * (at * (_STRIDE / RATE_HZ))[:, None]
        # Whole cycles are dropped first: the cosine of a large number has few digits left.
        phase = 2 * math.pi * (cycles - torch.floor(cycles))
        rows = (segments * hann).flatten(1, 2)  # of one speed each, so that its waves are made once for all bands
        power = (rows @ torch.cos(phase)).square() + (rows @ torch.sin(phase)).square()
        power = power.reshape(*segments.shape[:3], -1).mean(dim=2)
        return torch.sqrt(power + _EPS) * (4.0 / _SEGMENT)


def _cut(beat: Tensor) -> Tensor:
    """Segments float32[N, bands, S, length] of float32[N, bands, T'], one after the other."""
    whole = beat.shape[-1] // _SEGMENT
    return beat[:, :, : whole * _SEGMENT].reshape(beat.shape[0], beat.shape[1], whole, _SEGMENT)


class Model(pl.LightningModule):
    """The recipe's network and how it learns.

    Args:
        options: The ``[training.options]`` table of ``model.toml``.
        classes: Number of classes; the first is the healthy one.
        learning_rate, epochs: Of this run; the first model and a fine-tune differ.
    """

    usual: Tensor
    spread: Tensor

    def __init__(self, *, options: Mapping[str, Any], classes: int, learning_rate: float, epochs: int) -> None:
        super().__init__()
        self.learning_rate, self.epochs = learning_rate, epochs
        self.weight_decay = float(options["weight_decay"])
        self.shortest = int(options["shortest_crop"])
        bands = int(options["bands"])
        self.bank = FilterBank(bands)
        self.spectrum = OrderSpectrum(float(options["highest_order"]), float(options["order_step"]))
        rhythm = 2 * len(self.spectrum.orders)
        self.scale = nn.BatchNorm1d(rhythm, affine=False)
        self.classifier = nn.Sequential(nn.Linear(rhythm, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, classes))
        seen = rhythm + bands
        self.rebuild_scale = nn.BatchNorm1d(seen, affine=False)
        self.rebuild = nn.Sequential(nn.Linear(seen, 24), nn.ReLU(), nn.Linear(24, seen))
        # Of the logarithm of the error on healthy windows: its mean and standard deviation.
        self.register_buffer("usual", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, vibration: Tensor, speed: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities float32[N, 4] and anomaly scores float32[N] of acceleration float32[N, T] in m/s2.

        Args:
            speed: Turns of the shaft per second, float32[N].
        """
        logits, error = self.judged(vibration, speed)
        return torch.softmax(logits, dim=-1), (error - self.usual) / self.spread

    def judged(self, vibration: Tensor, speed: Tensor) -> tuple[Tensor, Tensor]:
        """Unnormalised log-probabilities float32[N, classes], and the log of the rebuilding error, float32[N]."""
        envelope = self.bank(vibration - vibration.mean(dim=-1, keepdim=True))
        beats = torch.log(self.spectrum(envelope, speed) + 0.02)
        rhythm = torch.cat([beats.amax(dim=1), beats.mean(dim=1)], dim=-1)
        loudness = torch.log(envelope.square().mean(dim=-1) + _EPS)
        # What the autoencoder sees is not for it to change: the features serve the classes.
        seen = self.rebuild_scale(torch.cat([rhythm, loudness], dim=-1).detach())
        error = (self.rebuild(seen) - seen).square().mean(dim=-1)
        return self.classifier(self.scale(rhythm)), torch.log(error + _EPS)

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """Weighted cross-entropy of windows cut to a random length, and the error on the healthy ones."""
        inputs, target, weight = batch
        logits, error = self.judged(self._cropped(inputs["vibration"]), inputs["speed"])
        losses = functional.cross_entropy(logits, target, reduction="none", label_smoothing=0.02)
        loss = (losses * weight).sum() / weight.sum()
        healthy = target == 0
        if int(healthy.sum()) > 1:
            self._remember(error[healthy].detach())
            loss = loss + torch.exp(error[healthy]).mean()
        return loss

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Logs ``val_loss``, which early stopping watches."""
        inputs, target, weight = batch
        logits, _ = self.judged(inputs["vibration"], inputs["speed"])
        losses = functional.cross_entropy(logits, target, reduction="none")
        self.log("val_loss", (losses * weight).sum() / weight.sum(), batch_size=len(target))

    def configure_optimizers(self) -> Any:
        """AdamW whose learning rate falls along a cosine over the run."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=self.epochs, eta_min=self.learning_rate / 20
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _cropped(self, vibration: Tensor) -> Tensor:
        """The batch's windows cut to one random length at one random place: devices send windows of many lengths."""
        whole = vibration.shape[-1]
        length = int(torch.randint(min(self.shortest, whole), whole + 1, ()))
        start = int(torch.randint(0, whole - length + 1, ()))
        return vibration[:, start : start + length]

    def _remember(self, error: Tensor) -> None:
        """Follow mean and deviation of the log error on healthy windows, as batch normalisation follows its own."""
        self.usual.lerp_(error.mean(), 0.1)
        self.spread.lerp_(error.std().clamp_min(0.05), 0.1)
