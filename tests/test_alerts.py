import email
import json
import logging
import socket
import socketserver
import threading
from datetime import timedelta
from email.header import decode_header, make_header
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from include import alerts

RUN = SimpleNamespace(dag_id="nightly", run_id="scheduled__2017-12-04")


@pytest.fixture(autouse=True)
def _nobody_is_told(monkeypatch):
    monkeypatch.delenv("NIGHTCART_ALERT_WEBHOOK", raising=False)
    monkeypatch.delenv("NIGHTCART_ALERT_EMAIL", raising=False)
    monkeypatch.delenv("NIGHTCART_DEADLINE", raising=False)


class Webhook:
    """A chat server of one room: keeps what is posted, answers as it is told to."""

    def __init__(self):
        self.posts, self.status, room = [], 200, self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                room.posts.append((self.headers["Content-Type"], json.loads(body)))
                self.send_response(room.status)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def webhook(monkeypatch):
    room = Webhook()
    thread = threading.Thread(target=room.server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("NIGHTCART_ALERT_WEBHOOK", room.url)
    yield room
    room.server.shutdown()
    room.server.server_close()
    thread.join()


def test_a_failed_task_is_posted_with_its_run_and_its_error(webhook):
    task = SimpleNamespace(task_id="train", map_index=2)
    alerts.failed({"dag_run": RUN, "task_instance": task, "exception": ValueError("no events before as_of")})
    [(content_type, message)] = webhook.posts
    assert content_type == "application/json"
    assert message["text"] == (
        "Nightcart: nightly.train[2] failed in run scheduled__2017-12-04: no events before as_of\n"
        "The lists published last stay current until a night succeeds."
    )


def test_a_task_that_is_not_mapped_has_no_index(webhook):
    alerts.failed({"dag_run": RUN, "task_instance": SimpleNamespace(task_id="check", map_index=-1)})
    assert "nightly.check failed in run scheduled__2017-12-04: see the task's log" in webhook.posts[0][1]["text"]


def test_a_failed_run_is_posted_with_its_reason(webhook):
    alerts.failed({"dag_run": RUN, "reason": "task_failure"})
    assert "nightly failed in run scheduled__2017-12-04: task_failure" in webhook.posts[0][1]["text"]


def test_the_log_always_tells(caplog):
    with caplog.at_level(logging.ERROR):
        alerts.failed({"dag_run": RUN, "reason": "task_failure"})
    assert "Nightcart: nightly failed" in caplog.text


def test_a_webhook_that_refuses_does_not_raise(webhook, caplog):
    webhook.status = 500
    alerts.tell("headline")
    assert len(webhook.posts) == 1
    assert "the alert webhook did not take the message" in caplog.text


@pytest.mark.parametrize("url", ["http://127.0.0.1:{closed}/", "http://", "not a URL", "http://no host/"])
def test_a_webhook_that_cannot_be_reached_does_not_raise(url, monkeypatch, caplog):
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NIGHTCART_ALERT_WEBHOOK", url.format(closed=taken.getsockname()[1]))
        alerts.tell("headline")
    assert "the alert webhook did not take the message" in caplog.text


def test_a_mail_that_cannot_be_sent_does_not_raise(monkeypatch, caplog, airflow_db):
    # with Airflow imported already: its logging would push the capture aside in mid-test
    monkeypatch.setenv("NIGHTCART_ALERT_EMAIL", "night@shop.example")
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", "smtp://127.0.0.1:1/?disable_ssl=true&timeout=1&retry_limit=1")
    alerts.tell("headline")
    assert "the alert mail was not sent" in caplog.text


def a_report(tmp_path, **other):
    part = {"alarms": [{"statistic": "price", "text": "prices rose to 100 times the usual"}]}
    report = {
        "shop": "corner",
        "as_of": "2017-12-04",
        "version": "v1",
        "drift": {"events": part, "lists": {"alarms": []}},
    }
    (tmp_path / "report.json").write_text(json.dumps(report | other))
    return tmp_path / "report.json"


def test_drift_is_posted_with_its_likely_cause(webhook, tmp_path):
    alerts.drifted(a_report(tmp_path))
    [(_, message)] = webhook.posts
    assert message["text"] == (
        "Nightcart: corner, night of 2017-12-04: out of the ordinary\nprices rose to 100 times the usual"
    )


@pytest.mark.parametrize("other", [{"version": None}, {"drift": {"events": {"alarms": []}}}])
def test_a_dry_run_and_a_quiet_night_tell_nobody(other, webhook, tmp_path):
    alerts.drifted(a_report(tmp_path, **other))
    assert webhook.posts == []


class Mailbox(socketserver.StreamRequestHandler):
    """An SMTP server that keeps what it is given: sender, recipients and message."""

    def handle(self):
        self.say("220 mail.example")
        sender, recipients = "", []
        while line := self.rfile.readline().decode().strip():
            verb, _, rest = line.partition(":")
            verb = verb.upper()
            if verb == "MAIL FROM":
                sender = rest.split()[0].strip("<>")
            elif verb == "RCPT TO":
                recipients.append(rest.strip("<> "))
            elif verb == "DATA":
                self.say("354 go on")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.mails.append((sender, recipients, email.message_from_bytes(b"".join(lines))))
            elif verb == "QUIT":
                self.say("221 bye")
                return
            self.say("250 mail.example" if verb.startswith("EHLO") else "250 good")

    def say(self, text):
        self.wfile.write(text.encode() + b"\r\n")


@pytest.fixture
def mailbox(monkeypatch, airflow_db):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as server:
        server.mails = []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        options = "disable_ssl=true&disable_tls=true&from_email=nightcart%40shop.example"
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", f"smtp://127.0.0.1:{server.server_address[1]}/?{options}")
        monkeypatch.setenv("NIGHTCART_ALERT_EMAIL", "night@shop.example")
        yield server.mails
        server.shutdown()
        thread.join()


def test_a_mail_tells_what_failed_and_what_serves_meanwhile(mailbox):
    error = ValueError("expected <b>\nSubject: another")
    alerts.failed({"dag_run": RUN, "task_instance": SimpleNamespace(task_id="check", map_index=-1), "exception": error})
    [(sender, recipients, message)] = mailbox
    assert (sender, recipients) == ("nightcart@shop.example", ["night@shop.example"])
    subject = str(make_header(decode_header(message["Subject"])))
    assert " ".join(subject.split()).startswith(
        "Nightcart: nightly.check failed in run scheduled__2017-12-04: expected"
    )
    [part] = [part for part in message.walk() if part.get_content_type() == "text/html"]
    body = part.get_payload(decode=True).decode()
    assert "expected &lt;b&gt;" in body
    assert "The lists published last stay current" in body


LATE = {"dag_run": {"dag_id": "nightly", "dag_run_id": "scheduled__2017-12-04", "state": "running"}}


def test_a_late_night_is_told_everywhere(webhook, mailbox, caplog):
    alerts.late(1.5, context=LATE)
    told = "Nightcart: nightly is late: run scheduled__2017-12-04 has not ended, 1.5 hours after it was queued"
    assert webhook.posts[0][1]["text"].splitlines()[0] == told
    assert len(mailbox) == 1
    assert told in caplog.text


@pytest.mark.parametrize(("state", "told"), [("failed", []), ("success", ["ended only now"])])
def test_of_a_late_night_that_has_ended_is_told_what_is_not_known_yet(webhook, state, told):
    alerts.late(6, context={"dag_run": {**LATE["dag_run"], "state": state}})
    assert [told for _, post in webhook.posts if told[0] in post["text"]] == [told] * len(told)


@pytest.mark.parametrize(("text", "hours"), [(None, None), ("", None), ("1.5", 1.5), ("0", None), ("-1", None)])
def test_the_deadline_of_a_night_is_set_by_the_environment(monkeypatch, text, hours):
    if text is not None:
        monkeypatch.setenv("NIGHTCART_DEADLINE", text)
    found = alerts.deadline()
    assert (found and found.interval) == (hours and timedelta(hours=hours))
    assert not hours or found.callback.path == "include.alerts.late"
    assert not hours or found.callback.kwargs == {"hours": hours}


@pytest.mark.parametrize("text", ["six", "nan", "1e999"])
def test_a_deadline_that_is_no_number_of_hours_is_told_with_what_was_expected(monkeypatch, text):
    monkeypatch.setenv("NIGHTCART_DEADLINE", text)
    with pytest.raises(ValueError, match="NIGHTCART_DEADLINE: expected hours"):
        alerts.deadline()
