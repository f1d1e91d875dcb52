"""What MLflow holds of a training."""

import pytest

from recsys_tasks.models import model_class
from recsys_tasks.recipe import Recipe
from recsys_tasks.settings import Settings
from recsys_tasks.tracking import Tracking
from tests.models.worlds import SIZE, catalog, checkerboard, material

EPOCHS = [{"epoch": n, "loss": 9.0 / n, "ndcg@10": n / 10, "seconds": 1.0} for n in (1, 2, 3)]
TRIES = [{"half_life_days": 30.0, "ndcg@10": 0.1}, {"half_life_days": 60.0, "ndcg@10": 0.2}]


@pytest.fixture
def logged(home, tmp_path):
    """Log a model with a learning curve; return MLflow's client and the run."""
    import mlflow

    def log(curve):
        model = model_class("ease")().fit(material(checkerboard()))
        model.curve = curve
        model.save(tmp_path, catalog(SIZE))
        (tmp_path / "_MANIFEST.json").write_text("{}")
        tracking = Tracking(Settings(), "tiny")
        tracking.log_training("2011-04-12", Recipe("ease"), "models/ease-1", "snapshots/1", tmp_path)
        client = mlflow.MlflowClient(tracking.uri, tracking.uri)
        (run,) = client.search_runs([client.get_experiment_by_name("nightcart-tiny").experiment_id])
        return client, run.info.run_id

    return log


@pytest.mark.parametrize(
    ("curve", "steps"),
    [
        (EPOCHS, {"validation ndcg_at_10": [(1, 0.1), (2, 0.2), (3, 0.3)], "loss": [(1, 9.0), (2, 4.5), (3, 3.0)]}),
        (TRIES, {"validation ndcg_at_10": [(1, 0.1), (2, 0.2)]}),
    ],
)
def test_a_learning_curve_is_a_picture_and_a_metric_a_step(logged, curve, steps):
    client, run = logged(curve)
    assert [file.path for file in client.list_artifacts(run)] == ["curve.png", "model"]
    found = {name: [(point.step, point.value) for point in client.get_metric_history(run, name)] for name in steps}
    assert {name: sorted(points) for name, points in found.items()} == steps


def test_a_model_that_tried_nothing_has_no_picture(logged):
    client, run = logged([])
    assert [file.path for file in client.list_artifacts(run)] == ["model"]
