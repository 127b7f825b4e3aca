from aim_hf import AIMPipeline  # noqa: F401
