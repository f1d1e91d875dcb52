"""What the night makes, as Airflow sees it. A DAG with ``schedule=[RECOMMENDATIONS]`` runs after each publication."""

from airflow.sdk import Asset

SNAPSHOT = Asset("nightcart_snapshot")
VECTORS = Asset("nightcart_vectors")
MODELS = Asset("nightcart_models")
LEADERBOARD = Asset("nightcart_leaderboard")
CHAMPIONS = Asset("nightcart_champions")
INDEX = Asset("nightcart_index")
RECOMMENDATIONS = Asset("nightcart_recommendations")
REPORT = Asset("nightcart_report")
