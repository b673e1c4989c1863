"""What Audience Sync adds to the Airflow UI."""
