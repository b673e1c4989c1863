"""Telling people what has changed, through whatever Airflow already tells them with."""
