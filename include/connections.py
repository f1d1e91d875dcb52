"""Airflow's connections, for the product, which does not know Airflow and reads the environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def exported(shop: Any) -> Iterator[None]:
    """Keep the connection that a shop's source names in ``AIRFLOW_CONN_<ID>``, from wherever Airflow has it.

    A variable that is set already goes first, as in Airflow's own order. Of a connection that Airflow does not have
    the product says what to do.
    """
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    wanted = getattr(shop.source, "connection", None)
    variable = f"AIRFLOW_CONN_{wanted.upper()}" if wanted else None
    found = {}
    if variable and variable not in os.environ:
        with suppress(AirflowNotFoundException):
            found[variable] = Connection.get(wanted).get_uri()
    os.environ.update(found)
    try:
        yield
    finally:
        for name in found:
            del os.environ[name]
