"""Rules that settings must keep, whichever file or command line they come from."""


class ConfigError(ValueError):
    """A setting that does not exist, has the wrong type, or breaks a rule."""


def at_least(key: str, value: float | None, low: float) -> None:
    """Raise `ConfigError` if the value of a setting is given and less than `low`."""
    if value is not None and value < low:
        raise ConfigError(f"setting {key!r} must be at least {low}, but got {value}")


def fraction(key: str, value: float | None) -> None:
    """Raise `ConfigError` if the value of a setting is given and outside [0, 1]."""
    if value is not None and not 0 <= value <= 1:
        raise ConfigError(f"setting {key!r} must be in [0, 1], but got {value}")
