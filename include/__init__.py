"""What DAGs and plugins share: assets, alerts, and the shop files."""
