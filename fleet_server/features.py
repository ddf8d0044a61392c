"""Builds the features and ties them to each other; no socket is opened and no thread begun here."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Sequence

from edge_agent.contract.errors import CallerError, PackageError
from edge_agent.contract.manifest import REFERENCE_FILE, Manifest
from edge_agent.contract.profile import ReferenceProfile, decode_profile
from edge_agent.contract.runs import RunKind, RunState
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.topics import Stream
from fleet_server.access.service import AccessService
from fleet_server.config import RolloutSettings, ServerConfig
from fleet_server.console.run_pages import RunPages
from fleet_server.console.service import ConsoleService
from fleet_server.data_folder import DataFolder
from fleet_server.database import Database
from fleet_server.devices.service import DeviceService, Publish
from fleet_server.errors import NotFound
from fleet_server.ingest.receiver import Receiver
from fleet_server.ingest.service import IngestService
from fleet_server.labels.handler import on_labels
from fleet_server.labels.service import LabelService, labels_of
from fleet_server.models.service import ModelService
from fleet_server.monitoring.service import MonitoringService
from fleet_server.predictions.places import Places
from fleet_server.predictions.service import PredictionService
from fleet_server.rollouts.rollout import State
from fleet_server.rollouts.service import RolloutService
from fleet_server.samples.handler import on_samples
from fleet_server.samples.lake_writer import LakeWriter
from fleet_server.samples.service import SampleService
from fleet_server.schedules.schedule_service import ScheduleService
from fleet_server.schedules.service import RunService
from fleet_server.updates import approving
from fleet_server.updates.approvals import Approvals
from fleet_server.updates.deltas import Deltas
from fleet_server.updates.director import Director, load_signer
from fleet_server.updates.image_repository import ImageRepository
from fleet_server.updates.image_verification import shown_targets

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The server's features, built and tied together."""

    access: AccessService
    devices: DeviceService
    models: ModelService
    rollouts: RolloutService
    director: Director
    images: ImageRepository
    approvals: Approvals
    deltas: Deltas
    schedules: ScheduleService
    runs: RunService
    monitoring: MonitoringService
    lake: LakeWriter
    samples: SampleService
    labels: LabelService
    predictions: PredictionService
    ingest: IngestService
    receiver: Receiver
    console: ConsoleService
    run_pages: RunPages


def build_features(config: ServerConfig, folder: DataFolder, db: Database, publish: Publish) -> Features:
    """All features on one database.

    Raises:
        ConfigurationError: A key or root of trust cannot be used.
    """
    devices = DeviceService(db, publish, config.fleet, report_interval_s=config.report_interval_s)
    models = ModelService(
        db, unreleased=lambda model, version: approving.unreleased(approvals.list(), model, version)
    )  # fmt: skip
    director = _director(folder)
    later: list[Callable[[Manifest, str], None]] = []  # what follows a release needs what is built further down
    images = _image_repository(folder, models, later)
    approvals = Approvals(folder.repository, images)
    access = AccessService(
        db, fleet=config.fleet, roots=lambda: (images.root, director.root), on_enrolled=devices.enrolled
    )
    rollouts = RolloutService(db, devices, models, director)
    lake_uri = config.lake or str(folder.lake.resolve())
    samples = SampleService(db, lake_uri)
    runs = RunService(
        db,
        lake=lake_uri,
        lake_versions=lambda: _versions(samples),
        champion=models.champion,
        on_released=lambda model, digest, reason: _released(
            approvals, rollouts, config.rollouts, (model, digest, reason)
        ),
        known_models=lambda: _known(db, models),
        settings=config.runs,
    )
    later.append(lambda manifest, digest: roll_out_approved(approvals, rollouts, config.rollouts, manifest, digest))
    deltas = Deltas(
        folder.repository / "deltas",
        images.blobs,
        lambda: shown_targets(images.metadata),
        limit_bytes=config.updates.deltas_mib << 20,
    )
    later.append(lambda manifest, _: _make_deltas(deltas, models, manifest))
    schedules = ScheduleService(db, count_labels=labels_of, settings=config.runs)
    monitoring = _monitoring(
        config,
        db,
        devices=devices,
        models=models,
        images=images,
        hold=lambda model: _hold(rollouts, runs, approvals, model),
        runs=runs,
    )
    ingest = _ingest(db, devices=devices, monitoring=monitoring, access=access)
    return Features(
        access=access,
        devices=devices,
        models=models,
        rollouts=rollouts,
        director=director,
        images=images,
        approvals=approvals,
        deltas=deltas,
        schedules=schedules,
        run_pages=RunPages(runs, schedules, fleet=config.fleet),
        runs=runs,
        monitoring=monitoring,
        lake=LakeWriter(db, lake_uri),
        samples=samples,
        labels=LabelService(db),
        predictions=PredictionService(
            db,
            folder.predictions,
            places=Places((lake_uri, *config.predictions.folders), base=folder.root.resolve()),
        ),
        ingest=ingest,
        receiver=Receiver(
            config.fleet,
            ingest,
            publish=publish,
            on_reported=devices.on_reported,
            on_status=devices.on_status,
            accepts=access.is_active,
        ),
        console=ConsoleService(
            db,
            fleet=config.fleet,
            devices=devices,
            models=models,
            rollouts=rollouts,
            runs=runs,
            approvals=approvals.list,
            drift_rule=config.monitoring.drift,
        ),
    )


