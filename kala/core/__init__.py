"""The session and configuration classes of the KALA + LM Studio guide, as clients of the guarded pipeline."""
