"""A person's word before another champion takes office: what the task ``approve`` of the nightly DAG does."""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator

from include import alerts


class ChampionApproval(ApprovalOperator):
    """Asks a person whether the champions that tonight's numbers call for may take over, where the run wants that.

    It waits without a worker, for ``approval_hours`` of the run's params at most; no answer is a no. Where approval is
    not required, or no champion in office would go, it asks nobody. Returns ``{"approved": bool, "by": name}``, the
    name None where nobody answered, or None where nobody was asked.

    Differs from Airflow's operator in what a reject does: nothing is skipped, since the lists of the champion in office
    are still to be made.
    """

    template_fields = (*ApprovalOperator.template_fields, "night", "evaluation")

    def __init__(self, *, night: Any, evaluation: Any, **kwargs: Any) -> None:
        super().__init__(subject="Another champion wants to take over", defaults=self.REJECT, **kwargs)
        self.night = night
        self.evaluation = evaluation

    def execute(self, context: Any) -> Any:
        """Wait for an answer where there is something to ask."""
        from recsys_tasks import night as nights
        from recsys_tasks import promote

        params = context["params"]
        if not params["require_approval"]:
            return None
        self.body = promote.proposal(nights.Night(**self.night), self.evaluation)
        if not self.body:
            return None
        hours = params["approval_hours"]
        self.body += f"\n\nUntil then, and without an answer in {hours:g} hours, the champion in office stays."
        self.response_timeout = timedelta(hours=hours)
        alerts.tell(
            f"Nightcart: another champion waits for approval in run {context['dag_run'].run_id}",
            "See Required Actions in Airflow. The lists published last stay current until then.",
        )
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        """Return what was answered, in short."""
        answer = super().execute_complete(context, event)
        by = answer["responded_by_user"]
        return {"approved": answer["chosen_options"] == [self.APPROVE], "by": by and by["name"]}

    def skip(self, ti: Any, tasks: Any) -> None:
        """Skip nothing: ``promote`` reads the answer."""
