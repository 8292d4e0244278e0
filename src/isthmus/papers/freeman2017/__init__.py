"""Freeman and Bruna 2017."""
