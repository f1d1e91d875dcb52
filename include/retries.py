"""What every task does when it fails: wait for what is gone for a while, and tell a person of all else."""

from datetime import timedelta

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

from include import alerts

RETRIES = {
    "retries": 2,
    "retry_delay": timedelta(minutes=2),
    "retry_policy": ExceptionRetryPolicy(
        rules=[
            RetryRule("recsys_tasks.errors.TemporarilyUnavailable", RetryAction.RETRY),
            RetryRule(
                "recsys_tasks.errors.NightcartError",
                RetryAction.FAIL,
                reason="the same inputs give the same error; its message says what to mend",
            ),
        ]
    ),
    "on_failure_callback": alerts.failed,
}
