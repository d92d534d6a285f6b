"""Provider `lambda`: machines of Lambda Cloud."""

from orchestrator.providers.lambda_cloud.provider import provider as provider
