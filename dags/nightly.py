"""# nightly

Turns a shop's event log and catalogue into a checked, versioned table of recommendations for every customer.

1. **ingest** reads the shop's sources up to `as_of`, judges every row and quarantines the bad ones
2. **embed** turns the text of new or changed items into vectors
3. **train** trains one model a task on the fit window; a model that fails is left out, the night goes on;
   **rank** then trains the ranker over what the others say, **decide** the agent that may re-order its lists
4. **evaluate** scores all of them on the test window, beside the baselines
5. **promote** chooses the champion of each placement and refits it through `as_of`; before it, **approve** asks a
   person where the run requires that and another champion would take over
6. **publish_index** builds the index of item vectors and measures its recall
7. **recommend** makes the lists, one shard of the customers a task
8. **check** proves the lists from outside; a single bad row stops the night here
9. **publish** makes the new version current in Parquet and Redis at one instant
10. **report** says how the night went, and how last night's lists did

**tonight** comes before them all: it settles the parameters, and **recipes** and **shards** say what the mapped tasks
are mapped over. Without `as_of`, a scheduled run looks back from its logical date, a manual one from now. A backfilled
run always looks back from its logical date and publishes nothing, whatever the form says. When anything fails, the
lists published last stay current.

While **approve** waits (*Required Actions*), they stay current too, and nothing else of the night goes on. After an
approval the new champion takes over; after a reject, or without an answer in time, the champion in office stays, and
tonight's lists are made with it and published.
"""

from datetime import timedelta

from airflow.sdk import CronTriggerTimetable, Param, TriggerRule, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from include import alerts, approval, assets, connections, links
from include.retries import RETRIES

PARAMS = {
    "shop": Param(
        "complete_journey", type="string", minLength=1, title="Shop", description="name or path of a shop file"
    ),
    "as_of": Param(
        None,
        type=["null", "string"],
        title="As of",
        description="look back from this instant, e.g. 2017-12-04T00:00:00Z; empty for the run's own date, "
        "which a backfill takes in any case",
    ),
    "models": Param(
        [],
        type="array",
        items={"type": "string"},
        examples=[
            "popular",
            "repeat",
            "item_knn",
            "ease",
            "two_tower",
            "vaecf",
            "content",
            "sasrec",
            "ranker",
            "transformer_dqn",
        ],
        title="Models",
        description="to train beside the baselines and the champions; empty for the shop file's",
        section="Training",
    ),
    "k": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        maximum=1000,
        title="K",
        description="length of every list",
        section="Lists",
    ),
    "publish": Param(
        True,
        type="boolean",
        title="Publish",
        description="switch off for a dry run, which leaves champions, lists and report as they are; "
        "a backfill never publishes",
        section="Lists",
    ),
    "force_promote": Param(
        None,
        type=["null", "string"],
        title="Force promote",
        description="name of a model that becomes champion whatever the leaderboard says",
        section="Champions",
    ),
    "hold": Param(
        False,
        type="boolean",
        title="Hold",
        description="the champions in office stay, whatever the leaderboard says",
        section="Champions",
    ),
    "require_approval": Param(
        False,
        type="boolean",
        title="Require approval",
        description="a person must approve before another champion takes over; no answer is a no",
        section="Champions",
    ),
    "approval_hours": Param(
        4,
        type="number",
        exclusiveMinimum=0,
        maximum=8,
        title="Hours to approve in",
        description="after them the champion in office stays",
        section="Champions",
    ),
}


