"""The driver: gptctl on a machine of yours that is always on, which follows runs while this computer is off."""
