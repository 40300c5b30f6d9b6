"""The router's configuration: one YAML file, environment overrides, flags."""

from router.config.load import ConfigError, load_config
from router.config.model import Config

__all__ = ["Config", "ConfigError", "load_config"]