def _director(folder: DataFolder) -> Director:
    return Director(
        folder.repository,
        root=folder.director_root.read_bytes(),
        signer=load_signer(folder.director_key, os.environ.get("SHOAL_KEYS_PASSPHRASE")),
    )


def _monitoring(
    config: ServerConfig,
    db: Database,
    *,
    devices: DeviceService,
    models: ModelService,
    images: ImageRepository,
    hold: Callable[[str], str | None],
    runs: RunService,
) -> MonitoringService:
    return MonitoringService(
        db,
        lambda digest: _reference(models, images, digest),
        set_sampling=devices.desire_sampling,
        request_run=runs.request,
        base_sampling=lambda model: _sampling(models, model),
        hold=hold,
        parent=lambda digest: _manifest(models, digest).parent,
        settings=config.monitoring,
    )


def _ingest(
    db: Database, *, devices: DeviceService, monitoring: MonitoringService, access: AccessService
) -> IngestService:
    return IngestService(
        db,
        {
            Stream.EVENTS: devices.on_event,
            Stream.LABELS: on_labels,
            Stream.METRICS: monitoring.on_metrics,
            Stream.PROFILES: monitoring.on_profile,
            Stream.SAMPLES: on_samples,
        },
        accepts=access.is_active,
    )


def _image_repository(
    folder: DataFolder, models: ModelService, later: Sequence[Callable[[Manifest, str], None]]
) -> ImageRepository:
    def on_release(manifest: Manifest, digest: str, evaluation: dict[str, object]) -> None:
        blob = images.blobs.released(digest)
        models.register(manifest, digest, evaluation, manifest_bytes=blob.read_bytes() if blob else None)
        for follow in later:
            follow(manifest, digest)

    images = ImageRepository(folder.repository, root=folder.image_root.read_bytes(), on_release=on_release)
    return images


def _make_deltas(deltas: Deltas, models: ModelService, manifest: Manifest) -> None:
    """Most devices have the parent of a release: what makes the one of the other is there before they ask."""
    if manifest.parent is not None:
        with contextlib.suppress(NotFound):  # made elsewhere
            deltas.make_ahead(models.manifest(manifest.parent), manifest)


def _released(
    approvals: Approvals, rollouts: RolloutService, settings: RolloutSettings, told: tuple[str, str, str]
) -> None:
    """A run has released a package; where that waits for approval, its rollout does too."""
    model, digest, reason = told
    if not approvals.roll_out_later(digest, reason):
        _roll_out(rollouts, settings, model, digest, reason)


def roll_out_approved(
    approvals: Approvals, rollouts: RolloutService, settings: RolloutSettings, manifest: Manifest, digest: str
) -> None:
    """A release has become visible: its rollout begins, where one was to and nothing is in its way."""
    reason = approvals.released(manifest.name, manifest.version)
    if reason is None:
        return
    try:
        _roll_out(rollouts, settings, manifest.name, digest, reason)
    except CallerError as error:  # a person's rollout goes first: the release is out all the same, and is told of
        _log.warning("%s %s is not rolled out: %s", manifest.name, manifest.version, error)


def _roll_out(rollouts: RolloutService, settings: RolloutSettings, model: str, digest: str, reason: str) -> None:
    """A training run has released a package. It may be told twice: the second time there is a rollout already."""
    if not settings.automatic or any(one.package == digest for one in rollouts.list(model)):
        return
    rollouts.create(
        model,
        digest,
        settings.waves,
        reason[:500],
        gate=settings.gate,
        revert=settings.revert,
        supersede=True,
        automatic=True,
    )


def _known(db: Database, models: ModelService) -> Collection[str]:
    with db.read() as connection:
        return models.names(connection)


def _versions(samples: SampleService) -> tuple[int | None, int | None]:
    found = samples.versions()
    return found["samples"], found["labels"]


def _reference(models: ModelService, images: ImageRepository, digest: str) -> ReferenceProfile:
    entry = _manifest(models, digest).files.get(REFERENCE_FILE)
    blob = images.blobs.released(entry.sha256) if entry is not None else None
    if blob is None:
        raise PackageError(f"package {digest[:12]} has no {REFERENCE_FILE}")
    return decode_profile(blob.read_bytes())


def _manifest(models: ModelService, digest: str) -> Manifest:
    try:
        return models.manifest(digest)
    except NotFound as error:
        raise PackageError(str(error)) from error


def _sampling(models: ModelService, model: str) -> SamplingPolicy:
    champion = models.champion(model)
    return models.manifest(champion[0]).sampling if champion is not None else SamplingPolicy()


def _hold(rollouts: RolloutService, runs: RunService, approvals: Approvals, model: str) -> str | None:
    """While a run is under way it reads no new labels, and while a rollout is they still speak of the old package."""
    for run in runs.list(model, limit=5, kind=RunKind.TRAIN):
        if run["state"] in {RunState.QUEUED.value, RunState.RUNNING.value}:
            return f"run {run['id']} is {run['state']}"
    if approvals.waits(model):
        return f"a version of {model} waits for approval: shoal models approvals"
    active = [one for one in rollouts.list(model, limit=5) if one.state in {State.RUNNING, State.PAUSED}]
    return f"rollout {active[0].id} of {active[0].version} is {active[0].state.value}" if active else None
