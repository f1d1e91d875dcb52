"""What can be proven of the image and the composition without a container engine."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docker-compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
AIRFLOW = {"airflow-init", "api-server", "scheduler", "dag-processor", "triggerer"}
IS_SECRET = re.compile("PASSWORD$|SECRET$|KEY$|REDISCLI_AUTH|SQL_ALCHEMY_CONN|REDIS_URL")


def example() -> dict[str, str]:
    """Return what .env.example sets, the lines that are commented out included."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(re.findall(r"^#?([A-Z_]+)=(.*)$", "\n".join(lines), re.MULTILINE))


def test_it_follows_the_compose_specification():
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        "docker-compose.yaml",
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_all_that_is_named_exists():
    for name, service in SERVICES.items():
        for needed in service.get("depends_on", {}):
            assert needed in SERVICES, f"{name} waits for {needed}, which is no service"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            exists = (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
            assert exists, f"{name} mounts {source}, which is neither a path here nor a volume"


def test_airflow_runs_as_its_four_processes():
    assert set(SERVICES) - {"postgres", "valkey", "mlflow"} == AIRFLOW
    for name in AIRFLOW - {"airflow-init"}:
        assert SERVICES[name]["command"][:2] == ["airflow", name]


def test_every_published_port_is_for_this_machine_only():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"api-server", "mlflow", "valkey"}, "publish a port only for people or for the shop"
    for name, ports in published.items():
        for port in ports:
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}; write 127.0.0.1: before it"


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_stands_in_the_file(name):
    for key, value in SERVICES[name].get("environment", {}).items():
        if IS_SECRET.search(key):
            assert re.search(r"\$\{[A-Z_]+:\?set it in \.env\}", value), (
                f"{name}: take {key} from ${{...:?set it in .env}}"
            )


def test_no_variable_has_a_default_that_opens_a_door():
    defaults = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", TEXT))
    assert not [name for name in defaults if IS_SECRET.search(name)], "a default password is everyone's password"


def test_the_example_of_env_names_every_variable_and_gives_no_secret_away():
    required = set(re.findall(r"\$\{([A-Z_]+):\?", TEXT))
    optional = set(re.findall(r"\$\{([A-Z_]+):-", TEXT))
    assert required, "no variable is required: then a secret stands somewhere"
    assert set(example()) == required | optional, "docker-compose.yaml and .env.example must name the same variables"
    assert {example()[name] for name in required} == {""}, "leave secrets empty: Compose then refuses to start"


def test_the_login_is_real_and_only_the_api_server_can_read_its_passwords():
    for name in AIRFLOW:
        assert SERVICES[name]["environment"]["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] == "False"
    folder = SERVICES["api-server"]["environment"]["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"].rpartition("/")[
        0
    ]
    mounting = {name for name, service in SERVICES.items() if f"login:{folder}" in service.get("volumes", [])}
    assert mounting == {"airflow-init", "api-server"}


def test_all_of_airflow_agrees_on_database_keys_and_nightcart():
    shared = set(COMPOSE["x-airflow-common"]["environment"].items())
    for name in AIRFLOW:
        assert shared <= set(SERVICES[name]["environment"].items()), f"{name} lost a setting of x-airflow-common"
    assert {"NIGHTCART_REDIS_URL", "NIGHTCART_MLFLOW_TRACKING_URI"} <= {key for key, _ in shared}


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"airflow-init"}))
def test_every_service_that_stays_says_whether_it_is_healthy(name):
    test = SERVICES[name]["healthcheck"]["test"]
    if test[:3] == ["CMD", "python", "-c"]:
        compile(test[3], name, "exec")


def test_every_variable_of_nightcart_is_one_that_it_reads():
    from recsys_tasks.settings import Settings

    known = {f"NIGHTCART_{field.upper()}" for field in Settings.model_fields} | {
        "NIGHTCART_ALERT_WEBHOOK",
        "NIGHTCART_DEADLINE",
    }
    named = set(re.findall(r"NIGHTCART_[A-Z_]+", TEXT + DOCKERFILE))
    assert named <= known, "nothing reads these"


def test_the_image_is_the_tested_environment_and_is_not_run_by_root():
    assert "-c constraints.txt" in DOCKERFILE
    assert re.search(r"^USER (?!root|0\b)\w+$", DOCKERFILE, re.MULTILINE)
    assert "PYTHONDONTWRITEBYTECODE" not in DOCKERFILE, "every process would compile everything again"
    assert SERVICES["scheduler"]["image"].endswith(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    )
    for key, folder in {"NIGHTCART_HOME": "home", "AIRFLOW_HOME": "logs"}.items():
        path = re.search(rf"{key}=(\S+)", DOCKERFILE).group(1)
        mounts = SERVICES["scheduler"]["volumes"]
        assert any(mount.startswith(f"{folder}:{path}") for mount in mounts), f"{key} does not lie on a volume"


def test_whatever_the_image_copies_is_let_through_by_dockerignore():
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in DOCKERFILE.splitlines() if line.startswith("COPY ") for word in shlex.split(line)[1:-1]}
    assert copied - {"."} <= let_through
    assert {"dags", "include", "plugins", "recsys_tasks"} <= let_through
    assert not {".env", "var", ".git", ".venv"} & let_through
