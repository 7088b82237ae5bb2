"""How many generated cases the tests on servers play: few, each of which takes a second, or many with `--long`.

A test is decorated with `settings.get_profile(ON_SERVERS)`, and is marked `has_long_form`.
"""

from hypothesis import HealthCheck, settings

ON_SERVERS = "on servers"
FEW = 12
MANY = 200


def register(*, is_long: bool) -> None:
    """Say what `ON_SERVERS` stands for, before test modules are imported."""
    settings.register_profile(
        ON_SERVERS,
        max_examples=MANY if is_long else FEW,
        deadline=None,
        # The databases are the same for all cases of a test, which it has to expect.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
