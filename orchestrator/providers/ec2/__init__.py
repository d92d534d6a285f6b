"""Provider `ec2`: AWS machines, on demand and spot."""
