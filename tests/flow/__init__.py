"""The flow tier: enter and upload, alone and as a house, without Airflow."""
