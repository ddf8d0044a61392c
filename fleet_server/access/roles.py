"""Roles: each may do what the ones before it may."""

from __future__ import annotations

import enum


class Role(enum.StrEnum):
    """What a token allows."""

    VIEWER = "viewer"  # read everything
    TRAINER = "trainer"  # claim training runs, publish signed packages
    ADMIN = "admin"  # enrol and revoke devices, create tokens, roll out

    def allows(self, needed: Role) -> bool:
        """Whether this role may do what ``needed`` may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)
