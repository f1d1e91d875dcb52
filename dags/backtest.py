"""# backtest

Trains and scores any set of models on rolling dates, each as the night of that date would have. It runs when a person
asks, publishes nothing and moves no champion.

1. **dates** settles the parameters
2. **score** makes a date's night up to evaluate: it sees what was known on that date, and is scored on the test window
   before it, beside the baselines. A date a task, one after the other; dates done before are reused
3. **summarise** writes tables and a plot to `backtests/<id>/` in the lake and to MLflow (experiment
   `nightcart-<shop>-backtest`): ndcg@10, recall@10, coverage and the ratio to the best baseline, with intervals

Models are the shop file's, or those of the form; challengers and champions are left out, as a search may have found
them on later data.
"""

from datetime import timedelta

from airflow.sdk import Param, dag, get_current_context, task

from include import alerts, connections
from include.retries import RETRIES

PARAMS = {
    "shop": Param(
        "complete_journey", type="string", minLength=1, title="Shop", description="name or path of a shop file"
    ),
    "from": Param(type="string", title="First date", description="e.g. 2017-09-11, for midnight in UTC", minLength=10),
    "to": Param(
        type="string", title="Last date", description="not after it; the log must reach this far", minLength=10
    ),
    "every": Param(7, type="integer", minimum=1, title="Days from date to date"),
    "models": Param(
        [],
        type="array",
        items={"type": "string"},
        examples=["two_tower", "vaecf", "content", "sasrec", "ranker", "transformer_dqn"],
        title="Models",
        description='beside the baselines; empty for the shop file\'s. By API also recipes: ease {"max_items": 4000}',
    ),
}


@dag(
    dag_id="backtest",
    schedule=None,
    max_active_runs=1,
    default_args=RETRIES,
    params=PARAMS,
    doc_md=__doc__,
    tags=["nightcart"],
    on_failure_callback=alerts.failed,
    dagrun_timeout=timedelta(days=3),
)
def backtest():
    """Wire the backtest; each task's body is one call."""

    @task
    def dates() -> list:
        from recsys_tasks import backtest

        params = get_current_context()["params"]
        nights = backtest.nights(
            params["shop"], params["from"], params["to"], params["every"], params["models"] or None
        )
        return [night.to_dict() for night in nights]

    @task(map_index_template="{{ date }}", max_active_tis_per_dagrun=1)
    def score(night: dict) -> str:
        from recsys_tasks import backtest
        from recsys_tasks import night as nights

        get_current_context()["date"] = nights.Night(**night).name
        with connections.exported(nights.Night(**night).shop):
            return backtest.score(nights.Night(**night))

    @task
    def summarise(nights_: list, evaluations: list) -> str:
        from recsys_tasks import backtest
        from recsys_tasks import night as nights

        return backtest.summarise([nights.Night(**night) for night in nights_], evaluations[:])

    nights_ = dates()
    summarise(nights_, score.expand(night=nights_))


backtest()
