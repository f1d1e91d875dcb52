"""The pages that ``plugins/nightcart_plugin.py`` puts into Airflow; imported at the API server's first request."""
