"""Provider `ec2`: AWS machines on demand and spot. Only this room and storage/s3 know boto3."""

from orchestrator.providers.ec2.provider import provider as provider
