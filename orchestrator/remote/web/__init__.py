"""JSON APIs and files over HTTPS. Only http_client knows httpx; only hugging_face knows huggingface_hub."""
