"""The way from Airflow's connections and settings into the house."""
