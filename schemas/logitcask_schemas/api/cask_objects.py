"""What the service says of its casks, so that they can be fetched over HTTP."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class CaskSummary(BaseModel):
    """A cask of the service."""

    model_config = ConfigDict(extra="allow")

    object: Literal["cask"] = "cask"
    name: str
    shards: int
    documents: int
    tokens: int
    bytes: Annotated[int, Field(description="Of shards and hints.")]
    identity: Annotated[str, Field(description="SHA-256 (hex) over teacher and capture spec.")]


class CaskList(BaseModel):
    """The casks below the cask root; those that are damaged are left out."""

    model_config = ConfigDict(extra="allow")

    object: Literal["list"] = "list"
    data: list[CaskSummary]
    has_more: bool = False


class CaskFile(BaseModel):
    """A published file of a cask."""

    model_config = ConfigDict(extra="allow")

    path: Annotated[str, Field(description="Below the cask; as it stands in `/v1/casks/{name}/files/{path}`.")]
    bytes: int
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="Also the file's ETag.")]


class CaskFiles(BaseModel):
    """What was published of a cask at one moment. Shards never change; later ones are added."""

    model_config = ConfigDict(extra="allow")

    object: Literal["cask.manifest"] = "cask.manifest"
    name: str
    manifest: Annotated[dict[str, Any], Field(description="cask.json.")]
    shards: Annotated[list[dict[str, Any]], Field(description="The entry of each shard, ascending by name.")]
    files: Annotated[list[CaskFile], Field(description="cask.json, shards and hints.")]
