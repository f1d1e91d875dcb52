"""The pages "Recsys" inside Airflow: report, leaderboard, inspector, versions. They live in ``include/pages``.

Every process of Airflow imports this file, so the app is imported when the first request comes.
"""

from typing import Any

from airflow.plugins_manager import AirflowPlugin


class LazyApp:
    """An ASGI app that is imported when the first request comes, in a thread, so that others are served meanwhile."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on."""
        if self.app is None:
            import asyncio
            from importlib import import_module

            self.app = (await asyncio.to_thread(import_module, "include.pages.app")).app
        await self.app(scope, receive, send)


class NightcartPlugin(AirflowPlugin):
    """Airflow finds this by its base class."""

    name = "nightcart"
    fastapi_apps = [{"app": LazyApp(), "url_prefix": "/recsys", "name": "Recsys"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Recsys",
            "href": "recsys/",
            "destination": "nav",
            "url_route": "recsys",
            "nav_top_level": True,
        },
        {
            "name": "Recsys",
            "href": "recsys/runs/{DAG_ID}/{RUN_ID}",
            "destination": "dag_run",
            "url_route": "recsys_report",
        },
    ]
