"""Rotating and revoking: which metadata names another key from now on, and what becomes of what the old one signed."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from securesystemslib.signer import Key
from tuf.api.metadata import Root, TargetFile, Targets

from trainer.publish.change import KeyChange
from trainer.publish.errors import SigningKeyError
from trainer.publish.hash_bins import replace_all, role_names, targets_of, version_of
from trainer.publish.key_uses import KeyUse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replaced:
    """A key that a role names no longer.

    Args:
        uses: The roles that it was in.
        successor: Name of the key in its place; empty where there is none.
        brought: The successor was made elsewhere: its private key is not here.
    """

    uses: tuple[KeyUse, ...]
    successor: str
    brought: bool = False

    @property
    def name(self) -> str:
        """Of the old key."""
        return self.uses[0].name


def replace_keys(
    change: KeyChange,
    uses: Iterable[KeyUse],
    *,
    kind: str,
    successor: bool = True,
    public: Key | None = None,
) -> list[Replaced]:
    """Let all roles that name these keys name new ones, of the same names.

    Args:
        successor: False: nobody takes the place, where the threshold allows that.
        public: The new key, made elsewhere, for the one that is replaced.
    Raises:
        SigningKeyError: Too few keys would be left, or ``public`` is given for several keys.
    """
    by_key: dict[tuple[str, str], list[KeyUse]] = {}
    for use in uses:
        by_key.setdefault((use.name, use.keyid), []).append(use)
    if public is not None and len(by_key) != 1:
        names = ", ".join(name for name, _ in by_key)
        raise SigningKeyError(f"one new key cannot take the place of {names}; say which with --key")
    replaced = []
    for (name, keyid), places in by_key.items():
        for use in places:
            if not successor and use.keys - 1 < max(use.threshold, 1):
                raise SigningKeyError(
                    f"{use.called} needs {use.threshold} signatures and would have {use.keys - 1} keys without {name}; "
                    "let another key take its place"
                )
        new = public or (change.new_key(name, kind).public_key if successor else None)
        if public is not None:
            change.key_from_elsewhere(name, public)
        for use in places:
            _swap(change, use, keyid, new)
        replaced.append(
            Replaced(uses=tuple(places), successor=name if new is not None else "", brought=public is not None)
        )
    _sign_models_anew(change, {use.role for one in replaced for use in one.uses if _is_model(use)})
    if any(use.called == "targets" for one in replaced for use in one.uses):
        change.role(Targets.type)  # the new keys sign it
    return replaced


def keep_releases(
    change: KeyChange, model: str, *, keep: Collection[str] = (), drop: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Choose which versions of a model stay signed; gives those that do, and those that do not.

    Args:
        keep: These alone stay, if any is given; ``drop``: all but these do.
    Raises:
        SigningKeyError: A version was never signed.
    """
    roles = change.roles()
    if model not in roles:
        raise SigningKeyError(f"the model {model!r} is not known here")
    before = targets_of(model, roles)
    known = {version_of(path) for path in before}
    if unknown := (set(keep) | set(drop)) - known:
        raise SigningKeyError(
            f"{model} has no version {', '.join(sorted(unknown))}; signed: {', '.join(sorted(known))}"
        )
    kept = {path: one for path, one in before.items() if _stays(version_of(path), keep, drop)}
    _sign_model_anew(change, model, kept)
    return sorted(map(version_of, kept)), sorted(known - {version_of(path) for path in kept})


def _stays(version: str, keep: Collection[str], drop: Collection[str]) -> bool:
    return version not in drop and (not keep or version in keep)


def _is_model(use: KeyUse) -> bool:
    return use.called == use.role and use.role not in {Root.type, Targets.type, "snapshot", "timestamp"}


def _swap(change: KeyChange, use: KeyUse, keyid: str, new: Key | None) -> None:
    """In the role's own place, so that the order of keys says nothing of who was replaced."""
    if _is_model(use):
        targets = change.role(Targets.type)
        targets.revoke_key(keyid, use.role)
        if new is not None:
            targets.add_key(new, use.role)
        return
    root = change.root(use.repository)
    root.revoke_key(keyid, use.role)
    if new is not None:
        root.add_key(new, use.role)


def sign_model_anew(change: KeyChange, model: str) -> None:
    """Let a model's role and bins be signed by the keys that the targets role names now."""
    _sign_model_anew(change, model, targets_of(model, change.roles()))


def _sign_models_anew(change: KeyChange, models: Iterable[str]) -> None:
    for model in sorted(models):
        sign_model_anew(change, model)


def _sign_model_anew(change: KeyChange, model: str, targets: dict[str, TargetFile]) -> None:
    """The model's role and all its bins, which take the keys that the targets role names now."""
    roles = change.roles()
    drafts = roles | {name: change.role(name) for name in role_names(model, roles)}
    for name in replace_all(model, drafts, dict(targets)):
        if name not in roles:
            drafts[name].version = 1
            change.role(name, drafts[name])
