"""# tune

Searches better hyper-parameters, for so many minutes a model. It runs when a person asks.

1. **ingest** and **embed** make the night's data, or find it made
2. **tune** searches one model a task: on the fit window, judged on validation, beginning with the best of last time.
   The test window is not read

Where a trial beats the shop's own recipe by more than one standard error, it enters as challenger: from then on every
night trains it beside the shop's recipe, and **promote** of the nightly run decides. Otherwise nothing enters. The log
of each task and MLflow (experiment `nightcart-<shop>-tuning`, a run a trial) tell gain and cost.

**tonight** settles the parameters, and **models** says what is searched.
"""

from datetime import timedelta

from airflow.sdk import Param, dag, get_current_context, task

from include import alerts, connections
from include.retries import RETRIES

PARAMS = {
    "shop": Param(
        "complete_journey", type="string", minLength=1, title="Shop", description="name or path of a shop file"
    ),
    "models": Param(
        [],
        type="array",
        items={"type": "string"},
        examples=["ease", "item_knn", "two_tower", "vaecf", "content", "sasrec"],
        title="Models",
        description="empty for all of the shop file's that can be searched",
    ),
    "minutes": Param(
        10, type="number", exclusiveMinimum=0, title="Minutes a model", description="the shop's own recipe included"
    ),
    "as_of": Param(
        None,
        type=["null", "string"],
        title="As of",
        description="look back from this instant, e.g. 2017-12-04T00:00:00Z; empty for the run's own date",
    ),
}


@dag(
    dag_id="tune",
    schedule=None,
    max_active_runs=1,
    default_args=RETRIES,
    params=PARAMS,
    doc_md=__doc__,
    tags=["nightcart"],
    on_failure_callback=alerts.failed,
    dagrun_timeout=timedelta(hours=24),
)
def tune():
    """Wire the search; each task's body is one call."""

    @task
    def tonight() -> dict:
        from recsys_tasks.night import plan

        context = get_current_context()
        run, params = context["dag_run"], context["params"]
        night = plan(params["shop"], params["as_of"], run.logical_date or run.run_after, publish=False)
        return night.to_dict()

    @task
    def models(night: dict) -> list:
        from recsys_tasks import night as nights
        from recsys_tasks import tune

        return tune.tunable(nights.Night(**night), get_current_context()["params"]["models"])

    @task
    def ingest(night: dict) -> str:
        from recsys_tasks import ingest
        from recsys_tasks import night as nights

        with connections.exported(nights.Night(**night).shop):
            return ingest.ingest(nights.Night(**night))

    @task
    def embed(night: dict, snapshot: str) -> str:
        from recsys_tasks import embed
        from recsys_tasks import night as nights

        return embed.embed(nights.Night(**night), snapshot)

    @task(map_index_template="{{ model }}", max_active_tis_per_dagrun=1)
    def tune(night: dict, model: str, snapshot: str, vectors: str) -> str:
        from recsys_tasks import night as nights
        from recsys_tasks import tune

        context = get_current_context()
        context["model"] = model
        return tune.tune(nights.Night(**night), model, snapshot, vectors, context["params"]["minutes"])

    night = tonight()
    snapshot = ingest(night)
    vectors = embed(night, snapshot)
    tune.partial(night=night, snapshot=snapshot, vectors=vectors).expand(model=models(night))


tune()
