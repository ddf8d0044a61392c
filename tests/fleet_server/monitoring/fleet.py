"""A fleet on paper: sends the messages that real devices would, to real handlers on a real database."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.envelope import Envelope, Message, encode
from edge_agent.contract.errors import PackageError
from edge_agent.contract.latency import BUCKETS, bucket_of
from edge_agent.contract.messages import DeviceMetrics, MetricsReport, ModelMetrics, ProfileReport
from edge_agent.contract.profile import Feature, FeatureCounts, Projection, ReferenceProfile, count, quantile_edges
from edge_agent.contract.topics import Stream
from fleet_server.database import Database
from fleet_server.labels.tables import labels
from fleet_server.monitoring.intake import on_metrics, on_profile

START = 1_750_000_000_000
MODEL = "digits"
OLD, NEW = "a" * 64, "b" * 64


def envelope(device: str, stream: Stream, body: Message, sequence: int = 1) -> Envelope:
    return Envelope(
        fleet="f",
        device=device,
        epoch="e",
        stream=stream,
        sequence=sequence,
        previous=sequence - 1,
        sent_at_ms=START,
        body=msgspec.Raw(encode(body)),
    )


def reference_of(mean: float) -> ReferenceProfile:
    """A profile of two features: one normal about ``mean``, and a confidence."""
    rng = np.random.default_rng(11)
    values, confidence = rng.normal(mean, 1.0, 2_000), rng.beta(9, 1, 2_000)
    features = tuple(
        Feature(name=name, tensor=name, side=side, projection=projection, edges=quantile_edges(data))
        for name, side, projection, data in (
            ("x", "input", Projection.ELEMENT, values),
            ("confidence", "output", Projection.CONFIDENCE, confidence),
        )
    )
    counts = {"x": count(features[0], values), "confidence": count(features[1], confidence)}
    return ReferenceProfile(features=features, counts=counts, calibration=((0.0, 0.0), (1.0, 1.0)), accuracy=0.95)


def knowing(profile: ReferenceProfile, **means: float) -> ReferenceProfile:
    """The profile with a reference of 80 rows for each device named, whose ``x`` lies about the mean given."""
    rng = np.random.default_rng(13)
    (x,) = (feature for feature in profile.features if feature.name == "x")
    devices = {device: {"x": count(x, rng.normal(mean, 1.0, 80))} for device, mean in means.items()}
    return msgspec.structs.replace(profile, devices=devices)


# The devices named far-... stand where their data differs from the others'.
PROFILES = {OLD: knowing(reference_of(0.0), far=1.5, farther=-2.0), NEW: reference_of(2.0)}


def reference(package: str) -> ReferenceProfile:
    if package not in PROFILES:
        raise PackageError(f"package {package[:12]} is not registered")
    return PROFILES[package]


class Fleet:
    """Devices that report once a minute."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.now = START
        self.rng = np.random.default_rng(4)
        self.serves: dict[str, str] = {}

    def minute(self, **means: float) -> None:
        """Every device named serves 100 rows whose feature lies about the mean given."""
        before, self.now = self.now, self.now + 60_000
        for device, mean in means.items():
            package = self.serves.setdefault(device, OLD)
            self.metrics(device, package, from_ms=before)
            self.profile(device, package, self.rng.normal(mean, 1.0, 100), from_ms=before)

    def metrics(self, device: str, *packages: str, from_ms: int | None = None, failed: int = 0) -> None:
        counts = [0] * BUCKETS
        counts[bucket_of(400.0)] = 100
        models = tuple(
            ModelMetrics(
                model=MODEL,
                version="1",
                package=package,
                requests=100,
                rows=100,
                refused=1,
                failed=failed,
                latency_counts=tuple(counts),
            )
            for package in packages
        )
        machine = DeviceMetrics(cpu_percent=12.5, temperature_c=float("nan"))
        start = self.now - 60_000 if from_ms is None else from_ms
        report = MetricsReport(from_ms=start, until_ms=self.now, models=models, machine=machine)
        with self.db.write() as connection:
            on_metrics(connection, envelope(device, Stream.METRICS, report), report)

    def profile(self, device: str, package: str, values: NDArray[np.float64], *, from_ms: int) -> None:
        features = PROFILES.get(package, PROFILES[OLD]).features
        counts: dict[str, FeatureCounts] = {
            "x": count(features[0], values),
            "confidence": count(features[1], self.rng.beta(9, 1, len(values))),
        }
        report = ProfileReport(
            model=MODEL, package=package, from_ms=from_ms, until_ms=self.now, rows=len(values), counts=counts
        )
        with self.db.write() as connection:
            on_profile(connection, envelope(device, Stream.PROFILES, report), report)

    def label(self, device: str, *, right: int, wrong: int, package: str | None = None, p: float = 0.5) -> None:
        """Labels of rows answered a second ago."""
        rows = [
            {
                "device": device,
                "request_id": f"{self.now}-{right}-{wrong}-{n}",
                "model": MODEL,
                "package": package or self.serves[device],
                "label": "1",
                "prediction": "1" if n < right else "2",
                "correct": n < right,
                "confidence": 0.9,
                "inclusion_probability": p,
                "at_ms": self.now - 1_000,
                "labelled_at_ms": self.now,
            }
            for n in range(right + wrong)
        ]
        with self.db.write() as connection:
            connection.execute(labels.insert(), rows)
