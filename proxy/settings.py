"""What a deployment is told from outside its policy: flags first, then RINGFENCE_* environment variables."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen
from pydantic import Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(ValueError):
    """A flag or an environment variable is not as it should be; the message says which, in one line."""


class Settings(BaseSettings):
    """Frozen once read.

    Attributes:
        policy: the policy file; None for `policy.yaml` in the working directory, or else the one that ships.
        upstream: overrides the policy's `upstream.use`.
        audit_path: overrides the policy's `audit.path`.
        api_key: the operator's: callers must send it (`Authorization: Bearer …`; as the password, on the pages).
        keys: file of other keys, which may call models only. Without either, the server listens on this machine only.
        watch: whether the policy is read again when one of its files changes.
    """

    model_config = SettingsConfigDict(env_prefix="RINGFENCE_", frozen=True, extra="ignore")

    policy: Path | None = None
    upstream: str | None = None
    audit_path: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    api_key: Annotated[SecretStr, MinLen(1)] | None = None  # an empty variable is a mistake, not a key
    keys: Path | None = None
    watch: bool = True

    @property
    def needs_key(self) -> bool:
        """Whether callers have to show one."""
        return self.api_key is not None or self.keys is not None

    @property
    def is_local(self) -> bool:
        """Whether the server listens on this machine only."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def read_settings(**flags: object) -> Settings:
    """Read the flags that were given, None for those that were not, and the environment for the rest.

    Raises:
        SettingsError: a value is not one.
    """
    try:
        return Settings.model_validate({name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(map(_told, error.errors(include_url=False)))) from None


def _told(error: ErrorDetails) -> str:
    name = error["loc"][0]
    value = "" if name == "api_key" else f", got {error['input']!r}"  # a key is not shown
    return f"{name}: {error['msg']}{value}"


def policy_path(given: Path | None) -> Path | None:
    """Return the policy file to use: the one given, else `policy.yaml` here; None for the one that ships."""
    here = Path("policy.yaml")
    return given or (here if here.is_file() else None)
