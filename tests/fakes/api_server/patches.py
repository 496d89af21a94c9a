"""JSON patch and merge patch, as far as the API server's behaviour is known to callers."""

from __future__ import annotations

import copy
from typing import Any

Json = dict[str, Any]


class PatchFailed(Exception):
    """An operation that does not apply; the text is the real server's."""


def merge_patch(target: Any, patch: Any) -> Any:
    """Return RFC 7386's result: null removes, lists are replaced."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def json_patch(target: Json, operations: list[Json]) -> Json:
    """Return RFC 6902's result for test, add, remove and replace."""
    result = copy.deepcopy(target)
    for operation in operations:
        kind, path = operation["op"], operation["path"]
        parts = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
        parent: Any = result
        for part in parts[:-1]:
            parent = _child(parent, part, f"{kind} operation does not apply: doc is missing path: {path}")
        if kind == "test":
            found = _child(parent, parts[-1], f"testing value {path} failed: test failed")
            if found != operation["value"]:
                raise PatchFailed(f"testing value {path} failed: test failed")
        elif kind in ("remove", "replace"):
            _child(parent, parts[-1], f"{kind} operation does not apply: doc is missing key: {path}")
            where = int(parts[-1]) if isinstance(parent, list) else parts[-1]
            if kind == "remove":
                del parent[where]
            else:
                parent[where] = operation["value"]
        elif isinstance(parent, list):
            parent.insert(len(parent) if parts[-1] == "-" else int(parts[-1]), operation["value"])
        else:
            parent[parts[-1]] = operation["value"]
    return result


def _child(parent: Any, part: str, complaint: str) -> Any:
    if isinstance(parent, list) and part.isdigit() and int(part) < len(parent):
        return parent[int(part)]
    if isinstance(parent, dict) and part in parent:
        return parent[part]
    raise PatchFailed(complaint)
