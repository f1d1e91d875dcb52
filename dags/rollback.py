"""# rollback

Makes an earlier version of the lists the current one again, in Parquet and in Redis, at one instant. It runs when a
person asks; the ledger (`nightcart versions`) keeps who asked and why. `nightcart rollback` does the same.

**rollback** is its one task. The form lists the versions that are kept, the one that served last first; a version
published a moment ago appears when Airflow has read this file again.

What comes next: champions stay as they are, and the next run of `nightly` publishes a version of its own, which then
serves; so does a run that is going on now, when it ends. If the models are to blame, pause `nightly` until they are
mended, or let a night force another model (*Force promote*).
"""

from airflow.sdk import Param, dag, get_current_context, task

from include import alerts, assets, published
from include.retries import RETRIES

VERSIONS, NOW = published.choices()

PARAMS = {
    "version": Param(
        type="string",
        minLength=1,
        title="Version",
        description=f"now serves {NOW}" if NOW else "nothing is published yet",
        **({"enum": list(VERSIONS), "values_display": VERSIONS} if VERSIONS else {}),
    ),
    "reason": Param(type="string", minLength=1, title="Reason", description="why, for the ledger and your colleagues"),
    "shop": Param(
        None,
        type=["null", "string"],
        title="Shop",
        description="name or path of a shop file; empty for that of the night published last",
    ),
}


@dag(
    dag_id="rollback",
    schedule=None,
    max_active_runs=1,
    default_args=RETRIES,
    params=PARAMS,
    doc_md=__doc__,
    tags=["nightcart"],
    on_failure_callback=alerts.failed,
)
def rollback():
    """Wire the one task."""

    @task(outlets=[assets.RECOMMENDATIONS])
    def rollback() -> str:
        from recsys_tasks.lake import Lake
        from recsys_tasks.settings import Settings
        from recsys_tasks.shop import load_shop
        from recsys_tasks.versions import roll_back, serving

        context, lake = get_current_context(), Lake(Settings().lake)
        version, reason, shop = (context["params"][name] for name in ("version", "reason", "shop"))
        description = load_shop(shop or serving(lake), Settings().shops)
        roll_back(lake, description, version, reason, context["dag_run"].triggering_user_name)
        return version

    rollback()


rollback()
