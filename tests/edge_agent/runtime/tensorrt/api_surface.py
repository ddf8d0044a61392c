"""Which of TensorRT's names our source uses, and what the bindings of each version have.

``api/*.json.gz`` are the public names and signatures of NVIDIA's Python bindings, read off the wheels of each version:
per class its members (a signature as pybind11 writes it, or ``property``), per enumeration its values.
"""

from __future__ import annotations

import ast
import dataclasses
import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "api"
# No building in these two: only what serves engines is looked for.
RUNTIMES_ALONE = ("lean", "dispatch")
_SIGNATURE = re.compile(r"\w+\((?P<arguments>.*)\)(?: -> .*)?$", re.DOTALL)


def recordings() -> dict[str, dict[str, Any]]:
    """The recorded bindings, by version."""
    return {
        file.name.removesuffix(".json.gz"): json.loads(gzip.decompress(file.read_bytes()))
        for file in sorted(FOLDER.glob("*.json.gz"))
    }


@dataclasses.dataclass(frozen=True)
class Use:
    """One place where our source uses a name of TensorRT.

    Args:
        name: ``Builder``, ``BuilderFlag.REFIT``, ``IBuilderConfig.set_flag``.
        positional, keywords: Arguments of a call; ``positional`` is None where it is not called.
        is_assigned: Whether a value is given to it.
    """

    where: str
    name: str
    positional: int | None = None
    keywords: tuple[str, ...] = ()
    is_assigned: bool = False


def uses(file: Path, receivers: Mapping[str, str]) -> list[Use]:
    """All uses in a source file.

    Args:
        receivers: Variables that hold TensorRT's objects, and of which class they are.
    """
    tree = ast.parse(file.read_text())
    aliases = _aliases(tree)
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found: list[Use] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found += _overrides(node, aliases, file)
        if not isinstance(node, (ast.Attribute, ast.Name)):
            continue
        name = _name(node, aliases, receivers)
        if not name or (id(node) in inner and "." not in name):  # `trt.BuilderFlag` of `trt.BuilderFlag.REFIT`
            continue
        call = called.get(id(node))
        found.append(
            Use(
                where=f"{file.name}:{node.lineno}",
                name=name,
                # Its self is given by hand where a constructor is called through its class.
                positional=None if call is None else len(call.args) - name.endswith(".__init__"),
                keywords=() if call is None else tuple(each.arg or "" for each in call.keywords),
                is_assigned=isinstance(node.ctx, ast.Store),
            )
        )
    return found


def complaints(use: Use, version: str, recording: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a use in one version: nothing, as a rule."""
    owner, _, member = use.name.partition(".")
    entry = recording.get(owner)
    if entry is None:
        if version not in RUNTIMES_ALONE:
            yield f"{use.where}: {use.name}: {version} has no {owner}"
        return
    members = {**entry.get("class", {}), **dict.fromkeys(entry.get("enum", {}), "value")}
    if member and member not in members:
        yield f"{use.where}: {use.name}: {version} has no such member"
        return
    signature = members.get(member or "__init__", "value")
    if use.is_assigned and signature != "property":
        yield f"{use.where}: {use.name}: {version} lets nobody set it"
    if use.positional is not None and not fits(signature, use.positional, use.keywords):
        yield f"{use.where}: {use.name}: {version} has {signature}"


def fits(signature: str, positional: int, keywords: Sequence[str]) -> bool:
    """Whether a call has the arguments of a recorded signature; ``*args`` says nothing and fits all."""
    found = _SIGNATURE.match(signature)
    if found is None:
        return signature == "value"
    names: list[str] = []
    required: set[str] = set()
    for argument in _split(found["arguments"])[1:]:  # the first is self
        name, has_default = argument.partition(":")[0].strip(), "=" in argument
        names.append(name)
        required |= set() if has_default else {name}
    if not found["arguments"] or "*args" in found["arguments"]:
        return True
    given = {*names[:positional], *keywords}
    return positional <= len(names) and set(keywords) <= set(names[positional:]) and required <= given


def _split(arguments: str) -> list[str]:
    """At commas outside brackets: ``strategy: X = <Strategy.STATIC: 0>, flags: int``."""
    parts, depth = [""], 0
    for sign in arguments:
        depth += (sign in "[(<") - (sign in "])>")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Variables that stand for a part of the module: ``kinds, types = trt.LayerType, trt.DataType``."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True))
        for left, right in pairs:
            name = _name(right, found, {}) if isinstance(right, ast.Attribute) else None
            if isinstance(left, ast.Name) and name:
                found[left.id] = name
    return found


def _name(node: ast.expr, aliases: Mapping[str, str], receivers: Mapping[str, str]) -> str | None:
    """The name within TensorRT that an expression stands for; None where it is none, or the module itself."""
    if not isinstance(node, ast.Attribute):
        return None
    inner = node.value
    if _is_module(inner):
        return node.attr
    if isinstance(inner, ast.Name) and inner.id in aliases:
        return f"{aliases[inner.id]}.{node.attr}"
    if isinstance(inner, ast.Attribute) and (outer := _name(inner, aliases, receivers)):
        return f"{outer}.{node.attr}" if "." not in outer else None
    held = inner.id if isinstance(inner, ast.Name) else inner.attr if isinstance(inner, ast.Attribute) else ""
    return f"{receivers[held]}.{node.attr}" if held in receivers else None


def _is_module(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "trt") or (isinstance(node, ast.Attribute) and node.attr == "trt")


def _overrides(node: ast.ClassDef, aliases: Mapping[str, str], file: Path) -> Iterator[Use]:
    """Methods of classes of ours that TensorRT calls: they must have its names, and take its arguments."""
    for base in node.bases:
        name = _name(base, aliases, {})
        for method in node.body if name else ():
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("__"):
                yield Use(f"{file.name}:{method.lineno}", f"{name}.{method.name}", len(method.args.args) - 1)
