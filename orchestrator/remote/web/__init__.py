"""JSON APIs and files over HTTPS. Only json_api knows httpx; only hugging_face knows huggingface_hub."""
