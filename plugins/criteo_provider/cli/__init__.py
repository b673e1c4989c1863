"""The commands of airflow criteo."""
