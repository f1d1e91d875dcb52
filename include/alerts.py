"""Who hears of a failure and of drift: the log always; a webhook and a mailbox where the environment names them.

``NIGHTCART_ALERT_WEBHOOK``   a URL that takes ``{"text": ...}`` by POST, as Slack, Teams and Mattermost do
``NIGHTCART_ALERT_EMAIL``     an address; sent through Airflow's ``[smtp]`` connection (``smtp_default``)
"""

import json
import logging
import os
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
                smtp.send_email_smtp(to=address, subject=headline[:200], html_content=f"<p>{text}</p>")
        except Exception:
            log.exception("the alert mail was not sent")
