"""What can be said of an S3 bucket in federation.yaml."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hansa.core.units import Bytes, Seconds


def _prefix(text: str) -> str:
    parts = text.strip("/").split("/")
    if not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=-]*", part) for part in parts):
        raise ValueError(f"{text!r} is no prefix; it may look like 'hansa/smol'")
    return "/".join(parts)


class S3Options(BaseModel):
    """Options of the mover over an S3 bucket.

    Credentials are no options: they are taken from the server's environment
    (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``) or from
    the machine's own role, and never leave the server.

    Attributes:
        bucket: Name of the bucket.
        prefix: Folder in it; everything is made below ``<prefix>/<run>/``, and all of
            that is removed at the end of the run. No two servers may share it.
        endpoint: URL of another service than Amazon's, as
            ``https://minio.example.org``.
        region: Region of the bucket; None: from the environment.
        expires: How long a signed URL is good; facilities get fresh ones in time.
        part_bytes: Size of one object; larger files are cut.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
    prefix: Annotated[str, AfterValidator(_prefix)] = "hansa"
    endpoint: Annotated[str, Field(pattern=r"^https?://[^/@\s]+/?$")] | None = None
    region: str | None = None
    expires: Annotated[Seconds, Field(ge=3, le=604_800)] = 3600.0
    part_bytes: Annotated[Bytes, Field(ge=1 << 20, le=1 << 30)] = 64 << 20
