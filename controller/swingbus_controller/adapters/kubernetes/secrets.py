"""Secrets as bags of text files: read whole, written as they were seen or not at all.

Decides how files lie in a Secret. Refuses to know what they are. Invariants: no content is in any message or repr; a Secret that changed
since it was read is not written.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from swingbus.faults import InvalidInput
from swingbus_controller.adapters.kubernetes.answers import KubeApi, decode
from swingbus_controller.adapters.kubernetes.resources import MERGE_PATCH, SECRETS, ApiCall

# The API server's own bound of what one Secret may hold.
BYTES_AT_MOST = 1024 * 1024
LABELS = {"app.kubernetes.io/name": "swingbus", "app.kubernetes.io/component": "certificates"}


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""


class _Secret(msgspec.Struct, frozen=True):
    metadata: _Meta
    data: dict[str, str] = {}


_DECODER = msgspec.json.Decoder(_Secret)


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """What a Secret holds, by file name; `revision` is empty where there is none."""

    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    revision: str = ""

    @property
    def is_there(self) -> bool:
        return bool(self.revision)


async def read_secret(api: KubeApi, namespace: str, name: str) -> SecretFiles:
    """Return a Secret's files, none where it is not there. Raises InvalidInput where one of them is no text."""
    call = ApiCall(verb="get", resource=SECRETS, namespace=namespace, name=name)
    answer = await api.call(call)
    if answer.code == 404:
        return SecretFiles()
    secret = decode(answer, _DECODER, call)
    files: dict[str, str] = {}
    for key, encoded in secret.data.items():
        try:
            files[key] = base64.b64decode(encoded, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidInput(
                f"the key {key} of Secret {name} in namespace {namespace} is no text: restore the Secret from a backup",
                reason="BAD_SECRET",
                metadata={"secret": name, "key": key},
            ) from None
    return SecretFiles(files, secret.metadata.resource_version)


def check_size(namespace: str, name: str, files: Mapping[str, str]) -> None:
    """Raise InvalidInput where files are more than a Secret can hold."""
    size = sum(len(text.encode()) for text in files.values())
    if size > BYTES_AT_MOST:
        raise InvalidInput(
            f"Secret {name} in namespace {namespace} would hold {size} bytes in {len(files)} files, and {BYTES_AT_MOST} is what the "
            "API server takes",
            reason="SECRET_TOO_LARGE",
            metadata={"secret": name, "bytes": str(size)},
        )


async def write_secret(
    api: KubeApi, namespace: str, name: str, files: Mapping[str, str], *, seen: SecretFiles
) -> SecretFiles:
    """Make a Secret hold these files and no others; return it as it is now, `seen` itself where nothing had to change.

    Args:
        seen: what `read_secret` returned.

    Raises StaleRevision or AlreadyExists where somebody wrote it since; InvalidInput where the files are more than a Secret can hold.
    """
    if seen.is_there and dict(seen.files) == dict(files):
        return seen
    check_size(namespace, name, files)
    data: dict[str, str | None] = {key: base64.b64encode(text.encode()).decode() for key, text in files.items()}
    if not seen.is_there:
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace, "labels": LABELS},
            "type": "Opaque",
            "data": data,
        }
        call = ApiCall(verb="create", resource=SECRETS, namespace=namespace, body=body)
    else:
        data |= dict.fromkeys(seen.files.keys() - files.keys())
        body = {"metadata": {"resourceVersion": seen.revision}, "data": data}
        call = ApiCall(
            verb="patch", resource=SECRETS, namespace=namespace, name=name, body=body, content_type=MERGE_PATCH
        )
    written = decode(await api.call(call), _DECODER, call)
    return SecretFiles(dict(files), written.metadata.resource_version)
