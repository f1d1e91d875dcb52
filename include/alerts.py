"""Who hears of a failure, lateness and drift: the log always; a webhook and a mailbox where the environment names them.

``NIGHTCART_ALERT_WEBHOOK``   a URL that takes ``{"text": ...}`` by POST, as Slack, Teams and Mattermost do
``NIGHTCART_ALERT_EMAIL``     an address; sent through Airflow's ``[smtp]`` connection (``smtp_default``)
``NIGHTCART_DEADLINE``        hours after which a night that has not ended is late; without it, or with 0, none is
"""

import json
import logging
import os
from datetime import timedelta
from html import escape
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

log = logging.getLogger(__name__)


def failed(context: dict[str, Any]) -> None:
    """Tell people that a task (after its last try) or a whole run failed. Never raises: the failure is the news."""
    task, run = context.get("task_instance"), context["dag_run"]
    index = getattr(task, "map_index", -1)
    what = f"{run.dag_id}.{task.task_id}{f'[{index}]' if index >= 0 else ''}" if task else run.dag_id
    error = context.get("exception") or context.get("reason") or "see the task's log"
    tell(
        f"Nightcart: {what} failed in run {run.run_id}: {error}",
        "The lists published last stay current until a night succeeds.",
    )


def drifted(report: Path) -> None:
    """Tell people what the drift watch found out of the ordinary, of a night that was published."""
    night = json.loads(report.read_text())
    found = [alarm["text"] for part in night["drift"].values() for alarm in part["alarms"]]
    if found and night["version"]:
        tell(f"Nightcart: {night['shop']}, night of {night['as_of']}: out of the ordinary", ". ".join(found))


def deadline() -> Any:
    """Return the deadline of a night, None where there is to be none.

    Raises
    ------
    ValueError
        ``NIGHTCART_DEADLINE`` is no number of hours; Airflow shows it as the DAG's import error.

    """
    text = os.environ.get("NIGHTCART_DEADLINE") or "0"
    try:
        hours = float(text)
        interval = timedelta(hours=hours)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"NIGHTCART_DEADLINE: expected hours, such as 6 or 1.5, or 0 for none, got {text!r}"
        ) from error
    if hours <= 0:
        return None
    from airflow.sdk import DeadlineAlert, DeadlineReference, SyncCallback

    callback = SyncCallback("include.alerts.late", {"hours": hours})
    return DeadlineAlert(reference=DeadlineReference.DAGRUN_QUEUED_AT, interval=interval, callback=callback)


def late(hours: float, context: dict[str, Any]) -> None:
    """Tell people that a run has not ended so many hours after it was queued. Airflow gives the run as a dict."""
    run = context["dag_run"]
    if run["state"] == "failed":
        return  # they were told when it failed
    still = "ended only now" if run["state"] == "success" else "has not ended"
    tell(
        f"Nightcart: {run['dag_id']} is late: run {run['dag_run_id']} {still}, {hours:g} hours after it was queued",
        "The lists published last stay current until it does.",
    )


def tell(headline: str, text: str = "") -> None:
    """Send a message to every configured place; a place that cannot be reached is logged."""
    log.error("%s %s", headline, text)
    if webhook := os.environ.get("NIGHTCART_ALERT_WEBHOOK"):
        body = json.dumps({"text": f"{headline}\n{text}"}).encode()
        try:
            with urlopen(Request(webhook, body, {"Content-Type": "application/json"}), timeout=10) as answer:
                answer.read()
        except (OSError, ValueError, HTTPException):
            log.exception("the alert webhook did not take the message")
    if address := os.environ.get("NIGHTCART_ALERT_EMAIL"):
        from airflow.providers.smtp.hooks.smtp import SmtpHook

        try:
            with SmtpHook() as smtp:
                subject = " ".join(headline.split())[:200]  # a line end would be another header
                body = "<br>\n".join(escape(f"{headline}\n{text}").splitlines())
                smtp.send_email_smtp(to=address, subject=subject, html_content=f"<p>{body}</p>")
        except Exception:
            log.exception("the alert mail was not sent")
