"""What configs require of their settings. None means that a setting is left open."""

from pipeline.errors import ConfigError


def require_positive(config: object, *names: str) -> None:
    """Raise ConfigError for the first setting that is not above zero."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{name} must be positive, got {value}")


def require_not_negative(config: object, *names: str) -> None:
    """Raise ConfigError for the first setting below zero."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 0:
            raise ConfigError(f"{name} must not be negative, got {value}")


def require_fraction(config: object, *names: str) -> None:
    """Raise ConfigError for the first setting that is not between zero and one."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"{name} must be above 0 and below 1, got {value}")


def require_penalty(config: object) -> None:
    """Raise ConfigError for an l1, or a target of it, that cannot be."""
    require_not_negative(config, "l1")
    require_fraction(config, "target")
    target, l1 = (getattr(config, name) for name in ("target", "l1"))
    if target is not None and l1 == 0:
        raise ConfigError("l1 is 0, and a target multiplies it until it is right: type an --l1 > 0")
