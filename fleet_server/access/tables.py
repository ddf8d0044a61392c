"""Tables of access. Only SHA-256 digests of secrets are kept: they have 256 random bits, so no slow hash is needed."""

from __future__ import annotations

import sqlalchemy as sa

from fleet_server.database import metadata

tokens = sa.Table(
    "access_tokens",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    # "api": of a program or command line; "session": a browser's cookie; "login": a one-time link to such a cookie.
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False, unique=True),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger),
    sa.Column("ended_at_ms", sa.BigInteger),  # revoked, or, of a login, used
)

claims = sa.Table(
    "access_claims",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", sa.Text, nullable=False, unique=True),
    sa.Column("device", sa.Text),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    sa.Column("used_at_ms", sa.BigInteger),
    sa.Column("used_by", sa.Text),
)

device_secrets = sa.Table(
    "device_secrets",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("sha256", sa.Text, nullable=False, unique=True),
    sa.Column("enrolled_at_ms", sa.BigInteger, nullable=False),
    sa.Column("revoked_at_ms", sa.BigInteger),
)