@dag(
    dag_id="nightly",
    # a night missed by more than ten minutes waits for the next: unpausing must not start a run nobody asked for
    schedule=CronTriggerTimetable("0 2 * * *", timezone="UTC", run_immediately=timedelta(minutes=10)),
    catchup=False,
    max_active_runs=1,
    default_args=RETRIES,
    params=PARAMS,
    doc_md=__doc__,
    tags=["nightcart"],
    on_failure_callback=alerts.failed,
    deadline=alerts.deadline(),
    dagrun_timeout=timedelta(hours=12),
)
def nightly():
    """Wire the ten steps; each task's body is one call."""

    @task
    def tonight() -> dict:
        from recsys_tasks.night import plan

        context = get_current_context()
        run, params = context["dag_run"], context["params"]
        backfilled = run.run_type == "backfill"
        night = plan(
            shop=params["shop"],
            as_of=None if backfilled else params["as_of"],
            run_key=run.logical_date or run.run_after,
            models=params["models"],
            k=params["k"],
            publish=params["publish"] and not backfilled,
            force_promote=params["force_promote"],
            asked_by=run.triggering_user_name,
            hold=params["hold"],
        )
        return night.to_dict()

    @task
    def recipes(night: dict) -> list:
        from recsys_tasks import night as nights

        return nights.Night(**night).by_stage[0]

    @task
    def shards(night: dict) -> list:
        return night["shards"]

    @task(outlets=[assets.SNAPSHOT])
    def ingest(night: dict) -> str:
        from recsys_tasks import ingest
        from recsys_tasks import night as nights

        with connections.exported(nights.Night(**night).shop):
            return ingest.ingest(nights.Night(**night))

    @task(outlets=[assets.VECTORS])
    def embed(night: dict, snapshot: str) -> str:
        from recsys_tasks import embed
        from recsys_tasks import night as nights

        return embed.embed(nights.Night(**night), snapshot)

    @links.tracked(outlets=[assets.MODELS], map_index_template="{{ recipe }}", max_active_tis_per_dagrun=1)
    def train(night: dict, recipe: str, snapshot: str, vectors: str) -> str:
        from recsys_tasks import night as nights
        from recsys_tasks import train

        get_current_context()["recipe"] = recipe
        return train.train(nights.Night(**night), recipe, snapshot, vectors)

    @links.tracked(trigger_rule=TriggerRule.ALL_DONE)
    def rank(night: dict, snapshot: str, vectors: str) -> list:
        from recsys_tasks import night as nights
        from recsys_tasks import train

        if not (snapshot and vectors):  # it runs when all before it are done, so that a failed source only drops out
            raise AirflowFailException("ingest or embed failed, so there is nothing to rank; see their logs")
        return train.rank(nights.Night(**night), snapshot, vectors)

    @links.tracked(trigger_rule=TriggerRule.ALL_DONE)
    def decide(night: dict, snapshot: str, vectors: str) -> list:
        from recsys_tasks import night as nights
        from recsys_tasks import train

        if not (snapshot and vectors):
            raise AirflowFailException("ingest or embed failed, so there is nothing to decide; see their logs")
        return train.decide(nights.Night(**night), snapshot, vectors)

    @links.tracked(outlets=[assets.LEADERBOARD], trigger_rule=TriggerRule.ALL_DONE)
    def evaluate(night: dict, snapshot: str, vectors: str) -> str:
        from recsys_tasks import evaluate
        from recsys_tasks import night as nights

        if not (snapshot and vectors):  # it runs when all before it are done, so that a failed model does not stop it
            raise AirflowFailException("ingest or embed failed, so there is nothing to evaluate; see their logs")
        return evaluate.evaluate(nights.Night(**night), snapshot, vectors)

    @links.tracked(outlets=[assets.CHAMPIONS])
    def promote(night: dict, evaluation: str, snapshot: str, vectors: str, answer: dict | None) -> str:
        from recsys_tasks import night as nights
        from recsys_tasks import promote

        return promote.promote(nights.Night(**night), evaluation, snapshot, vectors, answer)

    @task(outlets=[assets.INDEX])
    def publish_index(night: dict, champions: str, snapshot: str, vectors: str) -> str:
        from recsys_tasks import index
        from recsys_tasks import night as nights

        return index.publish_index(nights.Night(**night), champions, snapshot, vectors)

    @task(map_index_template="shard {{ shard }}", max_active_tis_per_dagrun=2)
    def recommend(night: dict, shard: int, champions: str, index: str, snapshot: str, vectors: str) -> str:
        from recsys_tasks import night as nights
        from recsys_tasks import recommend

        get_current_context()["shard"] = shard
        return recommend.recommend(nights.Night(**night), shard, champions, index, snapshot, vectors)

    @task
    def check(night: dict, lists: list, snapshot: str) -> dict:
        from recsys_tasks import check
        from recsys_tasks import night as nights

        return check.check(nights.Night(**night), lists[:], snapshot)

    @task(outlets=[assets.RECOMMENDATIONS])
    def publish(night: dict, checked: dict, lists: list, champions: str, evaluation: str, snapshot: str) -> str | None:
        from recsys_tasks import night as nights
        from recsys_tasks import publish

        return publish.publish(nights.Night(**night), lists[:], champions, evaluation, snapshot)

    @task(outlets=[assets.REPORT])
    def report(
        night: dict, snapshot: str, evaluation: str, champions: str, index: str, checked: dict, version: str | None
    ) -> str:
        from recsys_tasks import night as nights
        from recsys_tasks import report

        written = report.report(nights.Night(**night), snapshot, evaluation, champions, index, checked, version)
        alerts.drifted(nights.Night(**night).lake.path(written) / "report.json")
        return written

    night = tonight()
    snapshot = ingest(night)
    vectors = embed(night, snapshot)
    models = train.partial(night=night, snapshot=snapshot, vectors=vectors).expand(recipe=recipes(night))
    evaluation = evaluate(night, snapshot, vectors)
    models >> rank(night, snapshot, vectors) >> decide(night, snapshot, vectors) >> evaluation
    answer = approval.ChampionApproval(task_id="approve", night=night, evaluation=evaluation).output
    champions = promote(night, evaluation, snapshot, vectors, answer)
    index = publish_index(night, champions, snapshot, vectors)
    lists = recommend.partial(night=night, champions=champions, index=index, snapshot=snapshot, vectors=vectors).expand(
        shard=shards(night)
    )
    checked = check(night, lists, snapshot)
    version = publish(night, checked, lists, champions, evaluation, snapshot)
    report(night, snapshot, evaluation, champions, index, checked, version)


nightly()
