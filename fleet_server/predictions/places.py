"""Where tables of answers may lie that the server reads: not everything it can read is for whoever asks to see."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from edge_agent.contract.errors import CallerError

_PROTOCOL = "://"
_FILE = "file"


class PlaceRefused(CallerError):
    """A table of answers lies where none is served from; the text says what to set."""


class Places:
    """The folders and URIs that the administrator has allowed, and all below them.

    Args:
        allowed: Local folders, or URIs (``s3://bucket/answers``).
        base: What relative paths are read from, those of tables and of allowed folders alike.
    """

    def __init__(self, allowed: Sequence[str], *, base: Path) -> None:
        self._base = base
        places = [self._split(place) for place in allowed]
        self._folders = [Path(os.path.realpath(text)) for text, local in places if local]
        self._uris = [text.rstrip("/") + "/" for text, local in places if not local]

    def checked(self, path: str) -> str:
        """The table's place, absolute and without symbolic links.

        Args:
            path: Local, relative to the base where it does not begin with ``/``; or a URI.
        Raises:
            PlaceRefused: It lies in none of the allowed places.
        """
        text, local = self._split(path)
        if local:
            found = Path(os.path.realpath(text))
            if any(found.is_relative_to(folder) for folder in self._folders):
                return str(found)
        elif self._is_plain(text) and any(f"{text.rstrip('/')}/".startswith(uri) for uri in self._uris):
            return text.rstrip("/")
        raise PlaceRefused(
            f"{path}: tables of answers are served from the sample lake, and from what the server's settings name: "
            "add the folder or URI above it to `folders` under [predictions]"
        )

    def _split(self, path: str) -> tuple[str, bool]:
        """The path or URI, and whether it is a local one."""
        if "\0" in path:
            raise PlaceRefused("a path holds no zero byte")
        if _PROTOCOL not in path:
            return str(self._base / path), True
        parts = urllib.parse.urlsplit(path)
        if parts.scheme.lower() == _FILE:
            return urllib.parse.unquote(parts.path), True
        return path, False

    @staticmethod
    def _is_plain(uri: str) -> bool:
        """Whether it is a bucket and a path alone: options would say which server is asked, dots leave the folder."""
        rest = uri.partition(_PROTOCOL)[2]
        return not set(rest) & set("?#%@\\") and not {".", ".."} & set(rest.split("/"))
