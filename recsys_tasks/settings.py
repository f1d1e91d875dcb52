"""Where things live on this machine, from environment variables that start with ``NIGHTCART_``."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """With no variable set, everything lives under ``var/`` of the working folder."""

    model_config = SettingsConfigDict(env_prefix="NIGHTCART_", extra="ignore")

    home: Path = Field(Path("var"), description="folder of the lake, the MLflow store and the embedded Valkey")
    redis_url: str | None = Field(None, description="any Redis or Valkey URL; without it an embedded Valkey is used")
    mlflow_tracking_uri: str | None = Field(None, description="an MLflow server; without it SQLite in the home")
    mlflow_ui: str | None = Field(
        None, pattern="^https?://", description="MLflow's pages as browsers reach them; without it the server's address"
    )
    memory_gb: float = Field(
        2.0, gt=0, description="memory of the engine while it works on the log; the rest goes to disk"
    )
    spark_master: str = Field("local[*]", description="where engine: spark works")
    shops: Path = Field(Path(__file__).parents[1] / "include" / "shops", description="folder of the named shop files")

    @property
    def lake(self) -> Path:
        """Root of the lake."""
        return self.home.absolute() / "lake"
