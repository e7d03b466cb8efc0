"""What a deployment is told from outside its policy: flags first, then RINGFENCE_* environment variables."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Frozen once read.

    Attributes:
        policy: the policy file; None for `policy.yaml` in the working directory, or else the one that ships.
        upstream: overrides the policy's `upstream.use`.
        audit_path: overrides the policy's `audit.path`.
        api_key: callers must send it (`Authorization: Bearer …`; as the password, on the pages); without one the
            server listens on this machine only.
    """

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_", frozen=True, extra="ignore")

    policy: Path | None = None
    upstream: str | None = None
    audit_path: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    api_key: Annotated[SecretStr, MinLen(1)] | None = None  # an empty variable is a mistake, not a key

    @property
    def is_local(self) -> bool:
        """Whether the server listens on this machine only."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def policy_path(given: Path | None) -> Path | None:
    """Return the policy file to use: the one given, else `policy.yaml` here; None for the one that ships."""
    here = Path("policy.yaml")
    return given or (here if here.is_file() else None)
